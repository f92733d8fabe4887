"""How a model is wired: which axis of which parameter each group of units indexes, and how to slice by it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import ScenarioError
from fedhp.model.axes import Axis, AxisRef
from fedhp.model.structure import Indices, Structure

_Array = TypeVar("_Array", bound=Any)


class Place(NamedTuple):
    """Where a compact parameter holds a group's units: ``num_units`` of ``span`` entries, from ``start``."""

    axis: int
    group: str
    start: int
    num_units: int
    span: int

    def rows(self, array: _Array) -> _Array:
        """Views an array or tensor as one row per unit, of shape ``(num_units, entries)``.

        Without a copy where the axis is the first, or the parameter a matrix.
        """
        return self._own(array).swapaxes(0, self.axis).reshape(self.num_units, -1)

    def unfold(self, array: _Array) -> _Array:
        """Views an array or tensor with its axis as two, ``(num_units, span)``; always without a copy."""
        before, after = array.shape[: self.axis], array.shape[self.axis + 1 :]
        return self._own(array).reshape(*before, self.num_units, self.span, *after)

    def _own(self, array: _Array) -> _Array:
        size = self.num_units * self.span
        if array.shape[self.axis] == size:
            return array
        return array[(*(slice(None),) * self.axis, slice(self.start, self.start + size))]


@dataclass(frozen=True, eq=False)
class Layout:
    """How a model is wired: the only place that knows, so that nothing else asks for layer names.

    Compared and hashed by identity, so that what is derived from it can be cached.

    Attributes:
        widths: Per group, the number of units of the full model.
        shapes: Per parameter, its shape in the full model.
        axes: Per parameter, one entry per axis: the runs that it consists of, none where the axis is fixed
            (classes, kernel sizes, the channels of an image). May be given as one `AxisRef`, or None.
        floors: Per group, the number of units below which it is never cut.
        buffers: Which of the parameters are none to be trained: running statistics of a normalisation.
        views_maps: Whether the network views feature maps as rows (``view``), which torch refuses to do where
            channels lie innermost in memory.
        over_batches: Whether the network normalises over the samples of a batch; if it has buffers it does.
        slopes: Which of the parameters are slopes of an activation: one per unit, as the scales of a
            normalisation are, which they are not.
        static: Whether running statistics are those of a pass after training alone: in training the network
            computes with other magnitudes.
    """

    widths: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, Sequence[AxisRef | Axis | None]]
    floors: Mapping[str, int]
    buffers: frozenset[str] = frozenset()
    views_maps: bool = False
    over_batches: bool = False
    slopes: frozenset[str] = frozenset()
    static: bool = False

    def __post_init__(self) -> None:
        axes = {name: tuple(map(_runs, given)) for name, given in self.axes.items()}
        object.__setattr__(self, "axes", axes)
        for name, shape in self.shapes.items():
            assert shape == self.shape(name, self.widths), name
        for group, width in self.widths.items():
            assert 1 <= self.floors[group] <= width, group

    def full(self) -> Structure:
        """Returns the structure of the full model."""
        return Structure.full(self.widths)

    def smallest(self) -> dict[str, int]:
        """Returns the unit counts of the smallest structure: every group at its floor."""
        return dict(self.floors)

    def shape(self, name: str, counts: Mapping[str, int]) -> tuple[int, ...]:
        """Returns a parameter's compact shape when each group keeps ``counts[group]`` units."""
        return tuple(
            sum(run.span * (1 if run.group is None else counts[run.group]) for run in runs) if runs else size
            for size, runs in zip(self.shapes[name], self.runs(name), strict=True)
        )

    def runs(self, name: str) -> tuple[Axis, ...]:
        """Returns a parameter's axes, each as the runs that it consists of."""
        return self.axes[name]  # pyright: ignore[reportReturnType] - made so when the layout was

    @property
    def smallest_batch(self) -> int:
        """Samples that a step takes at least: the statistics of a batch of one would be none."""
        return 2 if self.buffers or self.over_batches else 1

    @cached_property
    def singles(self) -> frozenset[str]:
        """The groups whose units are single weights: each is called as the parameter that it is all of."""
        return frozenset(group for group in self.widths if self.axes.get(group) == ((AxisRef(group),),))

    @cached_property
    def scored(self) -> tuple[str, ...]:
        """The groups whose units have scores: all but those of single weights."""
        return tuple(group for group in self.widths if group not in self.singles)

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """The parameters that are trained: all but the buffers."""
        return tuple(name for name in self.shapes if name not in self.buffers)

    def num_parameters(self, counts: Mapping[str, int]) -> int:
        """Returns the number of trained scalars when each group keeps ``counts[group]`` units."""
        return sum(math.prod(self.shape(name, counts)) for name in self.trained)

    def indices(self, name: str, within: Structure, sub: Structure) -> tuple[tuple[int, Indices], ...]:
        """Returns, for a parameter compact under ``within``, what to take to make it compact under ``sub``.

        Returns:
            Pairs of an axis and the positions to take along it; axes that stay whole are left out.
        """
        takes = []
        for axis, runs in enumerate(self.runs(name)):
            groups = [run.group for run in runs if run.group is not None]
            if any(within.counts[group] != sub.counts[group] for group in groups):
                takes.append((axis, _positions(runs, within, sub)))
        return tuple(takes)

    def places(self, name: str, counts: Mapping[str, int]) -> Iterator["Place"]:
        """Yields where along its axes a compact parameter holds units, when ``counts`` of them are kept."""
        for axis, runs in enumerate(self.runs(name)):
            start = 0
            for run in runs:
                count = 1 if run.group is None else counts[run.group]
                if run.group is not None:
                    yield Place(axis, run.group, start, count, run.span)
                start += count * run.span

    def slice(
        self, weights: Mapping[str, NDArray[Any]], within: Structure, sub: Structure
    ) -> dict[str, NDArray[Any]]:
        """Cuts arrays that are compact under ``within`` down to ``sub``, which it must contain.

        Arrays in which nothing is cut are returned as they are, not copied.
        """
        assert within.contains(sub)
        out = {}
        for name, array in weights.items():
            for axis, take in self.indices(name, within, sub):
                array = array.take(take, axis=axis)
            out[name] = array
        return out


