"""Brings samples into one form, and refuses what training could not use."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.layout import arranged
from fedhp.data.normalisation import row_slices
from fedhp.errors import DataError

_TO_NUMBERS = {
    **dict.fromkeys("SU", "where texts are numbers, convert it with .astype(float); number categories first"),
    **dict.fromkeys("mM", "convert it with .astype('int64'), which counts in its unit"),
    "c": "give real and imaginary parts as two channels, numpy.stack([x.real, x.imag], axis=1)",
    "V": "make one array of its fields, numpy.lib.recfunctions.structured_to_unstructured(x)",
}
_LARGEST = np.finfo(np.float32).max


def checked_images(array: NDArray[Any], place: str, layout: str = "auto") -> tuple[NDArray[Any], int]:
    """Returns samples as (N, C, H, W), and the axis of (C, H, W) whose entries have scales of their own.

    Args:
        array: The samples as they were found.
        place: Names the array in errors.
        layout: One of `LAYOUTS`, see `arranged`.

    Raises:
        DataError: If the set is empty, or the shape, type or a value cannot be used.
    """
    _check_numbers(array, place)
    if array.ndim not in (2, 3, 4) or array.size == 0:
        single = "; of a single feature, take .reshape(-1, 1)" if array.ndim == 1 and array.size else ""
        raise DataError(
            f"{place} must have shape (samples, features), (samples, height, width), (samples, "
            f"channels, height, width) or (samples, height, width, channels) and not be empty, got "
            f"{array.shape}{single}"
        )
    _check_finite(array, place)
    images, axis = arranged(array, layout)
    return np.ascontiguousarray(images), axis


def _check_numbers(array: NDArray[Any], place: str) -> None:
    if array.dtype.kind not in "buif":
        remedy = _TO_NUMBERS.get(array.dtype.kind, "convert it")
        raise DataError(f"{place} must hold numbers, got {array.dtype!s:.80}; {remedy}")


def _check_finite(array: NDArray[Any], place: str) -> None:
    if array.dtype.kind != "f":
        return
    others = tuple(range(1, array.ndim))
    fine = [(np.abs(array[rows]) <= _LARGEST).all(others) for rows in row_slices(array)]
    beyond = np.flatnonzero(~np.concatenate(fine))
    if beyond.size:
        raise DataError(
            f"{place} holds NaN, infinite or too large values (not finite as float32) in {beyond.size} of "
            f"{len(array)} rows, first in row {beyond[0]}; remove or replace them"
        )
