"""What is taken of a client's update, whoever trained it: what is not so is refused, and named."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.bounds import LARGEST_WHOLE
from fedhp.errors import WireError
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.layout import Layout
from fedhp.model.running import impossible_squares
from fedhp.model.state import Weights
from fedhp.model.structure import Structure
from fedhp.training.statistics import STATISTICS
from fedhp.training.update import Update

_HUGE = 1e6
# What stands before a group's name where its scores do, on the wire and in what is said of them.
SCORE = "score."
_SHARES = {name for name, column in STATISTICS.items() if column.figure.unit == "share"}
_OF_HELD_OUT = [name for name, column in STATISTICS.items() if column.figure.weight == "num_local_test"]


class UpdateChecks:
    """Checks updates that were not packed and unpacked, as `fedhp.federation.wire.unpack_update` does each.

    Args:
        layout: The model's wiring.
        assigned: What all of them were assigned.
    """

    def __init__(self, layout: Layout, assigned: Structure) -> None:
        self._layout, self._assigned = layout, assigned
        self._shapes = _shapes_of(layout, assigned)

    def check(self, update: Update, profile: DeviceProfile) -> None:
        """Checks an update.

        Raises:
            WireError: If anything is not as it must be; the message names the field.
        """
        state, shapes = update.state, self._shapes
        if state.structure != self._assigned:
            check_structure(state.structure, self._layout, self._assigned)
            shapes = _shapes_of(self._layout, state.structure)
        for arrays, wanted, before in ((state.weights, shapes[0], ""), (state.scores, shapes[1], SCORE)):
            check_names(arrays, wanted)
            for name, array in arrays.items():
                if array.dtype != np.float32 or array.shape != wanted[name]:
                    raise WireError(
                        f"{before}{name}: expected float32 of shape {wanted[name]}, got {array.dtype} of "
                        f"{array.shape}"
                    )
        check_weights(state.weights, self._layout)
        check_scores(state.scores, state.structure)
        check_statistics(
            {name: value for name, value in vars(update.statistics).items() if value is not None}
        )
        check_announced(update, profile)


# Of a model's weights, and of its scores.
_Shapes = tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]


def _shapes_of(layout: Layout, structure: Structure) -> _Shapes:
    counts = structure.counts
    weights = {name: layout.shape(name, counts) for name in layout.shapes}
    return weights, {group: (counts[group],) for group in layout.scored}


def check_values(name: str, weights: NDArray[np.float32]) -> None:
    """Checks that weights are such as either side takes from the other.

    Raises:
        WireError: If one is NaN or infinite, or they are absurdly large.
    """
    # Written so that NaN fails too. Without a bound, one client's huge but finite weights would make the
    # mean of all overflow. The norm takes one pass, and half the time of looking for the extremes.
    if not np.vdot(weights, weights) < _HUGE**2:
        raise WireError(
            f"{name}: holds NaN, infinite or absurdly large values (norm above {_HUGE:g}); where "
            f"training diverges, lower train.learning_rate"
        )


def check_names(record: Mapping[str, Any], *wanted: Iterable[str]) -> None:
    """Checks that there are the arrays of these names, and no others.

    Raises:
        WireError: If there are not.
    """
    expected = dict.fromkeys(chain(*wanted))
    if record.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - record), sorted(record.keys() - expected)
        raise WireError(f"model: arrays missing {missing}, unknown {unknown}")


def check_weights(weights: Weights, layout: Layout) -> None:
    """Checks the values of a model's parameters.

    Raises:
        WireError: As `check_values`, or if running statistics are such as no samples have.
    """
    for name, values in weights.items():
        check_values(name, values)
    if layout.buffers and (impossible := impossible_squares(weights)):
        raise WireError(f"{impossible[0]}: is below the square of the mean, as no samples have it")


def check_structure(structure: Structure, layout: Layout, within: Structure | None) -> None:
    """Checks that a structure keeps to the model's floors, and lies within another.

    Raises:
        WireError: If it does not.
    """
    for group, count in structure.counts.items():
        if count < layout.floors[group]:
            raise WireError(f"structure.{group}: {count} units, below the floor {layout.floors[group]}")
    if within is None:
        return
    for group in sorted(layout.singles):  # which may be others than were assigned, of the same number
        if (count := structure.counts[group]) != within.counts[group]:
            raise WireError(
                f"structure.{group}: {count} weights, expected {within.counts[group]} as assigned"
            )
    if any((structure.masks[group] & ~within.masks[group]).any() for group in layout.scored):
        raise WireError("structure: holds units that were not assigned")


def check_scores(scores: Weights, structure: Structure) -> None:
    """Checks units' scores, which are shares of a mean: none can be more than the number of units.

    Raises:
        WireError: If one is negative, NaN or larger.
    """
    for group, values in scores.items():
        # Written so that NaN fails too.
        if values.size and not (values.min() >= 0 and values.max() <= 1.01 * len(structure.masks[group])):
            raise WireError(f"score.{group}: holds negative, NaN or impossibly large values")


def check_announced(update: Update, profile: DeviceProfile) -> None:
    """Checks an update's numbers of samples against what its device said of itself.

    Raises:
        WireError: If they are others.
    """
    if not 1 <= update.num_examples <= profile.num_examples:
        raise WireError(
            f"reply: num-examples is {update.num_examples}, expected 1 to {profile.num_examples}, "
            f"which the client announced"
        )
    if update.statistics.num_local_test != profile.num_local_test:
        raise WireError(
            f"reply: num-local-test is {update.statistics.num_local_test}, expected the "
            f"{profile.num_local_test} that the client announced"
        )


def check_statistics(values: Mapping[str, Any]) -> None:
    """Checks what a client measured, by name; what it could not is left out.

    Raises:
        WireError: If a figure is out of its range, or goes without what it is a share of.
    """
    for name, value in values.items():
        check_number(name, value)
        if value > 1 and name in _SHARES:
            raise WireError(f"{wire_name(name)}: expected a share from 0 to 1, got {value}")
    number = values["num_local_test"]
    if any((name in values) != (number > 0) for name in _OF_HELD_OUT):
        came = [wire_name(name) for name in _OF_HELD_OUT if name in values]
        raise WireError(f"num-local-test: is {number}, and of the figures of as many samples came {came}")


def check_number(name: str, value: float) -> None:
    """Checks that a number is one that records hold.

    Raises:
        WireError: If it is not.
    """
    if not 0 <= value <= LARGEST_WHOLE:
        key = wire_name(name)
        raise WireError(f"{key}: expected a number from 0 to {float(LARGEST_WHOLE):g}, got {value!r:.40}")


def wire_name(name: str) -> str:
    """Returns how a field is called on the wire."""
    return name.replace("_", "-")
