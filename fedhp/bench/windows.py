"""A fleet of people with sensors, made of pictures whose rows are steps of time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhp.data.config import DataConfig
from fedhp.data.dataset import raw_arrays
from fedhp.errors import DataError
from fedhp.seeds import generator

TESTS = 3000  # windows of strangers, all classes alike

_FEWEST, _MOST = 150, 300  # windows of an owner
_FAVOURED, _TIMES = 3, 4  # classes that an owner has so many times as often
_GAIN, _OFFSET, _NOISE = 0.1, 0.05, 0.02  # deviations; values are from 0 to 1


def write_windows(file: Path, source: str = "mnist", owners: int = 30, seed: int = 0) -> dict[str, int]:
    """Writes an ``.npz`` file for ``data.name=npz``: windows of sensor readings, with their owners.

    A picture read from top to bottom is a window: its rows are steps of time, its columns channels. Each
    owner has 150 to 300, of which three classes come four times as often as the others, and sensors of their
    own: a gain and an offset of every channel, drawn once, and noise. Tests are of strangers, a third as
    many, with sensors of their own.

    Args:
        file: Where to.
        source: A data set of pictures, as ``data.name`` has it.
        owners: How many there are.
        seed: Of all draws.

    Returns:
        How many ``owners``, ``windows`` and ``tests`` there are.

    Raises:
        DataError: If there are no pictures, or too few.
    """
    raw = raw_arrays(DataConfig(name=source))
    stream = generator(seed, "windows")
    dealt = list(_dealt(raw["train_labels"], owners, stream))
    rows, whose = np.concatenate(dealt), np.repeat(np.arange(owners), [len(one) for one in dealt])
    tests = stream.permutation(len(raw["test_labels"]))[:TESTS]
    strangers = stream.integers(max(1, owners // 3), size=len(tests))
    arrays = {
        "x_train": _sensed(raw["train_images"][rows], whose, stream),
        "y_train": raw["train_labels"][rows],
        "client_train": whose,
        "x_test": _sensed(raw["test_images"][tests], strangers, stream),
        "y_test": raw["test_labels"][tests],
    }
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return {"owners": owners, "windows": len(rows), "tests": len(tests)}


def _dealt(labels: NDArray[np.int64], owners: int, stream: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Deals pictures, none twice: yields each owner's rows."""
    classes = np.unique(labels)
    piles = [stream.permutation(np.flatnonzero(labels == one)) for one in classes]
    for _ in range(owners):
        shares = np.ones(len(classes))
        shares[stream.choice(len(classes), _FAVOURED, replace=False)] = _TIMES
        wanted = stream.multinomial(stream.integers(_FEWEST, _MOST + 1), shares / shares.sum())
        if any(number > len(pile) for number, pile in zip(wanted, piles, strict=True)):
            raise DataError(
                f"{len(labels)} pictures are too few for {owners} owners of up to {_MOST} windows"
            )
        yield np.concatenate([pile[:number] for number, pile in zip(wanted, piles, strict=True)])
        piles = [pile[number:] for number, pile in zip(wanted, piles, strict=True)]


def _sensed(
    pictures: NDArray[np.uint8], whose: NDArray[np.int64], stream: np.random.Generator
) -> NDArray[np.float32]:
    """Returns what the owners' sensors make of pictures: windows of shape (rows, channels, time)."""
    windows = pictures[:, 0].swapaxes(1, 2) / np.float32(255)
    sensors = (int(whose.max()) + 1, windows.shape[1], 1)
    gains, offsets = np.exp(stream.normal(0, _GAIN, sensors)), stream.normal(0, _OFFSET, sensors)
    noise = stream.normal(0, _NOISE, windows.shape)
    return (windows * gains[whose] + offsets[whose] + noise).astype(np.float32)
