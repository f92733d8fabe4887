"""Brings samples, labels and owners into one form, and refuses what training could not use."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.layout import arranged
from fedhp.data.normalisation import row_slices
from fedhp.errors import DataError

_LARGEST = np.finfo(np.float32).max
# Labels that leave gaps cost outputs that learn nothing: up to here a note will do, beyond it is a mistake.
_MOST_CLASSES = 1000
_MOST_PER_LABEL = 10
_SHOWN = 3


def checked_images(array: NDArray[Any], place: str, layout: str = "auto") -> tuple[NDArray[Any], int]:
    """Returns samples as (N, C, H, W), and the axis of (C, H, W) whose entries have scales of their own.

    Args:
        array: The samples as they were found.
        place: Names the array in errors.
        layout: One of `LAYOUTS`, see `arranged`.

    Raises:
        DataError: If the set is empty, or the shape, type or a value cannot be used.
    """
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise DataError(
            f"{place} must have shape (samples, features), (samples, height, width), (samples, "
            f"channels, height, width) or (samples, height, width, channels) and not be empty, got "
            f"{array.shape}"
        )
    _check_numbers(array, place)
    images, axis = arranged(array, layout)
    return np.ascontiguousarray(images), axis


def checked_labels(
    array: NDArray[Any], num_samples: int, num_classes: int | None, place: str
) -> NDArray[np.int64]:
    """Returns labels as int64 of shape (num_samples,), each in 0 .. num_classes - 1.

    Args:
        array: The labels as they were found.
        num_samples: The number of samples that they belong to.
        num_classes: The number of classes; None takes the labels to count from 0 on, with few gaps.
        place: Names the array in errors.

    Raises:
        DataError: If the labels are no integers, as many as the samples, in range, or far from dense.
    """
    if array.shape != (num_samples,):
        raise DataError(f"{place} must hold one label per sample, shape ({num_samples},), got {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{place} must hold integers (class numbers from 0 on), got {array.dtype}; map the "
            f"classes to 0, 1, 2, ... first"
        )
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise DataError(
            f"{place} must hold labels of {allowed}, got {lowest} to {highest}; correct the labels"
        )
    if num_classes is None:
        _check_dense(array, place)
    return array.astype(np.int64)


def _check_dense(labels: NDArray[Any], place: str) -> None:
    """Refuses labels that would make a model of far more outputs than there are classes."""
    distinct, first_rows = np.unique(labels, return_index=True)
    limit = max(_MOST_CLASSES, _MOST_PER_LABEL * len(distinct))
    stray = np.flatnonzero(distinct >= limit)
    if not stray.size:
        return
    shown = ", ".join(f"{distinct[n]} (row {first_rows[n]})" for n in stray[:_SHOWN])
    more = f" and {stray.size - _SHOWN} more" if stray.size > _SHOWN else ""
    raise DataError(
        f"{place} must hold labels that count 0, 1, 2, ... with few gaps, since the model has an output for "
        f"each up to the highest; got {len(distinct)} distinct labels, and among them {shown}{more}, where "
        f"labels below {limit} are taken; correct those rows, or renumber the classes in y_train and y_test"
    )


def checked_owners(array: NDArray[Any], num_samples: int, place: str) -> NDArray[np.int64]:
    """Returns each row's owner as 0 .. owners - 1, in the sorted order of their names.

    Raises:
        DataError: If the owners are neither integers nor texts, or not one per row.
    """
    if array.shape != (num_samples,) or array.dtype.kind not in "iuSU":
        raise DataError(
            f"{place} must name each training row's owner by an integer or a text, shape "
            f"({num_samples},), got {array.dtype} of shape {array.shape}"
        )
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def _check_numbers(array: NDArray[Any], place: str) -> None:
    if array.dtype.kind not in "buif":
        raise DataError(
            f"{place} must hold numbers, got {array.dtype}; convert it with .astype('float32'), which keeps "
            f"every value that counts"
        )
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
