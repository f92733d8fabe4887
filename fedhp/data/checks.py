"""Brings samples, labels and owners into one form, and refuses what training could not use."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import DataError

_MAX_CHANNELS = 4
# Labels that leave gaps cost outputs that learn nothing: up to here a note will do, beyond it is a mistake.
_MOST_CLASSES = 1000
_MOST_PER_LABEL = 10
_SHOWN = 3


def checked_images(array: NDArray[Any], place: str) -> NDArray[Any]:
    """Returns samples as (N, C, H, W), uint8 or float32.

    Understood are (N, F), which becomes (N, 1, 1, F); (N, H, W), which becomes (N, 1, H, W); (N, C,
    H, W); and (N, H, W, C) where C is at most 4 and H is above 4.

    Args:
        array: The samples as they were found.
        place: Names the array in errors.

    Raises:
        DataError: If the set is empty, or the shape, type or a value cannot be used.
    """
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise DataError(
            f"{place} must have shape (samples, features), (samples, height, width), (samples, "
            f"channels, height, width) or (samples, height, width, channels) and not be empty, got "
            f"{array.shape}"
        )
    if array.dtype != np.uint8:
        array = _checked_floats(array, place)
    if array.ndim == 2:
        array = array[:, None, None, :]
    elif array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] <= _MAX_CHANNELS < array.shape[1]:
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array)


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


def _checked_floats(array: NDArray[Any], place: str) -> NDArray[np.float32]:
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{place} must hold uint8 (0 to 255) or floating-point values, got {array.dtype}; "
            f"convert it with .astype('uint8') or .astype('float32')"
        )
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    if not np.isfinite(floats).all():
        raise DataError(
            f"{place} holds NaN, infinite or too large values (not finite as float32); remove or replace them"
        )
    return floats