def spread(
    layout: Layout, weights: Mapping[str, NDArray[Any]], within: Structure, whole: Structure
) -> dict[str, NDArray[Any]]:
    """Returns arrays that are compact under ``within`` as those of ``whole``, which contains it.

    What it has besides is 0. Arrays in which nothing is missing are returned as they are, not copied.
    """
    out = {}
    for name, array in weights.items():
        if takes := dict(layout.indices(name, whole, within)):
            wide = np.zeros(layout.shape(name, whole.counts), array.dtype)
            wide[np.ix_(*(takes.get(axis, np.arange(size)) for axis, size in enumerate(wide.shape)))] = array
            array = wide
        out[name] = array
    return out


def no_units(said: str, why: str = "") -> ScenarioError:
    """Returns the error of a network that has nothing to cut, with what keeps its units together."""
    return ScenarioError(
        f"{said} cannot be pruned: it has no units that could be cut apart from each other{why}. What one "
        "group of a group normalisation or of a convolution covers is one unit: widen the network, or use "
        "more groups"
    )


def _runs(given: AxisRef | Axis | None) -> Axis:
    if given is None:
        return ()
    return (given,) if isinstance(given, AxisRef) else given


def _positions(runs: Axis, within: Structure, sub: Structure) -> Indices:
    """Returns the entries along an axis, compact under ``within``, that belong to ``sub``."""
    taken, offset = [], 0
    for run in runs:
        kept = np.zeros(1, np.intp) if run.group is None else within.positions(sub, run.group)
        taken.append((offset + kept[:, None] * run.span + np.arange(run.span)).ravel())
        offset += run.span * (1 if run.group is None else within.counts[run.group])
    return np.concatenate(taken)
