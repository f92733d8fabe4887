"""What there is to see of a group of units: their weights, gradients and activations, unit by unit.

Criteria judge by it, regularisers push by it. Nothing is made before it is asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedhp.model.kernels import kernels_of, namespace_of
from fedhp.model.layout import Layout, Place

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Rows:
    """One parameter of a group, seen unit by unit. Holds no storage of the parameter's, which may be cut.

    Attributes:
        parameter: The parameter, PyTorch's or of an `fedhp.model.array_network.ArrayNetwork`.
        place: Where it holds the group's units.
    """

    parameter: Any
    place: Place

    @property
    def weights(self) -> Any:
        """The weights, of shape ``(units, entries)``; a bias has one entry per unit."""
        return self.place.rows(self.parameter.data)

    @property
    def gradients(self) -> Any:
        """Their gradients of the last step, of the same shape."""
        return self.place.rows(self._gradient)

    def norms(self, order: float = 2) -> Any:
        """Returns the norm of each unit's weights, of shape ``(units,)``; without a copy of them."""
        weights = self.parameter.data
        return kernels_of(weights).row_norms(weights, self.place, order)

    def dots(self) -> Any:
        """Returns the dot product of each unit's weights with its gradients, without a copy of them."""
        weights = self.parameter.data
        return kernels_of(weights).row_dots(weights, self._gradient, self.place)

    @property
    def _gradient(self) -> Any:
        gradient = self.parameter.grad
        assert gradient is not None
        return gradient

    def pull(self, factors: "torch.Tensor") -> None:
        """Adds to the gradient each unit's weights times its factor, of shape ``(units,)``, in place."""
        gradient = self._gradient
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
    generator: np.random.Generator = field(default_factory=np.random.default_rng)
    activations: "torch.Tensor | None" = None

    @property
    def own(self) -> tuple[Rows, ...]:
        """What determines the units: the parameters entering; of inputs, which have none, those leaving."""
        return self.entering or self.leaving

    @property
    def functions(self) -> Any:
        """The array API's functions for what there is."""
        return namespace_of(self.own[0].parameter.data)


def evidence(
    layout: Layout,
    parameters: Mapping[str, Any],
    counts: Mapping[str, int],
    generator: np.random.Generator,
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
