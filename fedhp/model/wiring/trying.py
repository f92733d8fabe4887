"""A network whose units are cut, tried: does it do to those that are left what it did to all of them?"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.layout import Layout
from fedhp.model.modules import fill, resize
from fedhp.model.structure import Mask
from fedhp.model.wiring.calls import Call, forward, tensors
from fedhp.model.wiring.channels import Groups
from fedhp.model.wiring.identities import CutValue, Value
from fedhp.model.wiring.known import Step
from fedhp.model.wiring.layers import WIRING
from fedhp.model.wiring.rules import REARRANGES, rearrange

SAMPLES = 2  # of the batch that is traced: one is a special case of some layers
_OTHERS = 3  # of those that are tried: a network may not take other steps for them
_NUM_RANDOM = 3
# Functions that are told how many channels there are: of the user, who can leave it to torch.
_TOLD_SIZES = {"view", "reshape", "unflatten", "expand"}


def blamed(
    module: nn.Module,
    layout: Layout,
    groups: Groups,
    steps: Sequence[Step],
    input_shape: Sequence[int],
    said: str,
) -> Step | None:
    """Returns the first step that does not do to cut channels what it did to whole ones; None where all do.

    Args:
        module: The network without weights.
        layout: The wiring to try.
        groups: The unit of every identity.
        steps: The network's steps, uncut.
        input_shape: The shape of one sample.
        said: How the user named the network, for errors.

    Raises:
        ScenarioError: If the network takes other steps than it took, or a step writes down how many channels
            there are.
    """
    for masks in _structures(layout.widths):
        trial = _Trial(groups, masks, steps)
        counts = {group: int(mask.sum()) for group, mask in masks.items()}
        compact = copy.deepcopy(module)
        resize(compact, {name: layout.shape(name, counts) for name in layout.shapes})
        fill(compact)
        try:
            forward(compact, WIRING, torch.zeros(_OTHERS, *input_shape), trial.watch, said)
        except _FoundError as found:
            return _judged(found.step, said, trial)
        except ScenarioError as error:
            if trial.strays or trial.at >= len(steps):
                raise ScenarioError(
                    f"{said} cannot be pruned: its forward pass takes other steps for another batch or fewer "
                    f"channels ({error}). It must take the same steps whatever the samples are"
                ) from None
            return _judged(steps[trial.at], said, trial)
    return None


def _structures(widths: Mapping[str, int]) -> Iterator[dict[str, Mask]]:
    """Yields small structures that differ where they cut, and in how much they cut of each group."""
    yield {group: np.arange(width) == width - 1 for group, width in widths.items()}
    rng = np.random.default_rng(0)
    for _ in range(_NUM_RANDOM):
        kept = {group: rng.integers(1, max(2, width // 2 + 1)) for group, width in widths.items()}
        yield {group: rng.permutation(width) < kept[group] for group, width in widths.items()}


def _judged(step: Step, said: str, trial: "_Trial") -> Step:
    """Returns the step to blame, unless it is one that the user can mend by a word."""
    known = [value for value in (*step.takes, *step.gives) if value is not None]
    if step.name in _TOLD_SIZES and all(trial.left(value).ids is not None for value in known):
        raise ScenarioError(
            f"{said} cannot be pruned: {step.who} to a number of channels written down: use flatten(1), or "
            "take the number from the maps (-1, x.size(1))"
        )
    return step


class _FoundError(ScenarioError):
    """A step is to blame."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.who)
        self.step = step


class _Trial:
    """Compares a cut network's steps with the whole one's.

    Attributes:
        at: The step that comes next.
        strays: Whether it was another than that.
    """

    def __init__(self, groups: Groups, masks: Mapping[str, Mask], steps: Sequence[Step]) -> None:
        self._kept = np.array([unit is None or masks[unit[0]][unit[1]] for unit in groups.units])
        self._steps = steps
        self.at, self.strays = 0, False

    def watch(self, call: Call, result: Any) -> None:
        """Compares the next step."""
        step = self._steps[self.at] if self.at < len(self._steps) else None
        made = tensors(result)
        if step is None or step.name != call.name:
            self.strays = True
            raise ScenarioError(f"{call.who} comes where it did not")
        if len(step.gives) != len(made):
            raise _FoundError(step)
        for tensor, value in zip(made, step.gives, strict=True):
            if value is not None and not value.neutral:
                left = self.left(value)
                if left.ids is None or not left.fits(tensor.shape, value.shape, SAMPLES):
                    raise _FoundError(step)
        if call.name in REARRANGES and any(value is not None for value in step.gives):
            self._compare(call, step, made)
        self.at += 1

    def left(self, value: Value) -> CutValue:
        """Returns what is left of a value."""
        return CutValue.of(value, self._kept)

    def _compare(self, call: Call, step: Step, made: Sequence[torch.Tensor]) -> None:
        """Holds what a step does to the identities that are left against those that it should give."""
        given = tensors((call.args, call.kwargs))
        ids = {}
        for tensor, value in zip(given, step.takes, strict=True):
            left = None if value is None else self.left(value).ids
            if left is not None:
                ids[id(tensor)] = left.expand(tensor.shape)
        got = tensors(rearrange(call, ids))
        for tensor, value, other in zip(made, step.gives, got, strict=True):
            wanted = None if value is None else self.left(value).ids
            if wanted is not None and not bool((wanted.expand(tensor.shape) == other).all()):
                raise _FoundError(step)
