"""What there is to know of data before a scenario for it is written."""

import zipfile
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np

from fedhp.choices import file_meant
from fedhp.data import SOURCES, DataConfig, Dataset, open_dataset
from fedhp.errors import DataError


class Kind(Enum):
    """What a sample is; the value is how several are called."""

    FEATURES = "rows of features"
    WINDOWS = "windows of sensor readings"
    IMAGES = "images"


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        config: How the data is opened.
        dataset: The data.
        kind: What a sample is.
        owner_rows: Per owner, the number of its training rows; empty where rows have no owners.
    """

    config: DataConfig
    dataset: Dataset
    kind: Kind
    owner_rows: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """The number of training rows."""
        return len(self.dataset.train_labels)

    @property
    def num_sensors(self) -> int:
        """Of windows, the number of channels."""
        return self.dataset.input_shape[0] * self.dataset.input_shape[1]


def look(data: str, model: str = "") -> Look:
    """Opens data and says what it is.

    Args:
        data: An ``.npz`` file, a folder that holds it as ``data.npz``, or the name of a known data set.
        model: The model that the user wants; ``conv1d`` wants windows, whatever they look like.

    Raises:
        DataError: If there is no such data, or it cannot be trained on.
    """
    config = _named(data)
    dataset = open_dataset(config)
    kind = Kind.WINDOWS if model == "conv1d" else _kind(dataset)
    if kind is Kind.WINDOWS and config.name == "npz":
        config = replace(config, layout=_layout(dataset))
        dataset = open_dataset(config)
    owners = dataset.client_train
    rows = () if owners is None else tuple(np.bincount(owners).tolist())
    return Look(config, dataset, kind, rows)


def _named(data: str) -> DataConfig:
    known = [name for name in SOURCES if name != "npz"]
    if data in known:
        return DataConfig(data)
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(
            f"no file {path}, and no data set of that name; give an .npz file with x_train, y_train, x_test "
            f"and y_test, or one of {', '.join(known)}{file_meant(path, ('.npz',), known)}"
        )
    if path.is_file() and path.suffix != ".npz" and not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is no .npz file, which is what is read: load its rows with what reads such files, and "
            f"write them with numpy.savez('{path.stem}.npz', x_train=..., y_train=..., x_test=..., "
            f"y_test=...)"
        )
    return DataConfig("npz", str(path.resolve()))


def _kind(dataset: Dataset) -> Kind:
    """Tells by the axis whose entries have scales of their own, which the data was normalised by."""
    channels, height, _ = dataset.input_shape
    axis = dataset.normalisation.axis
    if axis == 0:
        return Kind.IMAGES
    return Kind.FEATURES if axis == 2 and channels == height == 1 else Kind.WINDOWS


def _layout(dataset: Dataset) -> str:
    """Returns which axis of windows holds the sensors: that of which there are fewer, time being long."""
    channels, height, width = dataset.input_shape
    return "channels_last" if channels * height > width else "channels_first"
