"""A training step in miniature: from it the memory model learns which tensors live when.

After every operation, the bytes alive are those of gradients, which follow from the layout, and those of all
else (activations, what operations keep for their backward pass, gradients that flow between them), which grow
linearly with the batch and with every group's units. So a few rehearsals with few units per group and two or
three samples tell the bytes of every structure and batch (`fedhp.costs.forms`), and take next to no memory
themselves. This holds for any network whose activations are linear in its widths, which are all that
`fedhp.model.wiring.tracing` takes.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.coefficients import Rehearsal
from fedhp.costs.forms import Counts, forms_by_size, telling_counts
from fedhp.costs.ledger import PLAIN, Played, Step
from fedhp.costs.memory import NO_EXTRAS, Extras, MemoryModel
from fedhp.errors import DataError, ScenarioError
from fedhp.files.cache import prepared
from fedhp.model.architecture import INPUTS, Architecture
from fedhp.model.layout import Layout

Told = Mapping[str, NDArray[np.int64]]
# Neither one sample nor one unit, which are special cases of some operations.
_BATCH, _UNITS = 2, 3
# Steps that take less are not worth a file, and those that take more worth a line.
_SHORT_SECONDS, _LONG_SECONDS = 0.2, 1.0
_SEAL = "seal"
# Who takes a step in miniature, by what computes.
_PLAYING = {"torch": "fedhp.costs.playing_tensors", "numpy": "fedhp.costs.playing_arrays"}

_logger = logging.getLogger(__name__)


# Takes a step with so many units and samples.
Play = Callable[[Counts, int], Played]


def memory_model(
    arch: Architecture,
    state_slots: int,
    raw_itemsize: int,
    extras: Extras = NO_EXTRAS,
    runtime: str = "torch",
) -> MemoryModel:
    """Returns a model's memory model.

    Args:
        arch: The model.
        state_slots: Tensors that the optimiser keeps per parameter; those of `extras` come on top.
        raw_itemsize: Bytes per scalar of the stored data.
        extras: What else a training holds.
        runtime: What it computes with: ``torch`` or ``numpy``.
    """
    size = math.prod(arch.input_shape)
    inputs = INPUTS if INPUTS in arch.layout.widths else None
    step = Step(extras.masked, extras.smooth, extras.noised, extras.noisy, extras.scratch is not None)
    told = rehearsed(arch, step, runtime)
    num_masked = arch.num_classes if extras.masked else 0
    slots = state_slots + extras.slots
    return MemoryModel(arch.layout, told, size, raw_itemsize, slots, inputs, num_masked, extras)


@lru_cache(maxsize=16)  # a process holds a handful of architectures
def rehearsed(arch: Architecture, step: Step = PLAIN, runtime: str = "torch") -> Rehearsal:
    """Returns what such a step takes of any structure and batch of a model.

    Raises:
        ScenarioError: If the network cannot take a step with fewer units.
    """
    try:
        return rehearse(partial(import_module(_PLAYING[runtime]).play, arch, step), arch.layout, step)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ScenarioError(f"the network cannot take a step once units are cut: {reason}") from None


def rehearse(play: Play, layout: Layout, step: Step = PLAIN) -> Rehearsal:
    """Rehearses a model's step.

    Args:
        play: Takes a step.
        layout: The model's wiring.
        step: What else there is to the step.
    """
    telling, began = telling_counts(layout), time.perf_counter()
    first = play(telling[0], _BATCH)
    seconds = time.perf_counter() - began

    def tell() -> Told:
        if seconds > _LONG_SECONDS:
            _logger.info("rehearsing the network's step, which takes %.0f s, once", 3 * seconds)
        # What does, does so from nothing; gradients, which count as nothing, never do.
        grows = (play(telling[0], _BATCH + 1).sizes != first.sizes) & (first.sizes > 0)
        sizes = np.column_stack([first.sizes, *(play(counts, _BATCH).sizes for counts in telling[1:])])
        forms = forms_by_size(layout, telling, sizes)
        forms = _forms_by_group(layout, play) if forms is None else forms
        return {"grows": grows.astype(np.int64), "forms": forms}

    told = tell() if seconds < _SHORT_SECONDS else _remembered(first.digest(layout, step), tell)
    grows, forms = told["grows"] > 0, told["forms"]
    fixed = first.alive(np.where(grows[:, None], 0, forms))
    per_sample = first.alive(np.where(grows[:, None], forms // _BATCH, 0))
    present = first.alive(first.owned)
    different = np.unique(np.hstack([present, fixed, per_sample]), axis=0)
    ends = np.cumsum([present.shape[1], fixed.shape[1]])
    at_taps = np.array([moment for moment, _ in first.taps], np.intp)
    taps = tuple(tap for _, tap in first.taps)
    living, always, by_sample = np.split(different, ends, axis=1)
    at = [fixed[at_taps], per_sample[at_taps]]
    return Rehearsal(living, always, by_sample, first.counters, taps, *at)


def _remembered(digest: str, tell: Callable[[], Told]) -> Told:
    """Returns what other processes have told already of a network whose first step was the same.

    Only as it was told: what is damaged, or another network's, does not bear its seal.
    """

    def sealed() -> Told:
        told = tell()
        return {**told, _SEAL: _seal(digest, told)}

    try:
        kept = prepared("rehearsals", digest, sealed)
    except DataError:  # no place to write, or nothing to rely on there: then it is told once more
        return tell()
    seal = kept.pop(_SEAL, np.empty(0))
    return kept if np.array_equal(_seal(digest, kept), seal) else tell()


def _seal(digest: str, told: Told) -> NDArray[np.int64]:
    text = hashlib.blake2b(digest.encode())
    for name, array in sorted(told.items()):
        text.update(repr((name, array.dtype.str, array.shape)).encode() + array.tobytes())
    return np.frombuffer(text.digest(), np.int64)


def _forms_by_group(layout: Layout, play: Play) -> NDArray[np.int64]:
    """Returns every storage's bytes as coefficients of ``(1, units)``, from one step more per group."""
    few = dict.fromkeys(layout.widths, _UNITS)
    sizes = play(few, _BATCH).sizes
    slopes = np.stack([play({**few, group: _UNITS + 1}, _BATCH).sizes - sizes for group in few], axis=1)
    return np.column_stack([sizes - slopes.sum(axis=1) * _UNITS, slopes])
