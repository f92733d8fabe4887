"""One party's rows of a data set, from which batches are gathered."""

import math
import zlib
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

# Makes what a batch is gathered into: an array, or a tensor on the CPU.
Empty = Callable[[tuple[int, ...], DTypeLike], Any]

# Whole rows that a device copies at once where only some of their entries are wanted.
_ROWS = 16


def tensor(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Makes an empty tensor in memory of torch's own, so that its memory trackers see the bytes."""
    import torch

    return torch.empty(shape, dtype=getattr(torch, np.dtype(dtype).name))


class Shard:
    """Rows of a data set. Nothing is copied before a batch is asked for.

    Attributes:
        input_shape: Channels, height and width of a sample.
        num_classes: Labels are 0 .. num_classes - 1.
        spread: The standard deviation of a device's own values, over that of the server's, in the feature or
            channel where the two differ most; 1 for parts of the server's data.
        raw_itemsize: Bytes per stored value, 1 (uint8) or 4 (float32): a batch is gathered as it is
            stored and then converted, and what it takes in between counts.
    """

    def __init__(
        self,
        images: NDArray[Any],
        labels: NDArray[np.int64],
        rows: NDArray[np.intp],
        *,
        num_classes: int,
        mean: ArrayLike = 0.0,
        std: ArrayLike = 1.0,
        spread: float = 1.0,
    ) -> None:
        """Takes images (N, C, H, W), labels (N,) and the rows of both that belong to the shard.

        Mean and deviation, with uint8 scaled to 0 .. 1, are one for all values or one per channel.
        """
        assert len(images) == len(labels)
        assert 0 <= rows.min() <= rows.max() < len(images)
        self._images = images
        self._labels = labels
        self._rows = rows
        _, channels, height, width = images.shape
        self.input_shape: tuple[int, int, int] = (channels, height, width)
        self.num_classes = num_classes
        self.spread = spread
        self.raw_itemsize: int = images.dtype.itemsize
        scale = 255 if images.dtype == np.uint8 else 1
        means, stds = (np.asarray(numbers, np.float64).ravel() * scale for numbers in (mean, std))
        assert len(means) == len(stds)
        assert len(means) in (1, channels)
        self._scales = list(zip(means.tolist(), stds.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> int:
        """Returns a number that names the shard by its labels: the same whenever the data is opened."""
        return zlib.crc32(self._labels[self._rows].tobytes())

    def hold_out(self, share: float, stream: np.random.Generator) -> tuple["Shard", "Shard | None"]:
        """Divides the shard into samples to train on, at least one, and others held out.

        Args:
            share: Share of the samples to hold out, from 0 to below 1; rounded down to whole samples.
            stream: Draws which ones.

        Returns:
            Both parts, in the order of the shard; None in place of held-out samples where there are none.
        """
        num_held_out = int(share * len(self))
        if not num_held_out:
            return self, None
        held_out = np.zeros(len(self), bool)
        held_out[stream.permutation(len(self))[:num_held_out]] = True
        return self.part(np.flatnonzero(~held_out)), self.part(np.flatnonzero(held_out))

    def part(self, indices: NDArray[np.intp]) -> "Shard":
        """Returns the samples at these positions within the shard."""
        part = copy(self)
        part._rows = self._rows[indices]
        return part

    def label_counts(self) -> NDArray[np.int64]:
        """Returns how many samples have each label, shape (classes,)."""
        return np.bincount(self._labels[self._rows], minlength=self.num_classes)

    def classes(self) -> NDArray[np.int64]:
        """Returns the classes that the shard has samples of, in order."""
        return np.unique(self._labels[self._rows])

    def batch(
        self,
        indices: NDArray[np.intp],
        inputs: NDArray[np.intp] | None = None,
        whole: bool = False,
        empty: Empty = tensor,
    ) -> tuple[Any, Any]:
        """Gathers the samples at these positions within the shard.

        Args:
            indices: Positions from 0 to ``len(self) - 1``, shape (b,).
            inputs: The entries of each flattened sample to pick, shape (k,); None takes all.
            whole: Whether there is room for all samples as they are stored, of which entries are picked.
            empty: Makes what they are gathered into.

        Returns:
            Normalised images, float32 of shape (b, C, H, W), or (b, k) where entries are picked, and
            labels, int64 of shape (b,).
        """
        return self._gathered(self._rows[indices], [inputs], len(indices) if whole else _ROWS, empty)

    def reads_with(self, other: "Shard") -> bool:
        """Says whether another shard is of the same data set, and scaled alike."""
        return self._images is other._images and self._scales == other._scales

    def _gathered(
        self, rows: NDArray[np.intp], inputs: Sequence[NDArray[np.intp] | None], at_once: int, empty: Empty
    ) -> tuple[Any, Any]:
        """Gathers rows of the data set, in as many equal parts as entries are picked of each."""
        first = inputs[0]
        if first is None:
            images = _take(self._images, rows, empty)
        elif len(inputs) == 1:
            images = _pick(self._images, rows, first, at_once, empty)
        else:
            each = np.stack([own for own in inputs if own is not None])
            images = _pick_each(self._images, rows, each, empty)
        images = _floats(images, empty)
        self._scale(np.asarray(images), first)
        return images, _take(self._labels, rows, empty)

    def _scale(self, images: NDArray[Any], inputs: NDArray[np.intp] | None) -> None:
        """Normalises in place, all alike or channel by channel: vectors would take memory."""
        parts = [images] if len(self._scales) == 1 else _channels(images, inputs, self.input_shape)
        for part, (mean, std) in zip(parts, self._scales, strict=True):
            np.subtract(part, mean, out=part)
            np.divide(part, std, out=part)


def together(
    shards: Sequence[Shard],
    indices: Sequence[NDArray[np.intp]],
    inputs: Sequence[NDArray[np.intp] | None],
    empty: Empty = tensor,
) -> tuple[Any, Any]:
    """Gathers as many samples from each of several shards, in one read where they are of one data set.

    Args:
        shards: The shards.
        indices: Positions within each, all of shape (b,).
        inputs: As `Shard.batch` takes them, for each shard; all of one shape.
        empty: Makes what they are gathered into.

    Returns:
        What `Shard.batch` returns, with an axis for the shards first.
    """
    first, alike = shards[0], all(own is inputs[0] for own in inputs)
    if len(shards) > 1 and all(map(first.reads_with, shards)) and (alike or len(first._scales) == 1):
        rows = np.concatenate([shard._rows[some] for shard, some in zip(shards, indices, strict=True)])
        images, labels = first._gathered(rows, inputs[:1] if alike else inputs, len(rows), empty)
    else:
        taken = zip(shards, indices, inputs, strict=True)
        parts = [shard.batch(some, own, empty=empty) for shard, some, own in taken]
        images, labels = (
            parts[0] if len(parts) == 1 else (_joined(own, empty) for own in zip(*parts, strict=True))
        )
    shape = len(shards), len(indices[0])
    return images.reshape(*shape, *images.shape[1:]), labels.reshape(shape)


def _channels(
    images: NDArray[Any], inputs: NDArray[np.intp] | None, input_shape: tuple[int, int, int]
) -> list[NDArray[Any]]:
    """Views the channels of samples, or of the entries that were picked of them."""
    if inputs is None:
        return list(images.swapaxes(0, 1))
    channels, height, width = input_shape
    ends = np.searchsorted(inputs, height * width * np.arange(1, channels))
    return np.split(images, ends, axis=1)


def _joined(parts: Sequence[Any], empty: Empty) -> Any:
    views = [np.asarray(part) for part in parts]
    whole = empty((sum(map(len, views)), *views[0].shape[1:]), views[0].dtype)
    np.concatenate(views, out=np.asarray(whole))
    return whole


def _floats(images: Any, empty: Empty) -> Any:
    """Returns values as float32: a copy of bytes, others as they are."""
    raw = np.asarray(images)
    if raw.dtype == np.float32:
        return images
    floats = empty(raw.shape, np.float32)
    np.copyto(np.asarray(floats), raw)
    return floats


def _take(array: NDArray[Any], rows: NDArray[np.intp], empty: Empty) -> Any:
    taken = empty((len(rows), *array.shape[1:]), array.dtype)
    # Rows are in range; with mode="raise", NumPy would gather into a hidden copy first.
    np.take(array, rows, axis=0, out=np.asarray(taken), mode="clip")
    return taken


def _pick(
    array: NDArray[Any], rows: NDArray[np.intp], entries: NDArray[np.intp], at_once: int, empty: Empty
) -> Any:
    """Gathers entries of flattened rows, some rows at a time: so many whole ones are ever copied."""
    flat = array.reshape(len(array), -1)
    picked = empty((len(rows), len(entries)), array.dtype)
    view = np.asarray(picked)
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        np.take(flat[rows[some]], entries, axis=1, out=view[some], mode="clip")
    return picked


def _pick_each(array: NDArray[Any], rows: NDArray[np.intp], entries: NDArray[np.intp], empty: Empty) -> Any:
    """Gathers entries of flattened rows, of each equal part of them others: of shape ``(parts, entries)``."""
    parts, number = entries.shape
    starts = rows.reshape(parts, -1, 1) * math.prod(array.shape[1:])
    picked = empty((len(rows), number), array.dtype)
    out = np.asarray(picked).reshape(parts, -1, number)
    np.take(array.reshape(-1), starts + entries[:, None], out=out, mode="clip")
    return picked
