"""Real samples as a device has them: some to verify an export on, others to find ranges by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.config import DataConfig
from fedhp.data.dataset import raw_arrays
from fedhp.errors import DataError
from fedhp.exports.network import RawSample
from fedhp.seeds import generator

NOT_ITS_DATA = "this is not the data that the run had; --data says where that is"


@dataclass(frozen=True, eq=False)
class RawData:
    """The raw samples of a run, of shape (N, channels, height, width).

    Attributes:
        held_out: Those that no device trained on.
        labels: Their classes.
        training: Those of which some give the ranges of activations.
        compression: Those of training by which weights are fitted.
        num_held_out: How many held-out samples the run has in all.
    """

    held_out: NDArray[Any]
    labels: NDArray[np.int64]
    training: NDArray[Any]
    compression: NDArray[Any]
    num_held_out: int


def raw_data(
    config: DataConfig, seed: int, at: Path | None, verified: int, calibration: int, compression: int = 0
) -> RawData:
    """Draws samples of a run's data, by the run's seed.

    Args:
        config: The run's data.
        seed: The run's seed.
        at: Where the data lies now; by default where the run found it.
        verified: How many held-out samples at most.
        calibration: How many training samples at most that give ranges.
        compression: How many training samples at most that fit weights.

    Raises:
        DataError: If the data is not there any more.
    """
    config = config if at is None else replace(config, root=str(at))
    try:
        arrays = raw_arrays(config)
    except DataError as error:
        raise DataError(
            f"what is checked is checked on the run's own data: {error}. --data says where it is"
        ) from None

    def drawn(name: str, size: int, number: int) -> NDArray[np.intp]:
        return np.sort(generator(seed, name).permutation(size)[:number])

    num_held_out = len(arrays["test_labels"])
    held_out = drawn("verified", num_held_out, verified)
    training, fitting = (
        arrays["train_images"][drawn(name, len(arrays["train_labels"]), number)]
        for name, number in (("calibration", calibration), ("compression", compression))
    )
    images, labels = (arrays[key][held_out] for key in ("test_images", "test_labels"))
    return RawData(images, labels, training, fitting, num_held_out)


def check_data(raw: RawData, input_shape: Sequence[int], num_classes: int) -> None:
    """Refuses samples that a network does not take, or of classes that it does not know.

    Args:
        raw: The samples.
        input_shape: Channels, height and width that the network takes.
        num_classes: Classes that it tells apart.

    Raises:
        DataError: If they are such, or there are none.
    """
    found, wanted = raw.held_out.shape[1:], tuple(input_shape)
    if found != wanted:
        raise DataError(
            f"samples are of the shape {found}, and the network takes {wanted} (channels, height, width): "
            f"{NOT_ITS_DATA}"
        )
    if (most := int(raw.labels.max())) >= num_classes:
        raise DataError(f"samples are of class {most}, and the network has {num_classes}: {NOT_ITS_DATA}")


def batches(images: NDArray[Any], sample: RawSample) -> list[NDArray[Any]]:
    """Returns batches of one sample each, in the form of ``sample``."""
    arranged = sample.arranged(images)
    # Slices, as an axis that is put in by an index has the stride 0, which ExecuTorch refuses.
    return [arranged[number : number + 1] for number in range(len(arranged))]
