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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.costs.coefficients import Rehearsal, Tap
from fedhp.costs.forms import Counts, forms_by_size, telling_counts
from fedhp.costs.live_tensors import StorageWatch
from fedhp.costs.memory import NO_EXTRAS, Extras, MemoryModel
from fedhp.errors import DataError, ScenarioError
from fedhp.files.cache import prepared
from fedhp.model.architecture import INPUTS, Architecture, Build
from fedhp.model.draws import drawing
from fedhp.model.gradients import gradients
from fedhp.model.layout import Layout
from fedhp.model.modules import counter_bytes, fill, lay_out, thin_before_convolutions
from fedhp.model.noise import NoiseScale, head_of
from fedhp.pruning.evidence import Taps
from fedhp.threads import torch_threads

InputShape = Callable[[Counts], tuple[int, ...]]
Told = Mapping[str, NDArray[np.int64]]
# Neither one sample nor one unit, which are special cases of some operations.
_BATCH, _UNITS = 2, 3
# Steps that take less are not worth a file, and those that take more worth a line.
_SHORT_SECONDS, _LONG_SECONDS = 0.2, 1.0
# To be raised when the meaning of what is kept changes.
_FORMAT = 2
_SEAL = "seal"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What there is to a step beside the network's own.

    Attributes:
        masked: Whether the logits are masked.
        noisy: Whether the gradient-noise scale is looked at.
        tapped: Whether activations are looked at where layers take them in.
    """

    masked: bool = False
    noisy: bool = False
    tapped: bool = False


PLAIN = Step()


def memory_model(
    arch: Architecture, state_slots: int, raw_itemsize: int, extras: Extras = NO_EXTRAS
) -> MemoryModel:
    """Returns a model's memory model.

    Args:
        arch: The model.
        state_slots: Tensors that the optimiser keeps per parameter; those of `extras` come on top.
        raw_itemsize: Bytes per scalar of the stored data.
        extras: What else a training holds.
    """
    size = math.prod(arch.input_shape)
    inputs = INPUTS if INPUTS in arch.layout.widths else None
    told = rehearsed(arch, Step(extras.masked, extras.noisy, extras.scratch is not None))
    num_masked = arch.num_classes if extras.masked else 0
    slots = state_slots + extras.slots
    return MemoryModel(arch.layout, told, size, raw_itemsize, slots, inputs, num_masked, extras)


@lru_cache(maxsize=16)  # a process holds a handful of architectures
def rehearsed(arch: Architecture, step: Step = PLAIN) -> Rehearsal:
    """Returns what such a step takes of any structure and batch of a model.

    Raises:
        ScenarioError: If the network cannot take a step with fewer units.
    """
    try:
        return rehearse(arch.build, arch.layout, arch.taken_shape, step)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ScenarioError(f"the network cannot take a step once units are cut: {reason}") from None


def rehearse(build: Build, layout: Layout, input_shape: InputShape, step: Step = PLAIN) -> Rehearsal:
    """Rehearses a model's step.

    Args:
        build: Makes the module whose groups have the given unit counts.
        layout: Its wiring.
        input_shape: The shape of one sample that this module takes.
        step: What else there is to the step.
    """

    def play(counts: Counts, batch: int = _BATCH) -> _Play:
        return _play(build(counts), layout, counts, (batch, *input_shape(counts)), step)

    telling, began = telling_counts(layout), time.perf_counter()
    first = play(telling[0])
    seconds = time.perf_counter() - began

    def tell() -> Told:
        if seconds > _LONG_SECONDS:
            _logger.info("rehearsing the network's step, which takes %.0f s, once", 3 * seconds)
        # What does, does so from nothing; gradients, which count as nothing, never do.
        grows = (play(telling[0], _BATCH + 1).sizes != first.sizes) & (first.sizes > 0)
        sizes = np.column_stack([first.sizes, *(play(counts).sizes for counts in telling[1:])])
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


def _forms_by_group(layout: Layout, play: Callable[[Counts], "_Play"]) -> NDArray[np.int64]:
    """Returns every storage's bytes as coefficients of ``(1, units)``, from one step more per group."""
    few = dict.fromkeys(layout.widths, _UNITS)
    sizes = play(few).sizes
    slopes = np.stack([play({**few, group: _UNITS + 1}).sizes - sizes for group in few], axis=1)
    return np.column_stack([sizes - slopes.sum(axis=1) * _UNITS, slopes])


