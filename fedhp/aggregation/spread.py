"""Clients' weights in the places of the global model, some rows of a parameter at a time."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure

# Of all clients' values, what is spread at a time at most.
_BYTES = 16 * 2**20
_FLOAT_BYTES = 4

Values = NDArray[np.float32]


def spread(
    layout: Layout,
    within: Structure,
    name: str,
    shape: tuple[int, ...],
    states: Sequence[ModelState],
    missing: Values | float = np.nan,
) -> Iterator[tuple[slice, Values]]:
    """Yields parts of a parameter's first axis, and of each the values of all clients.

    Args:
        layout: The model's wiring.
        within: The global structure, which contains the clients'.
        name: The parameter.
        shape: Its shape in the global model; that of a scalar, ``()``, counts as ``(1,)``.
        states: The clients' models.
        missing: What a client has that does not hold an entry; of the parameter's shape, or one value.

    Yields:
        The part, and float32 of shape ``(clients, rows of the part, ...)``.
    """
    shape = shape or (1,)
    compact = [
        (np.atleast_1d(state.weights[name]), dict(layout.indices(name, within, state.structure)))
        for state in states
    ]
    for some in _blocks(shape, len(states)):
        length = len(range(*some.indices(shape[0])))
        rows = np.empty((len(states), length, *shape[1:]), np.float32)
        rows[:] = missing[some] if isinstance(missing, np.ndarray) else missing
        for row, (weights, takes) in zip(rows, compact, strict=True):
            _put(row, weights, takes, some)
        yield some, rows


def _blocks(shape: tuple[int, ...], clients: int) -> Iterator[slice]:
    """Yields parts of a parameter's first axis whose values of all clients are held at a time."""
    per_row = max(1, clients) * int(np.prod(shape[1:], dtype=np.int64)) * _FLOAT_BYTES
    size = max(1, _BYTES // per_row)
    return (slice(start, start + size) for start in range(0, shape[0], size))


def _put(row: Values, weights: Values, places: Mapping[int, NDArray[np.intp]], some: slice) -> None:
    """Puts a client's compact weights where they stand in some rows of the parameter."""
    if 0 in places:
        first = places[0]
        chosen = (first >= some.start) & (first < some.stop)
        weights, first = weights[chosen], first[chosen] - some.start
    else:
        weights, first = weights[some], np.arange(len(row))
    others = [
        places[axis] if axis in places else np.arange(size) for axis, size in enumerate(row.shape[1:], 1)
    ]
    row[np.ix_(first, *others)] = weights
