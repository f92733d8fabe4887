"""A training step in miniature: from it the memory model learns which tensors live when.

After every operation, the bytes alive are those of gradients, which follow from the layout, and those of all
else (activations, what operations keep for their backward pass, gradients that flow between them), which grow
linearly with the batch and with every group's units. So a few rehearsals with three or four units per group
and two or three samples tell the bytes of every structure and batch, and take next to no memory themselves.
This holds for any network whose activations are linear in its widths, which are all that `fedhp.tracing`
takes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.draws import drawing
from fedhp.measure import StorageWatch
from fedhp.modules import fill, lay_out, thin_before_convolutions
from fedhp.step import gradients
from fedhp.structure import Layout

Build = Callable[[Mapping[str, int]], nn.Module]
# Neither one sample nor one unit, which are special cases of some operations.
_BATCH, _UNITS = 2, 3


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Bytes alive at each moment of a step's forward and backward pass, as coefficients.

    For unit counts ``n``, parameters of ``p`` bytes and a batch of ``b``, moment ``m`` takes
    ``gradients[m] @ p + fixed[m] @ (1, n) + per_sample[m] @ (1, n) * b`` bytes beside what lives throughout
    the step: parameters, optimiser state, the mask of classes and the input batch.

    Attributes:
        gradients: Which parameters' gradients live, of shape ``(moments, trained parameters)``.
        fixed: Bytes whatever the batch, of shape ``(moments, 1 + groups)``.
        per_sample: Bytes per sample, of shape ``(moments, 1 + groups)``.
    """

    gradients: NDArray[np.int64]
    fixed: NDArray[np.int64]
    per_sample: NDArray[np.int64]


def rehearse(
    build: Build,
    layout: Layout,
    input_shape: Callable[[Mapping[str, int]], tuple[int, ...]],
    masked: bool = False,
) -> Rehearsal:
    """Rehearses a model's step.

    Args:
        build: Makes the module whose groups have the given unit counts.
        layout: Its wiring.
        input_shape: The shape of one sample that this module takes.
        masked: Whether the logits are masked.
    """

    def play(counts: Mapping[str, int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Returns which gradients live, and all else in bytes: whatever the batch, and per sample."""
        present, few = _play(build(counts), layout, (_BATCH, *input_shape(counts)), masked)
        _, more = _play(build(counts), layout, (_BATCH + 1, *input_shape(counts)), masked)
        return present, few - _BATCH * (more - few), more - few

    few = dict.fromkeys(layout.widths, _UNITS)
    present, fixed, per_sample = play(few)
    slopes = [play({**few, group: _UNITS + 1})[1:] for group in few]
    by_fixed = [more - fixed for more, _ in slopes]
    by_sample = [more - per_sample for _, more in slopes]
    sizes = np.array(list(few.values()), np.int64)
    parts = [present, _coefficients(fixed, by_fixed, sizes), _coefficients(per_sample, by_sample, sizes)]
    different = np.unique(np.hstack(parts), axis=0)
    ends = np.cumsum([part.shape[1] for part in parts[:-1]])
    return Rehearsal(*np.split(different, ends, axis=1))


def _coefficients(
    value: NDArray[np.int64], slopes: list[NDArray[np.int64]], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    slope = np.stack(slopes, axis=1)
    return np.column_stack([value - slope @ sizes, slope])


def _play(
    module: nn.Module, layout: Layout, shape: tuple[int, ...], masked: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs a step; returns, whenever a storage was added, which gradients live, and the bytes of all else."""
    module = module.train()
    fill(module)
    lay_out(module, layout)
    thin_before_convolutions(module, layout)
    images, labels = torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64)
    mask = torch.zeros(1)  # which does for any number of classes
    ledger = _Ledger([*module.parameters(), *module.buffers(), images, labels, mask])
    parameters = dict(module.named_parameters())
    with drawing(0, "cpu"), ledger:
        gradients(module, images, labels, mask if masked else None)
    owners = {
        ledger.entry(gradient): index
        for index, name in enumerate(layout.trained)
        if (gradient := parameters[name].grad) is not None
    }
    return ledger.account(owners, len(layout.trained))


class _Ledger(StorageWatch):
    """Writes down which storages live, whenever one was added."""

    def __init__(self, existing: list[torch.Tensor]) -> None:
        super().__init__()
        self._sizes: list[int] = []
        self._alive: set[int] = set()
        self._moments: list[frozenset[int]] = []
        for tensor in existing:
            self._see(tensor)
        self._num_existing = len(self._sizes)

    def account(
        self, owners: Mapping[int, int], num_owners: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns per moment the number of living storages of each owner, and the bytes of all others."""
        moments = self._moments[self._num_existing :]
        owned = np.zeros((len(moments), num_owners), np.int64)
        other = np.zeros(len(moments), np.int64)
        for row, moment in enumerate(moments):
            for entry in moment:
                if entry in owners:
                    owned[row, owners[entry]] += 1
                elif entry >= self._num_existing:
                    other[row] += self._sizes[entry]
        return owned, other

    def _entered(self, entry: int, num_bytes: int) -> None:
        self._sizes.append(num_bytes)
        self._alive.add(entry)
        self._moments.append(frozenset(self._alive))

    def _left(self, entry: int, num_bytes: int) -> None:
        self._alive.discard(entry)
