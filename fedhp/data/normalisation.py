"""What brings samples to mean 0 and deviation 1: of each feature, or of each channel."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import DataError

# Values that are converted to double precision at once: as a whole, uint8 would take eight times the memory.
_SLICE = 2**20
_LARGEST = np.finfo(np.float32).max
_LEAST_EXPONENT = np.finfo(np.float64).minexp


@dataclass(frozen=True)
class Normalisation:
    """A mean and a deviation for every entry of one axis of a sample; with uint8 scaled to 0 .. 1.

    Attributes:
        mean: What is taken from the values, one per entry of the axis, or one for all values.
        std: What the rest is divided by, above 0; 1 where all values are equal, and where they differ by less
            than double precision tells, the step that it counts by.
        axis: The axis of (channels, height, width) that has entries of unlike scale.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis: int = 0

    def shaped(self, numbers: tuple[float, ...]) -> NDArray[np.float64]:
        """Returns one number per entry in a shape that broadcasts over (channels, height, width)."""
        shape = [1, 1, 1]
        shape[self.axis] = len(numbers)
        return np.array(numbers, np.float64).reshape(shape)

    def is_stored(self, images: NDArray[Any]) -> bool:
        """Says whether images are stored normalised: all but bytes, which take a quarter of the room."""
        return images.dtype != np.uint8 or (len(self.mean) > 1 and self.axis > 0)

    def applied(self, images: NDArray[Any], place: str) -> NDArray[np.float32]:
        """Returns normalised images, shape (N, C, H, W).

        In double precision up to the last step: what tells values apart that lie around a large one is gone
        once they are rounded to single precision.

        Args:
            images: Any numbers, all finite.
            place: Names them in errors.

        Raises:
            DataError: If a value is so many deviations from the mean that single precision cannot say it.
        """
        scale = _scale(images)
        mean, std = self.shaped(self.mean) * scale, self.shaped(self.std) * scale
        normalised = np.empty(images.shape, np.float32)
        for rows in row_slices(images):
            with np.errstate(over="ignore"):  # told below
                values = (images[rows].astype(np.float64) - mean) / std
            if (off := np.abs(values).max()) > _LARGEST:
                raise DataError(
                    f"{place} holds a value that is {off:.2g} deviations from the training samples' mean; "
                    f"correct it"
                )
            normalised[rows] = values
        return normalised


def measure(images: NDArray[Any], axis: int | None) -> Normalisation:
    """Returns the mean and deviation of images (N, C, H, W) per entry of an axis of (C, H, W).

    Normalised by them, the same images train alike as uint8 and as floats of any range.

    Args:
        images: Any numbers, all finite.
        axis: The axis; None measures all values together.
    """
    mean, std = (numbers / _scale(images) for numbers in _moments(images, axis))
    return Normalisation(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()), axis or 0)


def spreads(images: NDArray[Any], normalisation: Normalisation) -> NDArray[np.float64]:
    """Returns the deviation of images beside the normalisation's, per entry of its axis.

    NaN where all values are equal, which says nothing. Where the normalisation divides by 1, it may have seen
    equal values only: there, nothing counts as narrower.
    """
    axis = normalisation.axis if len(normalisation.mean) > 1 else None
    _, own = _moments(images, axis)
    own = np.where(own > 0, own, np.nan) / _scale(images)
    divisors = np.array(normalisation.std)
    return np.where(divisors == 1, np.maximum(own, 1), own / divisors)


def middle_spread(images: NDArray[Any], normalisation: Normalisation) -> float:
    """Returns the middle one of `spreads`; 1 where they say nothing."""
    ratios = spreads(images, normalisation)
    known = np.sort(ratios[~np.isnan(ratios)])
    return float(known[len(known) // 2]) if known.size else 1.0


def widest_step(images: NDArray[Any], normalisation: Normalisation) -> float:
    """Returns the widest step between neighbouring numbers of the images' type, in deviations.

    Whole numbers are as they are; those of 64 bits are rounded where they exceed double precision.
    """
    kind = images.dtype.newbyteorder("=") if images.dtype.kind == "f" else np.dtype(np.float64)
    std = np.array(normalisation.std)
    steps = np.spacing(np.abs(normalisation.mean).astype(kind)).astype(np.float64) / std
    return float(np.max(steps, where=std != 1, initial=0.0))


def _moments(images: NDArray[Any], axis: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns mean and deviation of values as they are; equal ones deviate by 0, without rounding.

    And only equal ones: of differences as small as double precision knows, the squares would be nothing.
    """
    others = tuple(number for number in range(4) if axis is None or number != axis + 1)
    count = math.prod(images.shape[number] for number in others)

    def mean_of(values: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        parts = (values(images[rows].astype(np.float64)) for rows in row_slices(images))
        return np.sum([part.sum(others, keepdims=True) for part in parts], axis=0) / count

    low, high = images.min(others, keepdims=True), images.max(others, keepdims=True)
    _, exponents = np.frexp(high.astype(np.float64) - low.astype(np.float64))
    unit = np.ldexp(1.0, np.maximum(exponents, _LEAST_EXPONENT))  # which divides without rounding
    mean = mean_of(lambda part: part)
    std = np.sqrt(mean_of(lambda part: np.square((part - mean) / unit))) * unit
    known = np.where(std > 0, std, np.spacing(np.abs(mean)))
    return mean.ravel(), np.where(low == high, 0, known).ravel()


def row_slices(array: NDArray[Any]) -> Iterator[slice]:
    """Yields slices of rows that hold about a million values each, and at least one row."""
    step = max(1, _SLICE // math.prod(array.shape[1:]))
    return (slice(start, start + step) for start in range(0, len(array), step))


def _scale(images: NDArray[Any]) -> int:
    return 255 if images.dtype == np.uint8 else 1
