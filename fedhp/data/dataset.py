"""A data set, prepared once and memory-mapped."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.cache import cache_folder, key_of, prepared
from fedhp.data.config import DataConfig
from fedhp.data.sources import SOURCES, Arrays, Located
from fedhp.seeds import generator


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples for training and for the server's evaluation; all arrays are read-only memory maps.

    Attributes:
        train_images: Shape (N, C, H, W), uint8 or float32.
        train_labels: Shape (N,), int64.
        test_images: Shape (M, C, H, W), of the type of ``train_images``.
        test_labels: Shape (M,), int64.
        num_classes: Labels are 0 .. num_classes - 1.
        mean: Mean of the values, with uint8 scaled to 0 .. 1.
        std: Their standard deviation.
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
    key = key_of({"source": located.identity, "files": stamps(located.files), "max_train": max_train})
    arrays = prepared("datasets", key, lambda: _limited(located, max_train))
    mean, std = source.normalisation(arrays["train_images"].dtype)
    return Dataset(
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"],
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"],
        num_classes=int(arrays["num_classes"][0]),
        mean=mean,
        std=std,
        client_train=arrays.get("client_train"),
        key=key,
    )


def stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Returns what tells that files are the ones seen before: path, size and time of change."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _limited(located: Located, max_train: int) -> Arrays:
    arrays = dict(located.read())
    num_rows = len(arrays["train_labels"])
    if 0 < max_train < num_rows:
        rows = np.sort(generator(0, "max_train").permutation(num_rows)[:max_train])
        for name in ("train_images", "train_labels", "client_train"):
            if name in arrays:
                arrays[name] = arrays[name][rows]
    return arrays
