"""One party's rows of a data set, from which batches are gathered."""

import zlib
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhp.data.cache import cache_folder, key_of, prepared
from fedhp.data.checks import checked_images, checked_labels
from fedhp.data.config import DataConfig
from fedhp.data.dataset import Dataset, measure, open_dataset, stamps
from fedhp.data.files import read_npz
from fedhp.data.partition import partition_rows
from fedhp.errors import DataError
from fedhp.seeds import generator

# How much wider, and how much narrower, a device's values may spread than the server's. No single image of
# what ships spreads twice as widely; but a device that always sees about the same may be right.
_MOST_WIDER = 8
_MOST_NARROWER = 100
# Whole rows that are copied at once where only some of their entries are wanted.
_ROWS = 16


class Shard:
    """Rows of a data set. Nothing is copied before a batch is asked for.

    Attributes:
        input_shape: Channels, height and width of a sample.
        num_classes: Labels are 0 .. num_classes - 1.
        spread: The standard deviation of a device's own values, over that of the server's; 1 for parts of the
            server's data.
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
        mean: float,
        std: float,
        spread: float = 1.0,
    ) -> None:
        """Takes images (N, C, H, W), labels (N,) and the rows of both that belong to the shard."""
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
        self._mean, self._std = mean * scale, std * scale

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
        return self._part(~held_out), self._part(held_out)

    def _part(self, chosen: NDArray[np.bool_]) -> "Shard":
        part = copy(self)
        part._rows = self._rows[chosen]
        return part

    def label_counts(self) -> NDArray[np.int64]:
        """Returns how many samples have each label, shape (classes,)."""
        return np.bincount(self._labels[self._rows], minlength=self.num_classes)

    def classes(self) -> NDArray[np.int64]:
        """Returns the classes that the shard has samples of, in order."""
        return np.unique(self._labels[self._rows])

    def batch(
        self, indices: NDArray[np.intp], inputs: NDArray[np.intp] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gathers the samples at these positions within the shard.

        Args:
            indices: Positions from 0 to ``len(self) - 1``, shape (b,).
            inputs: The entries of each flattened sample to pick, shape (k,); None takes all.

        Returns:
            Normalised images, float32 of shape (b, C, H, W), or (b, k) where entries are picked, and
            labels, int64 of shape (b,).
        """
        rows = self._rows[indices]
        images = _take(self._images, rows) if inputs is None else _pick(self._images, rows, inputs)
        images = images.to(torch.float32)
        return images.sub_(self._mean).div_(self._std), _take(self._labels, rows)


def _take(array: NDArray[Any], rows: NDArray[np.intp]) -> torch.Tensor:
    """Gathers rows into a tensor of torch's own, so that its memory trackers see the bytes."""
    taken = _empty(array, (len(rows), *array.shape[1:]))
    # Rows are in range; with mode="raise", NumPy would gather into a hidden copy first.
    np.take(array, rows, axis=0, out=taken.numpy(), mode="clip")
    return taken


def _pick(array: NDArray[Any], rows: NDArray[np.intp], entries: NDArray[np.intp]) -> torch.Tensor:
    """Gathers entries of flattened rows, a few rows at a time, so that few whole rows are ever copied."""
    flat = array.reshape(len(array), -1)
    picked = _empty(array, (len(rows), len(entries)))
    for start in range(0, len(rows), _ROWS):
        some = slice(start, start + _ROWS)
        np.take(flat[rows[some]], entries, axis=1, out=picked.numpy()[some], mode="clip")
    return picked


def _empty(like: NDArray[Any], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=getattr(torch, like.dtype.name))


def client_shard(config: DataConfig, num_clients: int, seed: int, client: int) -> Shard:
    """Returns a simulated client's training rows, a function of the arguments and the data alone.

    Raises:
        DataError: If there is no such client, or the data cannot be opened or divided.
    """
    if not 0 <= client < num_clients:
        raise DataError(
            f"there is no client {client} among {num_clients}: partition ids go from 0 to "
            f"{num_clients - 1}; check the node's partition-id and fleet.num_clients"
        )
    return _training_rows(config, partition_rows(config, num_clients, seed)[client])


