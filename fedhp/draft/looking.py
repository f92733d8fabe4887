"""What there is to know of data before a scenario for it is written."""

import zipfile
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np

from fedhp.choices import file_meant
from fedhp.data.config import DataConfig
from fedhp.data.dataset import Dataset, open_dataset
from fedhp.data.layout import looks_channels_last
from fedhp.data.sources import SOURCES
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


def look(data: str, model: str = "", layout: str = "auto") -> Look:
    """Opens data and says what it is.

    Args:
        data: An ``.npz`` file, a folder that holds it as ``data.npz``, or the name of a known data set.
        model: The model that the user wants; ``conv1d`` wants windows, whatever they look like.
        layout: Which axis of a sample holds its channels, one of `LAYOUTS`; ``auto`` takes the likely one.

    Raises:
        DataError: If there is no such data, or it cannot be trained on.
        ScenarioError: If a layout is given for data whose axes are known.
    """
    config = replace(_named(data), layout=layout)
    dataset = open_dataset(config)
    kind = Kind.WINDOWS if model == "conv1d" else _kind(dataset)
    likely = _likely_layout(config, dataset, kind)
    if likely != layout:
        config = replace(config, layout=likely)
        dataset = open_dataset(config)
        kind = kind if kind is Kind.WINDOWS else _kind(dataset)
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
    axis, flat = dataset.normalisation.axis, channels == height == 1
    if axis == 0 and not flat:
        return Kind.IMAGES
    return Kind.FEATURES if axis == 2 and flat else Kind.WINDOWS


def _likely_layout(config: DataConfig, dataset: Dataset, kind: Kind) -> str:
    """Returns the layout that samples of one's own most likely have, where none is told.

    Of windows the sensors are the fewer, time being long; of others, what a run would note.
    """
    channels, height, width = shape = dataset.input_shape
    if config.name != "npz" or config.layout != "auto":
        return config.layout
    if kind is Kind.WINDOWS:
        return "channels_last" if channels * height > width else "channels_first"
    return "channels_last" if looks_channels_last(shape, dataset.normalisation.axis) else "auto"
