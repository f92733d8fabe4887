"""Which axis of an array of samples is which."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUTS = ("auto", "channels_first", "channels_last")

_MAX_CHANNELS = 4
# Sides of images are mostly alike; a window has many more steps than sensors.
_TIMES_LONGER = 2


def arranged(array: NDArray[Any], layout: str) -> tuple[NDArray[Any], int]:
    """Brings samples of 2, 3 or 4 axes into the form (N, C, H, W).

    Args:
        array: The samples as they were found.
        layout: ``channels_first`` or ``channels_last``: with three axes, samples are then windows over time,
            and with two the windows of a single channel. ``auto`` takes (N, F) for features, (N, A, B) for
            (N, H, W), and the last of four axes for the channels where it has at most 4 entries and the
            second more.

    Returns:
        The samples, and the axis of (C, H, W) whose entries have a scale of their own each: features, the
        channels of images, or those of windows, which stand in the axis before time.
    """
    if array.ndim == 2:
        return array[:, None, None, :], 2 if layout == "auto" else 0
    if array.ndim == 3:
        rows = array.transpose(0, 2, 1) if layout == "channels_last" else array
        images = rows[:, None]
        return images, _sensors(images) if layout == "auto" else 1
    last = array.shape[3] <= _MAX_CHANNELS < array.shape[1] if layout == "auto" else layout == "channels_last"
    images = array.transpose(0, 3, 1, 2) if last else array
    return images, _sensors(images) if layout == "auto" else 0


def _sensors(images: NDArray[Any]) -> int:
    """Returns the axis of the sensors where samples look like windows, and that of the channels otherwise.

    Windows have a single channel and one side that is much longer, over time. Bytes are pixels.
    """
    _, channels, height, width = images.shape
    if channels > 1 or images.dtype == np.uint8:
        return 0
    if min(height, width) * _TIMES_LONGER > max(height, width) or min(height, width) == 1:
        return 0
    return 1 if height < width else 2


def looks_channels_last(shape: tuple[int, int, int], axis: int) -> bool:
    """Says whether samples that were read channels first, by default, look like ones stored channels last.

    Args:
        shape: Channels, height and width, as read.
        axis: The axis of it whose entries have a scale of their own.
    """
    channels, height, width = shape
    if channels == 1:
        return height > 1 and (axis == 2 or width == 1)
    thin = height == 1 < width or height >= _TIMES_LONGER * width
    return channels == height > width or (thin and channels >= _TIMES_LONGER * width)