def local_parts(config: DataConfig, shard: Shard, seed: int, stream: int) -> tuple[Shard, Shard | None]:
    """Divides a device's samples into those that it trains on and those held out (``data.local_test``).

    Args:
        config: How much is held out.
        shard: All samples of the device.
        seed: The run's seed.
        stream: What the device's randomness hangs on; a simulated one's is its partition id.
    """
    return shard.hold_out(config.local_test, generator(seed, "local test", stream))


def train_shard(config: DataConfig) -> Shard:
    """Returns all training rows: those of a device that trains alone.

    Raises:
        DataError: If the data cannot be opened.
    """
    return _training_rows(config, np.arange(len(open_dataset(config).train_labels)))


def _training_rows(config: DataConfig, rows: NDArray[np.intp]) -> Shard:
    dataset = open_dataset(config)
    return _shard(dataset, dataset.train_images, dataset.train_labels, rows)


def _shard(
    dataset: Dataset, images: NDArray[Any], labels: NDArray[np.int64], rows: NDArray[np.intp]
) -> Shard:
    return Shard(images, labels, rows, num_classes=dataset.num_classes, mean=dataset.mean, std=dataset.std)


def test_shard(config: DataConfig) -> Shard:
    """Returns the held-out rows, on which the server evaluates.

    Raises:
        DataError: If the data cannot be opened.
    """
    dataset = open_dataset(config)
    labels = dataset.test_labels
    return _shard(dataset, dataset.test_images, labels, np.arange(len(labels)))


def device_shard(
    path: str,
    *,
    mean: float,
    std: float,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Shard:
    """Opens a real device's own data, an ``.npz`` file with ``x_train`` and ``y_train``.

    Args:
        path: The file.
        mean: The mean that the server normalises by, with uint8 scaled to 0 .. 1. Not the device's own: a
            device that sees only dark images would tell the model that they are of the usual brightness.
        std: The standard deviation that the server normalises by.
        input_shape: The (C, H, W) that the model takes; None accepts any.
        num_classes: The number of classes that the model tells apart; None takes the highest
            label's.

    Raises:
        DataError: If the file is missing, damaged, or does not fit the model or the server's scale.
    """
    if not Path(path).is_file():
        raise DataError(f"no file {path}; it should be an .npz file with x_train and y_train")
    arrays = _device_arrays(*stamps([Path(path)])[0], num_classes, cache_folder())
    images, labels = arrays["images"], arrays["labels"]
    if input_shape is not None and images.shape[1:] != tuple(input_shape):
        raise DataError(
            f"{path}: x_train holds samples of shape {images.shape[1:]} (channels, height, width), "
            f"and the model takes {tuple(input_shape)}; convert them, or choose the model for this "
            f"data"
        )
    return Shard(
        images,
        labels,
        np.arange(len(labels)),
        num_classes=num_classes or int(labels.max()) + 1,
        mean=mean,
        std=std,
        spread=_checked_spread(path, images, float(arrays["measured"][1]), std),
    )


def _checked_spread(path: str, images: NDArray[Any], own_std: float, std: float) -> float:
    """Returns how widely values spread beside the server's; refuses what must be on another scale."""
    if own_std == 1 and images.min() == images.max():  # measured as 1, since there is no deviation
        return 1.0
    if not 1 / _MOST_NARROWER < own_std / std < _MOST_WIDER:
        raise DataError(
            f"{path}: x_train is on another scale than the server's data: its standard deviation is "
            f"{own_std:.3g}, and the server's {std:.3g} (with uint8 scaled to 0 .. 1); bring the values "
            f"to the server's scale"
        )
    return own_std / std


@lru_cache(maxsize=2)
def _device_arrays(
    path: str, size: int, changed: int, num_classes: int | None, cache: Path
) -> dict[str, NDArray[Any]]:
    def prepare() -> dict[str, NDArray[Any]]:
        raw = read_npz(Path(path), ("x_train", "y_train"))
        images = checked_images(raw["x_train"], f"{path}: x_train")
        labels = checked_labels(raw["y_train"], len(images), num_classes, f"{path}: y_train")
        return {"images": images, "labels": labels, "measured": np.array(measure(images))}

    key = key_of({"device": [path, size, changed], "num_classes": num_classes})
    return prepared("devices", key, prepare)
