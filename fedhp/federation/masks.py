"""Which units or weights a model has, on the wire: a bit for each, or, where they are few, their places."""

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from fedhp.errors import WireError
from fedhp.federation.arrays import array_bytes, read_array, row_length, write_array
from fedhp.model.structure import Mask, unpacked

_BYTE, _PLACE = np.dtype(np.uint8), np.dtype(np.int32)


def write_mask(mask: Mask, by_place: bool) -> Array:
    """Writes a mask.

    Args:
        mask: Of shape ``(width,)``.
        by_place: Whether it may be written as places, if that is shorter.
    """
    if by_place and _is_sparse(len(mask), int(mask.sum())):
        return write_array(np.flatnonzero(mask).astype(_PLACE))
    return write_array(np.packbits(mask))


def mask_bytes(width: int, number: int, by_place: bool) -> int:
    """Returns how many bytes `write_mask` makes of a mask with so many of its entries set."""
    if by_place and _is_sparse(width, number):
        return array_bytes((number,), _PLACE)
    return array_bytes((-(-width // 8),), _BYTE)


def read_mask(name: str, array: Array, width: int, by_place: bool) -> Mask:
    """Reads `write_mask`.

    Raises:
        WireError: If it is of another type or shape, or says more than there is to say.
    """
    # By its data, as it is read: what came folded says no type beside.
    if by_place and (number := row_length(array, _PLACE)) is not None:
        return _of_places(name, array, width, number)
    bits = read_array(name, array, (-(-width // 8),), _BYTE)
    try:
        return unpacked(name.partition(".")[2], bits, width)
    except ValueError as error:
        raise WireError(f"structure: {error}") from None


def _of_places(name: str, array: Array, width: int, number: int) -> Mask:
    if not _is_sparse(width, number):
        raise WireError(f"{name}: expected {-(-width // 8)} bytes of bits, or fewer of places, got {number}")
    places: NDArray[np.int32] = read_array(name, array, (number,), _PLACE)
    if number and not (places[0] >= 0 and places[-1] < width and (np.diff(places) > 0).all()):
        raise WireError(f"{name}: expected strictly increasing places from 0 to {width - 1}")
    mask = np.zeros(width, np.bool_)
    mask[places] = True
    return mask


def _is_sparse(width: int, number: int) -> bool:
    return number * _PLACE.itemsize < -(-width // 8)
