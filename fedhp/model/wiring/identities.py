"""A tensor's identities: for every entry, which channel it belongs to.

Entries of one channel are alike, so that a tensor's identities are held with one entry for every axis along
which they do not change: those of feature maps of shape ``(batch, channels, height, width)`` have the shape
``(1, channels, 1, 1)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# The identities along an axis.
Channels = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Value:
    """The identities of a tensor's entries.

    Attributes:
        shape: The tensor's shape.
        ids: The identities, of as many axes, each of the tensor's size or, where they do not change, of 1.
        batched: Whether it was computed of samples, which are its first axis.
        neutral: Whether its entries are alike wherever they are (zeros, noise), so that it joins anything.
    """

    shape: tuple[int, ...]
    ids: torch.Tensor
    batched: bool = True
    neutral: bool = False

    @classmethod
    def of(cls, ids: torch.Tensor, batched: bool) -> "Value":
        """Returns the value with these identities, one for every entry."""
        return cls(tuple(ids.shape), _shrunk(ids), batched)

    @classmethod
    def along(cls, channels: Channels, axis: int, shape: Sequence[int], batched: bool) -> "Value":
        """Returns the value whose identities are these along one axis."""
        sizes = [1] * len(shape)
        sizes[axis] = len(channels)
        return cls(tuple(shape), torch.from_numpy(channels).view(sizes), batched)

    @classmethod
    def alike(cls, identity: int, shape: Sequence[int], batched: bool, neutral: bool = False) -> "Value":
        """Returns the value whose entries all have one identity."""
        ids = torch.full((1,) * len(shape), identity, dtype=torch.int64)
        return cls(tuple(shape), ids, batched, neutral)

    @property
    def full(self) -> torch.Tensor:
        """One identity for every entry."""
        return self.ids.expand(self.shape)

    @cached_property
    def channels(self) -> Channels:
        """The identities as an array."""
        return self.ids.numpy()

    def changes(self, axis: int) -> bool:
        """Says whether the identities change along an axis."""
        return self.ids.shape[axis] > 1

    def aligned(self, num_axes: int) -> "Value":
        """Returns the value with axes of one entry in front, as torch broadcasts."""
        missing = (1,) * (num_axes - len(self.shape))
        return Value((*missing, *self.shape), self.ids.view((*missing, *self.ids.shape)), self.batched)


@dataclass(frozen=True, eq=False)
class CutValue:
    """What is left of a value once units are cut.

    Attributes:
        ids: The identities left; None where those of one axis depend on another, so that no cut along axes
            leaves them.
        sizes: The size of every axis, None where it is as it was.
    """

    ids: torch.Tensor | None
    sizes: tuple[int | None, ...]

    @classmethod
    def of(cls, value: Value, kept: NDArray[np.bool_]) -> "CutValue":
        """Returns what is left of a value, given of every identity whether it is kept."""
        mask = kept[value.channels]
        axes = range(mask.ndim)
        along = [np.array(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
        whole = mask[np.ix_(*along)].all()
        sizes = tuple(int(chosen.sum()) if chosen.size > 1 else None for chosen in along)
        return cls(torch.as_tensor(value.channels[np.ix_(*along)]) if whole else None, sizes)

    def fits(self, shape: Sequence[int], before: Sequence[int], batch: int) -> bool:
        """Says whether a tensor of this shape is what is left of one of another.

        Args:
            shape: Its shape.
            before: The whole one's.
            batch: The number of samples of the whole one's, which may be another now.
        """
        free = 1 if before and before[0] == batch else 0
        sizes = [was if size is None else size for size, was in zip(self.sizes, before, strict=True)]
        return len(shape) == len(sizes) and list(shape)[free:] == sizes[free:]


def _shrunk(ids: torch.Tensor) -> torch.Tensor:
    for axis in range(ids.dim()):
        first = ids.narrow(axis, 0, 1) if ids.shape[axis] else ids
        if ids.shape[axis] > 1 and (ids.stride(axis) == 0 or bool((ids == first).all())):
            ids = first
    return ids


def replaced(values: Any, tensors: dict[int, torch.Tensor]) -> Any:
    """Returns nested values with others in the place of some tensors, by the tensors' ``id``."""
    if isinstance(values, torch.Tensor):
        return tensors.get(id(values), values)
    if isinstance(values, dict):
        return {key: replaced(value, tensors) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)([replaced(value, tensors) for value in values])
    return values
