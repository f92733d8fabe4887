"""Classes and owners as numbers from 0 on, and by the names that they come with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import DataError

# Labels that leave gaps cost outputs that learn nothing: up to here a note will do, beyond it is a mistake.
_MOST_CLASSES = 1000
_MOST_PER_LABEL = 10
_SHOWN = 3
_LONGEST = 100


def checked_labels(
    array: NDArray[Any],
    num_samples: int,
    num_classes: int | None,
    place: str,
    names: Sequence[str] = (),
) -> NDArray[np.int64]:
    """Returns labels as int64 of shape (num_samples,), each in 0 .. num_classes - 1.

    Args:
        array: The labels as they were found: integers, truth values, or the names of classes.
        num_samples: The number of samples that they belong to.
        num_classes: The number of classes; None takes the labels to count from 0 on, with few gaps.
        place: Names the array in errors.
        names: The names of the classes, for labels that are texts.

    Raises:
        DataError: If the labels are no integers or known names, as many as the samples, in range, or far from
            dense.
    """
    if array.shape != (num_samples,):
        raise DataError(
            f"{place} must hold one label per sample, shape ({num_samples},), got {array.shape}"
            f"{_reshaped(array.shape, num_samples)}"
        )
    if array.dtype.kind in "SU":
        return _numbered(array, place, names)
    if array.dtype.kind not in "biu":
        raise DataError(
            f"{place} must hold integers (class numbers from 0 on) or the classes' names, got {array.dtype}; "
            f"map the classes to 0, 1, 2, ... first, whole ones with .astype(int)"
        )
    _check_range(array, num_classes, place)
    if num_classes is None:
        _check_dense(array, place)
    return array.astype(np.int64)


def _check_range(labels: NDArray[Any], num_classes: int | None, place: str) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise DataError(
            f"{place} must hold labels of {allowed}, got {lowest} to {highest}; correct the labels, or "
            f"number the classes 0, 1, 2, ... in y_train and y_test"
        )


def names_in(array: NDArray[Any], place: str) -> tuple[str, ...]:
    """Returns the distinct texts of an array in sorted order; none where it holds no texts.

    Raises:
        DataError: If one is longer than 100 characters, or has others than can be printed in a line.
    """
    if array.dtype.kind not in "SU" or array.ndim != 1:
        return ()
    found = tuple(np.unique(_texts(array, place)).tolist())
    for name in found:
        if not name.isprintable() or not 0 < len(name) <= _LONGEST:
            raise DataError(
                f"{place} must hold names of 1 to {_LONGEST} printable characters, got {name[:_LONGEST]!r}; "
                f"rename it"
            )
    return found


def checked_owners(
    array: NDArray[Any], num_samples: int, place: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Returns each row's owner as 0 .. owners - 1, in the sorted order of their names, and these.

    Raises:
        DataError: If the owners are neither integers nor texts, or not one per row.
    """
    if array.shape != (num_samples,) or array.dtype.kind not in "iuSU":
        raise DataError(
            f"{place} must name each training row's owner by an integer or a text, shape "
            f"({num_samples},), got {array.dtype} of shape {array.shape}"
        )
    texts = names_in(array, place)
    owners, numbers = np.unique(_texts(array, place) if texts else array, return_inverse=True)
    return numbers.astype(np.int64), texts or tuple(map(str, owners.tolist()))


def _texts(array: NDArray[Any], place: str) -> NDArray[np.str_]:
    try:
        return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    except UnicodeDecodeError:
        raise DataError(f"{place} holds bytes that are no text in UTF-8; store it as texts") from None


def _numbered(array: NDArray[Any], place: str, names: Sequence[str]) -> NDArray[np.int64]:
    texts = _texts(array, place)
    if unknown := np.setdiff1d(texts, names)[:_SHOWN].tolist():
        known = f"are {', '.join(names[:_SHOWN])}, ..., {len(names)} in all" if names else "have numbers only"
        raise DataError(
            f"{place} holds {', '.join(map(repr, unknown))}, which is no class that training knows; its "
            f"classes {known}; correct the labels"
        )
    order = np.argsort(names)
    return order[np.searchsorted(np.array(names)[order], texts)].astype(np.int64)


def _reshaped(shape: tuple[int, ...], num_samples: int) -> str:
    """Says how labels of an axis too many become plain ones."""
    if len(shape) != 2 or shape[0] != num_samples:
        return ""
    return "; take .reshape(-1)" if shape[1] == 1 else "; of one column per class, take .argmax(axis=1)"


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
