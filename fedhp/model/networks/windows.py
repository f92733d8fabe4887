"""The layout of `fedhp.model.networks.sensors.conv1d`, declared: a device reads it without PyTorch."""

from collections.abc import Sequence
from itertools import pairwise

from fedhp.errors import ScenarioError
from fedhp.model.axes import AxisRef
from fedhp.model.layout import Layout, no_units
from fedhp.model.networks.norms import ONE_VALUE, channels_per_group
from fedhp.model.running import MEAN, SQUARE

KERNEL = 5


def conv1d(
    widths: Sequence[int], norm: str, floor: int, input_shape: tuple[int, ...], num_classes: int
) -> Layout:
    """Returns what tracing that network tells.

    Raises:
        ScenarioError: If there is nothing to cut, or a normalisation of single values.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    axes: dict[str, tuple[AxisRef | None, ...]] = {}

    def place(name: str, shape: tuple[int, ...], *along: AxisRef | None) -> None:
        shapes[name], axes[name] = shape, along

    sizes, steps = [input_shape[0] * input_shape[1], *widths], input_shape[2]
    made = [None, *(_made(f"conv{number}", width, norm) for number, width in enumerate(widths, 1))]
    for number, (before, width) in enumerate(pairwise(sizes), 1):
        place(f"conv{number}.weight", (width, before, KERNEL), made[number], made[number - 1], None)
        for leaf in ("weight", "bias"):
            place(f"norm{number}.{leaf}", (width,), made[number])
        if norm == "group" and steps * channels_per_group(width) == 1:
            raise ScenarioError(f"model 'conv1d': 'norm{number}' {ONE_VALUE}")
        steps = max(1, steps // 2)
    place("head.weight", (num_classes, sizes[-1]), None, made[-1])
    place("head.bias", (num_classes,), None)
    for number, width in enumerate(widths if norm == "batch" else (), 1):
        for leaf in (MEAN, SQUARE):
            place(f"norm{number}.{leaf}", (width,), made[number])
    units = {unit.group: width // unit.span for unit, width in zip(made[1:], widths, strict=True) if unit}
    if not units:
        raise no_units("model 'conv1d'")
    floors = {group: min(floor, number) for group, number in units.items()}
    statistics = frozenset(name for name in shapes if name.endswith((MEAN, SQUARE)))
    return Layout(units, shapes, axes, floors, statistics, over_batches=norm == "batch")


def _made(group: str, width: int, norm: str) -> AxisRef | None:
    """Returns what a convolution's channels are; None where they are one unit, which is never cut."""
    span = channels_per_group(width) if norm == "group" else 1
    return AxisRef(group, span) if width > span else None
