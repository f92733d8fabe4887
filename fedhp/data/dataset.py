"""A data set, prepared once and memory-mapped."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.cache import cache_folder, key_of, prepared
from fedhp.data.config import DataConfig
from fedhp.data.sources import SOURCES, Arrays, Located, Source
from fedhp.seeds import generator

_SLICE = 2**20


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples for training and for the server's evaluation; all arrays are read-only memory maps.

    Attributes:
        train_images: Shape (N, C, H, W), uint8 or float32.
        train_labels: Shape (N,), int64.
        test_images: Shape (M, C, H, W), of the type of ``train_images``.
        test_labels: Shape (M,), int64.
        num_classes: Labels are 0 .. num_classes - 1.
        mean: What is taken from every value, with uint8 scaled to 0 .. 1: the mean of the whole training set.
        std: What the rest is divided by: its standard deviation.
        client_train: Each training row's owner, 0 .. owners - 1; None where rows have none.
        key: Changes with the files that it was prepared from and with the rows taken.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_images: NDArray[Any]
    test_labels: NDArray[np.int64]
    num_classes: int
    mean: float
    std: float
    client_train: NDArray[np.int64] | None
    key: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a sample."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a data set; the first time it is read, checked and written to the cache folder.

    Raises:
        DataError: If files are missing, damaged or hold what cannot be trained on.
        MissingExtraError: If the source needs a package that is not installed.
    """
    root = config.root or os.environ.get("FEDHP_DATA", "")
    return _opened(config.name, root, config.max_train, cache_folder())


@lru_cache(maxsize=8)
def _opened(name: str, root: str, max_train: int, cache: Path) -> Dataset:
    source = SOURCES[name]
    located = source.locate(root)
    identity: dict[str, Any] = {"source": located.identity, "files": stamps(located.files)}
    arrays = prepared("datasets", key_of(identity), lambda: _measured(located, source))
    if 0 < max_train < len(arrays["train_labels"]):
        # Taken from what is prepared: another number of rows must not read, or fetch, everything again.
        identity["max_train"] = max_train
        arrays = arrays | prepared("datasets", key_of(identity), partial(_limited, arrays, max_train))
    mean, std = map(float, arrays["normalisation"])
    return Dataset(
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"],
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"],
        num_classes=int(arrays["num_classes"][0]),
        mean=mean,
        std=std,
        client_train=arrays.get("client_train"),
        key=key_of(identity),
    )


def stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Returns what tells that files are the ones seen before: path, size and time of change."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def measure(images: NDArray[Any]) -> tuple[float, float]:
    """Returns the mean of all values and their standard deviation, with uint8 scaled to 0 .. 1.

    Normalised by them, the same images train alike as uint8 and as floats of any range. Where all values are
    equal, the deviation is 1.
    """
    values = images.reshape(-1)
    mean = values.mean(dtype=np.float64)
    # In slices: in double precision the whole would take eight times the memory of uint8 images.
    slices = (values[start : start + _SLICE] for start in range(0, len(values), _SLICE))
    variance = sum(float(np.square(part - mean).sum()) for part in slices) / len(values)
    scale = 255 if images.dtype == np.uint8 else 1
    return float(mean) / scale, math.sqrt(variance) / scale if values.min() < values.max() else 1.0


def _measured(located: Located, source: Source) -> Arrays:
    arrays = located.read()
    return {**arrays, "normalisation": np.array(source.normalisation or measure(arrays["train_images"]))}


def _limited(arrays: Arrays, max_train: int) -> Arrays:
    rows = np.sort(generator(0, "max_train").permutation(len(arrays["train_labels"]))[:max_train])
    names = ("train_images", "train_labels", "client_train")
    return {name: arrays[name][rows] for name in names if name in arrays}
