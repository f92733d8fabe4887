"""What there is to see of a group of units: their weights, gradients and activations, unit by unit.

Criteria judge by it, regularisers push by it. Nothing is made before it is asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fedhp.model.layout import Layout, Place


@dataclass(frozen=True, slots=True)
class Rows:
    """One parameter of a group, seen unit by unit. Holds no storage of the parameter's, which may be cut.

    Attributes:
        parameter: The parameter.
        place: Where it holds the group's units.
    """

    parameter: torch.Tensor
    place: Place

    @property
    def weights(self) -> torch.Tensor:
        """The weights, of shape ``(units, entries)``; a bias has one entry per unit."""
        return self.place.rows(self.parameter.detach())

    @property
    def gradients(self) -> torch.Tensor:
        """Their gradients of the last step, of the same shape."""
        gradient = self.parameter.grad
        assert gradient is not None
        return self.place.rows(gradient)

    def norms(self, order: float = 2) -> torch.Tensor:
        """Returns the norm of each unit's weights, of shape ``(units,)``; without a copy of them."""
        weights = self.place.unfold(self.parameter.detach())
        others = [axis for axis in range(weights.dim()) if axis != self.place.axis]
        return torch.linalg.vector_norm(weights, ord=order, dim=others)

    def pull(self, factors: torch.Tensor) -> None:
        """Adds to the gradient each unit's weights times its factor, of shape ``(units,)``, in place."""
        gradient = self.parameter.grad
        assert gradient is not None
        axis, _, start, num_units, span = self.place
        shape = [1] * gradient.dim()
        shape[axis] = num_units * span
        # By axis rather than by rows, which would be a copy where the axis is not the first.
        weights = self.parameter.detach().narrow(axis, start, num_units * span)
        gradient = gradient.narrow(axis, start, num_units * span)
        gradient.addcmul_(weights, factors.repeat_interleave(span).view(shape))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is to see of one group.

    Attributes:
        entering: The parameters whose first axis is the group's: what makes its units' activations. None of
            inputs.
        leaving: The parameters that have the group on another axis: what is made of those activations.
        scales: Of those entering, the scales of normalisation layers.
        generator: What a score may draw from.
        activations: What the units say, of shape ``(batch, units, entries)``, entries being the places of a
            feature map; None except for criteria that look at activations.
    """

    entering: tuple[Rows, ...] = ()
    leaving: tuple[Rows, ...] = ()
    scales: tuple[Rows, ...] = ()
    generator: torch.Generator = field(default_factory=torch.Generator)
    activations: torch.Tensor | None = None

    @property
    def own(self) -> tuple[Rows, ...]:
        """What determines the units: the parameters entering; of inputs, which have none, those leaving."""
        return self.entering or self.leaving


def evidence(
    layout: Layout,
    parameters: Mapping[str, torch.Tensor],
    counts: Mapping[str, int],
    generator: torch.Generator,
) -> dict[str, Evidence]:
    """Returns what there is to see of every group.

    Args:
        layout: The model's wiring.
        parameters: The parameters of the model in training, by name.
        counts: Units per group that the parameters hold.
        generator: What scores may draw from.
    """
    entering: dict[str, list[Rows]] = {group: [] for group in counts}
    leaving: dict[str, list[Rows]] = {group: [] for group in counts}
    scales: dict[str, list[Rows]] = {group: [] for group in counts}
    for name, parameter in parameters.items():
        for place in layout.places(name, counts):
            rows = Rows(parameter, place)
            (leaving if place.axis else entering)[place.group].append(rows)
            if _is_scale(layout, name):
                scales[place.group].append(rows)
    return {
        group: Evidence(tuple(entering[group]), tuple(leaving[group]), tuple(scales[group]), generator)
        for group in counts
    }


def groups_without_scales(layout: Layout) -> list[str]:
    """Returns the groups that no normalisation layer scales."""
    scaled = {
        place.group for name in layout.trained if _is_scale(layout, name) for place in _full(layout, name)
    }
    return [group for group in layout.widths if group not in scaled]


def groups_without_takers(layout: Layout) -> list[str]:
    """Returns the groups that no layer takes in."""
    taken = {place.group for name in layout.trained for place in _full(layout, name) if place.axis == 1}
    return [group for group in layout.widths if group not in taken]


def _full(layout: Layout, name: str) -> Iterator[Place]:
    return layout.places(name, layout.widths)


def _is_scale(layout: Layout, name: str) -> bool:
    """Says whether a parameter is a normalisation's scale: ``weight`` by name, with one axis, of units."""
    of_units = len(layout.shapes[name]) == 1 and bool(layout.runs(name)[0])
    return of_units and name.rpartition(".")[2] == "weight" and name not in layout.slopes


class Taps:
    """Shows the activations of every group while a module is trained, at the layers that take them in.

    There they are final: normalised, rectified, pooled and flattened. A grouped convolution lies within its
    units, since it takes in only what is cut along with what it makes: they are shown where they leave it.

    Args:
        module: The module.
        layout: Its wiring.
        counts: Units per group that it holds.
        show: Called in every forward pass with a group and its activations, of shape
            ``(batch, units, entries)``, once per layer that takes them in.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        counts: Mapping[str, int],
        show: Callable[[str, torch.Tensor], None],
    ) -> None:
        self._layout, self._show = layout, show
        self.recount(counts)
        takers = [name for name in self._places if self._places[name]]
        self._handles = [
            module.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
                self._hook(name),
                prepend=True,  # all places of a map, of which some layers are given a part
            )
            for name in takers
        ]

    def recount(self, counts: Mapping[str, int]) -> None:
        """Follows a cut: from now on the module holds these units."""
        self._places = {
            name: [place for place in self._layout.places(name, counts) if place.axis == 1]
            for name in self._layout.trained
        }

    def close(self) -> None:
        """Leaves the module as it was."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def show(taker: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not torch.is_grad_enabled():
                return  # no step
            taken = inputs[0].detach()
            if isinstance(taker, nn.Linear):
                taken = taken.movedim(-1, 1)  # of maps, too, it takes the last axis
            for place in self._places[name]:
                size = place.num_units * place.span
                units = taken.narrow(1, place.start, size).reshape(len(taken), place.num_units, -1)
                self._show(place.group, units)

        return show
