"""FjORD's ordered dropout (Horvath et al. 2021, arXiv 2102.13451): each step trains the first units only.

A part shares its tensors with the whole: its parameters, and what the optimiser keeps for them, are views.
So a device that may hold the whole trains any part of it within the same memory, and units that a step
leaves out stay as they are, to the last bit; in the paper's code their momentum goes on. The paper's optional
self-distillation is not done.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.architecture import Architecture
from fedhp.model.layout import Layout
from fedhp.model.modules import set_parameter, thin_before_convolutions
from fedhp.model.optimizer import Optimizer
from fedhp.model.shrinking import at_level
from fedhp.seeds import generator
from fedhp.training.method import ClientRun, Method, Part
from fedhp.training.optimizers import SGD, TrainConfig
from fedhp.training.recipe import Recipe

# The widths of its paper's experiments with image models.
LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)


class OrderedDropout(Method):
    """Trains, in every step, one of the widths that the device holds."""

    name = "ordered_dropout"
    by_strategy = True

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that steps can train the first units of the model, and that nothing watches the whole."""
        check_ordered(recipe.architecture.layout, recipe.train)
        if recipe.memory.batch_policy == "noise":
            raise ScenarioError("ordered dropout takes memory.batch_policy = fixed or fill, got noise")

    def begin(self, run: ClientRun) -> None:
        """Finds the parts."""
        recipe, task = run.recipe, run.task
        stream = generator(recipe.seed, "ordered dropout", task.round, task.client)
        levels, counts = recipe.levels or LEVELS, run.structure.counts
        self._widths = Widths(recipe.architecture, run.module, run.optimizer, counts, levels, stream)

    def before_step(self, run: ClientRun) -> None:
        """Draws the part."""
        run.part = self._widths.draw()


class Widths:
    """Draws, for every step, how wide a part of a module it trains.

    Args:
        arch: The model.
        module: The whole that the device was sent: the first units of the full model.
        optimizer: Its optimiser, of SGD's kind, with all state allocated.
        counts: The whole's unit counts.
        levels: Widths to draw from, as shares of the full model's; wider ones than the whole are left out.
        stream: Source of randomness.
    """

    def __init__(
        self,
        arch: Architecture,
        module: nn.Module,
        optimizer: Optimizer,
        counts: Mapping[str, int],
        levels: Sequence[float],
        stream: np.random.Generator,
    ) -> None:
        self._whole, self._stream = optimizer, stream
        narrower = [at_level(arch.layout, level) for level in sorted(levels)]
        self._parts: list[Part] = [
            _part(arch, module, optimizer, part)
            for number, part in enumerate(narrower)
            if part not in narrower[:number]  # floors and rounding make some levels alike
            and part != dict(counts)
            and all(part[group] <= count for group, count in counts.items())
        ]
        self._parts.append((module, optimizer))

    def draw(self) -> Part:
        """Returns the module and the optimiser of the next step, at the learning rate of the whole."""
        part = self._parts[self._stream.integers(len(self._parts))]
        part[1].param_groups[0]["lr"] = self._whole.param_groups[0]["lr"]
        return part


def check_ordered(layout: Layout, train: TrainConfig) -> None:
    """Checks that steps can train the first units of a model.

    Raises:
        ScenarioError: If its parts are no views of it, need statistics of their own, or the optimiser keeps
            more than a momentum.
    """
    if layout.buffers:
        raise ScenarioError(
            "ordered dropout trains several widths of one model, each of which would need batch statistics "
            "of its own; choose model.norm = group or a model without normalisation"
        )
    if any(len(runs) > 1 for name in layout.shapes for runs in layout.runs(name)):
        raise ScenarioError("ordered dropout cannot train a model that concatenates feature maps")
    if train.optimizer != "sgd":
        raise ScenarioError(f"ordered dropout takes train.optimizer = sgd, got {train.optimizer}")


class _InPlaceSGD(SGD):
    """SGD over views, without a temporary; the fused update takes every tensor for contiguous."""

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter; the state must have been allocated."""
        (group,) = self.param_groups
        for parameter in group["params"]:
            gradient = parameter.grad
            if group["weight_decay"]:
                gradient.add_(parameter, alpha=group["weight_decay"])
            if group["momentum"]:
                momentum = self.state[parameter]["momentum_buffer"]
                gradient = momentum.mul_(group["momentum"]).add_(gradient)
            parameter.add_(gradient, alpha=-group["lr"])


def _part(arch: Architecture, module: nn.Module, optimizer: Optimizer, counts: Mapping[str, int]) -> Part:
    with torch.device("meta"):
        part = arch.build(counts)
    state = {}
    for name, whole in module.named_parameters():
        shape = arch.layout.shape(name, counts)
        view = set_parameter(part, name, _first(whole.data, shape))
        state[view] = {key: _first(kept, shape) for key, kept in optimizer.state[whole].items()}
    group = optimizer.param_groups[0]
    sgd = _InPlaceSGD(state, group["lr"], group["momentum"], group["weight_decay"])
    sgd.state.update(state)
    thin_before_convolutions(part, arch.layout)
    return part.train(), sgd


def _first(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return tensor[tuple(slice(size) for size in shape)]
