"""A data set, prepared once and memory-mapped."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.config import DataConfig
from fedhp.data.normalisation import Normalisation, measure, middle_spread, widest_step
from fedhp.data.sources import SOURCES, Arrays, Source
from fedhp.files.cache import cache_folder, key_of, prepared
from fedhp.seeds import generator


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples for training and for the server's evaluation; all arrays are read-only memory maps.

    Attributes:
        train_images: Shape (N, C, H, W); uint8, or float32 where they are normalised already.
        train_labels: Shape (N,), int64.
        test_images: Shape (M, C, H, W), of the type of ``train_images``.
        test_labels: Shape (M,), int64.
        num_classes: Labels are 0 .. num_classes - 1.
        label_names: The classes' names, in order; none where they have numbers only.
        normalisation: Mean and deviation of the whole training set, per feature or per channel.
        layout: How samples were read, one of `LAYOUTS`.
        step: The widest step between numbers as they are stored, in deviations: beyond a few percent, samples
            were rounded until little tells them apart.
        test_spread: The deviation of the held-out values over that of the training values, in the middle
            feature or channel.
        client_train: Each training row's owner, 0 .. owners - 1; None where rows have none.
        owner_names: The owners' names or numbers in the data, in order; none where rows have none.
        key: Changes with the files that it was prepared from and with the rows taken.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_images: NDArray[Any]
    test_labels: NDArray[np.int64]
    num_classes: int
    label_names: tuple[str, ...]
    normalisation: Normalisation
    layout: str
    step: float
    test_spread: float
    client_train: NDArray[np.int64] | None
    owner_names: tuple[str, ...]
    key: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a sample."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    def fingerprint(self) -> int:
        """Returns a number that changes with all that training hangs on, wherever it is read from.

        Any sample, label, name or owner, layout and normalisation; of that what another processor's rounding
        leaves as it is.
        """
        mean, std = (
            [f"{one:.6g}" for one in each] for each in (self.normalisation.mean, self.normalisation.std)
        )
        names = self.label_names, self.owner_names, self.layout, self.normalisation.axis
        number = zlib.crc32(repr((*names, mean, std)).encode("utf-8", "surrogatepass"))
        arrays = self.train_images, self.train_labels, self.test_images, self.test_labels, self.client_train
        for array in arrays:
            if array is not None:
                number = zlib.crc32(np.ascontiguousarray(array).data, number)
        return number

    @property
    def mean(self) -> NDArray[np.float64]:
        """What is taken from a raw sample, with uint8 scaled to 0 .. 1; broadcasts over its shape."""
        return self.normalisation.shaped(self.normalisation.mean)

    @property
    def std(self) -> NDArray[np.float64]:
        """What the rest is divided by; broadcasts over a sample's shape."""
        return self.normalisation.shaped(self.normalisation.std)


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a data set; the first time, and when its files change, it is read, checked and cached on disk.

    Raises:
        DataError: If files are missing, damaged or hold what cannot be trained on.
        MissingExtraError: If the source needs a package that is not installed.
    """
    dataset, files = _opened(*_asked(config))
    if stamps([Path(name) for name, *_ in files if os.path.isfile(name)]) != files:
        _opened.cache_clear()
        dataset, _ = _opened(*_asked(config))
    return dataset


def held_dataset(config: DataConfig) -> Dataset:
    """Opens a data set within a run: a file that changes meanwhile is for the next `open_dataset`.

    Raises:
        DataError: If files are missing, damaged or hold what cannot be trained on.
        MissingExtraError: If the source needs a package that is not installed.
    """
    return _opened(*_asked(config))[0]


def raw_arrays(config: DataConfig) -> Arrays:
    """Reads a data set anew, as a device has its samples: not normalised; of training rows those taken.

    Returns:
        See `Located.read`.

    Raises:
        DataError: If files are missing, damaged or hold what cannot be trained on.
        MissingExtraError: If the source needs a package that is not installed.
    """
    name, root, layout, max_train, _ = _asked(config)
    arrays = SOURCES[name].locate(root).read(layout)
    taken = 0 < max_train < len(arrays["train_labels"])
    return {**arrays, **_limited(arrays, max_train)} if taken else arrays


def _asked(config: DataConfig) -> tuple[str, str, str, int, Path]:
    root = config.root or os.environ.get("FEDHP_DATA", "")
    return config.name, root, config.layout, config.max_train, cache_folder()


@lru_cache(maxsize=8)
def _opened(
    name: str, root: str, layout: str, max_train: int, cache: Path
) -> tuple[Dataset, list[tuple[str, int, int]]]:
    source = SOURCES[name]
    located = source.locate(root)
    files = stamps(located.files)
    identity: dict[str, Any] = {
        "source": located.identity,
        "files": files,
        "layout": layout,
    }
    arrays = prepared(
        "datasets", key_of(identity), lambda: _normalised(located.read(layout), source, located.said)
    )
    if 0 < max_train < len(arrays["train_labels"]):
        # Taken from what is prepared: another number of rows must not read, or fetch, everything again.
        identity["max_train"] = max_train
        arrays = arrays | prepared("datasets", key_of(identity), partial(_limited, arrays, max_train))
    dataset = Dataset(
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"],
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"],
        num_classes=int(arrays["num_classes"][0]),
        label_names=source.label_names or tuple(arrays["label_names"].tolist()),
        normalisation=Normalisation(
            tuple(arrays["mean"].tolist()), tuple(arrays["std"].tolist()), int(arrays["axis"][0])
        ),
        layout=layout,
        step=float(arrays["step"][0]),
        test_spread=float(arrays["test_spread"][0]),
        client_train=arrays.get("client_train"),
        owner_names=tuple(arrays["owner_names"].tolist()) if "owner_names" in arrays else (),
        key=key_of(identity),
    )
    return dataset, files


def stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Returns what tells that files are the ones seen before: path, size and time of change."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _normalised(arrays: Arrays, source: Source, place: str) -> Arrays:
    """Returns what is kept of a data set: its normalisation too, and normalised all that is not bytes."""
    known, images = source.normalisation, arrays["train_images"]
    if known is not None:
        mean, std = known
        normalisation = Normalisation((mean,), (std,))
    else:
        normalisation = measure(images, int(arrays["axis"][0]))
    kept = {f"{split}_images": arrays[f"{split}_images"] for split in ("train", "test")}
    if normalisation.is_stored(images):
        places = {name: f"{place}: x_{name.removesuffix('_images')}" for name in kept}
        kept = {name: normalisation.applied(kept[name], said) for name, said in places.items()}
    scale = {
        "mean": np.array(normalisation.mean),
        "std": np.array(normalisation.std),
        "axis": np.array([normalisation.axis]),
        "step": np.array([widest_step(images, normalisation)]),
        "test_spread": np.array([middle_spread(arrays["test_images"], normalisation)]),
    }
    return {**arrays, **kept, **scale}


def _limited(arrays: Arrays, max_train: int) -> Arrays:
    rows = np.sort(generator(0, "max_train").permutation(len(arrays["train_labels"]))[:max_train])
    limited = {name: arrays[name][rows] for name in ("train_images", "train_labels")}
    if "client_train" in arrays:
        owners, limited["client_train"] = np.unique(arrays["client_train"][rows], return_inverse=True)
        limited["owner_names"] = arrays["owner_names"][owners]  # of those who have a row left
    return limited
