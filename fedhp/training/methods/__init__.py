"""How clients may train: each method one file, and its line in the registry."""

from collections.abc import Iterable, Sequence
from inspect import getattr_static

from fedhp.choices import check_choice
from fedhp.errors import ScenarioError
from fedhp.references import resolve
from fedhp.training.method import Method
from fedhp.training.method_names import references
from fedhp.training.methods.all_in_one import AllInOne
from fedhp.training.methods.clipping import Clipping
from fedhp.training.methods.dropfilter import DropFilter
from fedhp.training.methods.dynhp import DynHP
from fedhp.training.methods.fedprox import FedProx
from fedhp.training.methods.halves import Halves
from fedhp.training.methods.masked_loss import MaskedLoss
from fedhp.training.methods.noise_scale import NoiseWatch
from fedhp.training.methods.ordered_dropout import OrderedDropout
from fedhp.training.methods.pattern import Pattern
from fedhp.training.methods.regularizer import Regularization
from fedhp.training.methods.smcp import SoftMasks
from fedhp.training.methods.sparse import RigL, SparseEvolution, StaticMask
from fedhp.training.methods.top_gradients import TopGradients

# In the order in which they act: classes are absent of the samples that are trained on, noise and units are
# measured by the loss's gradients alone, what penalties and pulls add to these is clipped too, a pattern
# takes gradients as the update does, and parts are views of all that is kept.
_IN_ORDER: tuple[type[Method], ...] = (
    *(Halves, MaskedLoss, DropFilter, NoiseWatch, DynHP, SoftMasks, RigL, SparseEvolution, StaticMask),
    *(TopGradients, Regularization, FedProx, Clipping, Pattern, OrderedDropout, AllInOne),
)
METHODS: dict[str, type[Method]] = {kind.name: kind for kind in _IN_ORDER}


def shrinking(choice: str) -> str:
    """Returns the method that ``train.method`` says, once it is known to be one.

    Raises:
        ScenarioError: If it is none, or none that makes networks small.
    """
    if ":" in choice:
        if not _own(choice, "train.method").shrinks:
            raise ScenarioError(
                f"train.method: '{choice}' does not say that it makes networks small (shrinks = True); "
                f"methods that take part beside another are train.methods"
            )
        return choice
    known = [name for name, kind in METHODS.items() if kind.shrinks]
    check_choice("train.method", choice, known, "or give a class of your own as 'package.module:Class'")
    return choice


def methods_for(asked: Iterable[str], own: Sequence[str] = ()) -> tuple[type[Method], ...]:
    """Returns the methods that may be at work, in the order in which they act.

    Args:
        asked: Those that a strategy asks for: names in `METHODS`, or references.
        own: The user's own, by reference: they act on all gradients, before these are clipped.

    Raises:
        ScenarioError: If there is none of a name, or a reference leads to something else.
    """
    names = [name for name in asked if ":" not in name]
    for name in names:
        check_choice("a strategy's methods", name, METHODS)
    kinds = [kind for name, kind in METHODS.items() if name in names or not kind.by_strategy]
    place = kinds.index(Clipping)
    brought = dict.fromkeys(references(asked), "a strategy's methods")
    theirs = [_own(one, brought.get(one, "train.methods")) for one in references(asked, own)]
    return (*kinds[:place], *theirs, *kinds[place:])


def _own(reference: str, key: str) -> type[Method]:
    found = resolve(reference, key)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ScenarioError(f"{key}: '{reference}' is no subclass of fedhp.training.method.Method")
    for name in ("at_work", "extras", "said", "check", "network", "survivors"):
        if not isinstance(getattr_static(found, name), classmethod):
            raise ScenarioError(
                f"{key}: '{reference}': {name} is asked before there is a training, and must be a "
                f"@classmethod that takes the recipe"
            )
    return found
