"""How clients may train: each method one file, and its line in the registry."""

from collections.abc import Iterable

from fedhp.choices import check_choice
from fedhp.training.method import Method
from fedhp.training.methods.clipping import Clipping
from fedhp.training.methods.dynhp import DynHP
from fedhp.training.methods.fedprox import FedProx
from fedhp.training.methods.masked_loss import MaskedLoss
from fedhp.training.methods.noise_scale import NoiseWatch
from fedhp.training.methods.ordered_dropout import OrderedDropout
from fedhp.training.methods.regularizer import Regularization

# In the order in which they act: noise and units are measured by the loss's gradients alone, what penalties
# and pulls add to these is clipped too, and parts are views of all that is kept.
METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (MaskedLoss, NoiseWatch, DynHP, Regularization, FedProx, Clipping, OrderedDropout)
}
PRUNING = (DynHP.name, Regularization.name)


def methods_for(asked: Iterable[str]) -> tuple[type[Method], ...]:
    """Returns the methods that may be at work where a strategy asks for these.

    Raises:
        ScenarioError: If there is none of a name.
    """
    names = list(asked)
    for name in names:
        check_choice("methods", name, METHODS)
    return tuple(kind for name, kind in METHODS.items() if name in names or not kind.by_strategy)
