"""Reconciling many updates, beside reading the same numbers once from memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
import torch

from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.submodels import first, random_part
from fedhp.bench.isolation import isolated
from fedhp.model.architecture import Architecture
from fedhp.model.building import initial_state
from fedhp.model.options import ModelConfig
from fedhp.model.shrinking import at_level
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.training.statistics import STATISTICS, Statistics
from fedhp.training.update import Update

_WIDTHS = [920, 300]  # with 784 inputs and ten classes: 1,000,000 parameters within 0.2 %
_CLASSES = (1.0, 0.75, 0.5, 0.25)
_DISTINCT = 32  # updates that are really there, together many times the size of any cache
_MEBIBYTE = 2**20
_NOTHING = Statistics(**{name: column.kind() for name, column in STATISTICS.items() if not column.optional})

Parts = Callable[[Architecture], Iterator[Structure]]


def _complete(arch: Architecture) -> Iterator[Structure]:
    return cycle([arch.layout.full()])


def _classes(arch: Architecture) -> Iterator[Structure]:
    return cycle([first(arch.layout.widths, at_level(arch.layout, level)) for level in _CLASSES])


def _random(arch: Architecture) -> Iterator[Structure]:
    stream, half = np.random.default_rng(0), at_level(arch.layout, 0.5)
    while True:
        yield random_part(arch.layout.widths, half, stream)


KINDS: dict[str, Parts] = {
    "complete": _complete,
    "four nested widths": _classes,
    "each of its own": _random,
}


def run_reconcile(num_updates: int = 1000, repeats: int = 3) -> dict[str, Any]:
    """Measures reconciliation of a model of a million parameters, per kind of structures.

    Args:
        num_updates: Updates in a round.
        repeats: Rounds, of which the median counts, each beside a reading of the same numbers.

    Returns:
        One row per kind: ``seconds``, ``read_seconds`` (a NumPy sum of the same numbers), their ``ratio``,
        and the ``peak_mebibytes`` that the process takes beyond the updates, for all of them and for a tenth.
    """
    rows = []
    for kind in KINDS:
        timing = isolated(_timed, kind, num_updates, repeats)
        few, many = (isolated(_peak, kind, number) for number in (num_updates // 10, num_updates))
        rows.append(
            {
                "structures": kind,
                **timing,
                "few_mebibytes": few / _MEBIBYTE,
                "peak_mebibytes": many / _MEBIBYTE,
            }
        )
    return {"updates": num_updates, "rows": rows}


def _timed(kind: str, num_updates: int, repeats: int) -> dict[str, float]:
    torch.set_num_threads(1)  # as the server does
    arch, updates = _updates(kind)
    ours, read = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        _reconcile(arch, updates, num_updates)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        for update in islice(cycle(updates), num_updates):
            for weights in update.state.weights.values():
                weights.sum()
        read.append(time.perf_counter() - started)
    ratio = median(a / b for a, b in zip(ours, read, strict=True))
    return {"seconds": median(ours), "read_seconds": median(read), "ratio": ratio}


def _peak(kind: str, num_updates: int) -> int:
    import resource  # not on every platform, and only this command needs it

    arch, updates = _updates(kind)
    _reconcile(arch, updates[:1], 1)  # what the first one loads is no matter of their number
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _reconcile(arch, updates, num_updates)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def _updates(kind: str) -> tuple[Architecture, list[Update]]:
    arch = architecture(ModelConfig("mlp", _WIDTHS, 1, prune_inputs=False), (1, 28, 28), 10)
    whole = initial_state(arch, 0)
    parts = islice(KINDS[kind](arch), _DISTINCT)
    states = [whole.cut(arch.layout, part) for part in parts]
    return arch, [
        Update(number, state.structure, _copied(state), 50, _NOTHING) for number, state in enumerate(states)
    ]


def _copied(state: Any) -> Any:
    weights = {name: array.copy() for name, array in state.weights.items()}
    return type(state)(weights, state.structure, state.scores)


def _reconcile(arch: Architecture, updates: Sequence[Update], num_updates: int) -> None:
    reconciliation = Reconciliation(arch.layout, initial_state(arch, 1))
    for update in islice(cycle(updates), num_updates):
        reconciliation.add(update)
    reconciliation.mean()
