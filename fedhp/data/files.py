"""Reads the file formats that published data comes in: IDX, as MNIST's, and CIFAR-10's."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import DataError

_UNSIGNED_BYTE = 8
_CIFAR_IMAGE = (3, 32, 32)


def read_idx(path: Path, num_dims: int) -> NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes, gzipped if its name ends in ``.gz``.

    The format is http://yann.lecun.com/exdb/mnist: two zero bytes, the type, the number of axes,
    one big-endian 32-bit length per axis, the values.

    Raises:
        DataError: If the file is truncated, no IDX file of ``num_dims`` axes, or longer or shorter
            than its header says.
    """
    content = _uncompressed(path)
    header = 4 + 4 * num_dims
    expected = bytes([0, 0, _UNSIGNED_BYTE, num_dims])
    if len(content) < header or content[:4] != expected:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes with {num_dims} axes: it should begin with "
            f"{expected.hex()}, and begins with {content[:4].hex() or 'nothing'}. {_FETCH_AGAIN}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", num_dims, offset=4))
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path}: the header announces {' x '.join(map(str, shape))} = {math.prod(shape)} "
            f"bytes, and {len(content) - header} follow. {_FETCH_AGAIN}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_cifar10(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reads a file of CIFAR-10's binary version: images of shape (N, 3, 32, 32) and labels of shape (N,).

    The format is https://www.cs.toronto.edu/~kriz/cifar.html: records without a header, each one byte of
    label and 3,072 of pixels, red, green and blue, row by row.

    Raises:
        DataError: If the file is empty, or no whole number of records.
    """
    content = _uncompressed(path)
    record = 1 + math.prod(_CIFAR_IMAGE)
    if not content or len(content) % record:
        raise DataError(
            f"{path} should hold records of {record} bytes, and holds {len(content)} bytes, which is no "
            f"whole number of them. {_FETCH_AGAIN}"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return rows[:, 1:].reshape(-1, *_CIFAR_IMAGE), rows[:, 0]


_UNREADABLE = (OSError, EOFError, zlib.error)
_FETCH_AGAIN = "Fetch the file again."


def _uncompressed(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except _UNREADABLE as error:
        raise DataError(f"{path} is truncated or damaged ({error}). {_FETCH_AGAIN}") from None