@dataclass(frozen=True, eq=False)
class _Play:
    """What one run of a step in miniature has made, storage by storage, in the order of their making.

    Attributes:
        sizes: The bytes of each; 0 where it is a parameter's gradient.
        ends: How many had been made when it was freed.
        owned: Whether it is the gradient of each trained parameter, or a part of it from one of several uses,
            of shape ``(storages, parameters)``.
        counters: As in `Rehearsal`.
        operations: The operations that ran, by name.
        taps: Each look at activations, with the last storage made before it.
    """

    sizes: NDArray[np.int64]
    ends: NDArray[np.intp]
    owned: NDArray[np.int64]
    counters: int
    operations: Sequence[str]
    taps: Sequence[tuple[int, Tap]]

    def digest(self, layout: Layout, step: Step) -> str:
        """Returns a fingerprint of the network: its wiring, and all that it did in this step, in order."""
        text = hashlib.blake2b(repr((_FORMAT, torch.__version__, layout.widths, layout.axes, step)).encode())
        for told in (self.operations, self.taps, self.sizes.tolist(), self.ends.tolist()):
            text.update(repr(told).encode())
        return text.hexdigest()[:32]

    def alive(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums the storages' values, one row each, over those alive whenever one had been made."""
        changes = np.zeros((len(values) + 1, values.shape[1]), np.int64)
        changes[:-1] += values
        np.subtract.at(changes, self.ends, values)
        return changes.cumsum(axis=0)[:-1]


def _play(module: nn.Module, layout: Layout, counts: Counts, shape: tuple[int, ...], step: Step) -> _Play:
    module = module.train()
    fill(module)
    lay_out(module, layout)
    thin_before_convolutions(module, layout)
    images, labels = torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64)
    mask = torch.zeros(1)  # which does for any number of classes
    ledger = _Ledger([*module.parameters(), *module.buffers(), images, labels, mask])
    if step.noisy:
        NoiseScale(module.get_submodule(head_of(layout)))
    if step.tapped:
        Taps(module, layout, counts, ledger.look)
    with torch_threads(1), drawing(0, "cpu"), ledger:
        gradients(module, images, labels, mask if step.masked else None)
    parameters = dict(module.named_parameters())
    own = [parameters[name].grad for name in layout.trained]
    return ledger.play(own, [_is_matrix(layout, name) for name in layout.trained], counter_bytes(module))


def _is_matrix(layout: Layout, name: str) -> bool:
    """Says whether a parameter grows with two groups at once, or twice with one."""
    return sum(any(run.group is not None for run in runs) for runs in layout.runs(name)) > 1


class _Ledger(StorageWatch):
    """Writes down which storages are made and freed, and when."""

    def __init__(self, existing: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._sizes: list[int] = []
        self._ends: dict[int, int] = {}
        self._operations: list[str] = []
        self._taps: list[tuple[int, Tap]] = []
        self._shapes: list[tuple[int, ...]] = []
        for tensor in existing:
            self._see(tensor)
        self._num_existing = len(self._sizes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Notes the operation, and does as any watch does."""
        self._operations.append(str(func))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _see(self, tensor: torch.Tensor) -> None:
        super()._see(tensor)
        if len(self._shapes) < len(self._sizes):
            self._shapes.append(tuple(tensor.shape))

    def look(self, group: str, units: torch.Tensor) -> None:
        """Notes a look at activations, of shape ``(batch, units, entries)``."""
        self._taps.append((len(self._sizes) - 1 - self._num_existing, Tap(group, units.shape[2])))

    def play(
        self, of_parameters: Sequence[torch.Tensor | None], matrices: Sequence[bool], counters: int
    ) -> _Play:
        """Returns what was made since the beginning, given the trained parameters' gradients."""
        first, number = self._num_existing, len(self._sizes)
        sizes = np.array(self._sizes[first:], np.int64)
        ends = np.array([self._ends.get(entry, number) - first for entry in range(first, number)], np.intp)
        owned = np.zeros((len(sizes), len(of_parameters)), np.int64)
        for place, gradient in enumerate(of_parameters):
            if gradient is not None:
                owned[self.entry(gradient) - first, place] = 1
        for place, gradient in enumerate(of_parameters):
            if gradient is not None and matrices[place]:
                self._own_parts(owned, place, tuple(gradient.shape))
        sizes[owned.any(axis=1)] = 0
        return _Play(sizes, ends, owned, counters, self._operations, self._taps)

    def _own_parts(self, owned: NDArray[np.int64], place: int, shape: tuple[int, ...]) -> None:
        """Adds what is summed to a gradient where a layer is used several times: all that has its shape.

        Samples are fewer here than units, so that no activation has it.
        """
        for entry, own in enumerate(self._shapes[self._num_existing :]):
            if own == shape and not owned[entry].any():
                owned[entry, place] = 1

    def _entered(self, entry: int, num_bytes: int) -> None:
        self._sizes.append(num_bytes)

    def _left(self, entry: int, num_bytes: int) -> None:
        self._ends[entry] = len(self._sizes)
