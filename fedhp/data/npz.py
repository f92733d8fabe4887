"""Reads named arrays of ``.npz`` files: no other is looked at, none is unpickled, no header is trusted."""

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from fedhp.bounds import one_line
from fedhp.choices import file_meant
from fedhp.errors import DataError

# By how much what NumPy writes can grow at most when it is read, https://zlib.net/zlib_tech.html.
_GROWS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_ENCRYPTED = 1
_WRITE = "write it anew with numpy.savez"


def read_npz(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Reads arrays of an ``.npz`` file by name.

    Args:
        path: The file.
        required: The arrays that must be there.
        optional: Those that are read where they are there.

    Raises:
        DataError: If the file is missing or damaged, lacks a required array, or one of these holds Python
            objects or is not what its header says.
    """
    if not path.is_file():
        raise DataError(
            f"no file {path}; it should be an .npz file with {', '.join(required)}"
            f"{file_meant(path, ('.npz',))}"
        )
    with _opened(path, required) as archive:
        return _read_members(archive, path, required, optional)


def _opened(path: Path, required: Sequence[str]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except _UNREADABLE as error:
        raise DataError(
            f"{path} is no .npz file (numpy.savez writes them) with {', '.join(required)}, or damaged: "
            f"{_said(error)}"
        ) from None


def _read_members(
    archive: zipfile.ZipFile, path: Path, required: Sequence[str], optional: Sequence[str]
) -> dict[str, NDArray[Any]]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    missing = [name for name in required if name not in members]
    if missing:
        held = one_line(", ".join(members)) or "nothing"
        raise DataError(
            f"{path} lacks {', '.join(missing)}; it holds {held} and should hold {', '.join(required)}"
        )
    names = [*required, *(name for name in optional if name in members)]
    return {name: _read_member(archive, members[name], f"{path}: {name}") for name in names}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: str) -> NDArray[Any]:
    try:
        if member.compress_type not in _GROWS:
            raise ValueError(f"its compression (method {member.compress_type}) is none that NumPy writes")
        if member.flag_bits & _ENCRYPTED:
            raise ValueError("it is encrypted")
        size = min(member.compress_size, Path(archive.filename or "").stat().st_size)
        with archive.open(member) as stream:
            _check_header(stream, min(member.file_size, size * _GROWS[member.compress_type]))
        with archive.open(member) as stream:
            return npy.read_array(stream, allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{place} cannot be read as a plain array ({_said(error)}); {_WRITE}") from None


def _said(error: Exception) -> str:
    return one_line(str(error), 200) or type(error).__name__


def _check_header(stream: IO[bytes], held: int) -> None:
    """Refuses an array that is larger, by its header, than the bytes that can be there, unallocated."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except _UNREADABLE:  # of which Python tells in its own words
        raise ValueError("its header is damaged, or none that NumPy writes") from None
    if dtype.hasobject:
        raise ValueError(
            "it holds Python objects, which are pickled and therefore refused: take .astype(str) of names, "
            ".astype(float) of numbers"
        )
    announced = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or announced > held:
        raise ValueError(f"its header says {announced} bytes, and there are {held} at most")


_UNREADABLE = (
    ValueError,  # no .npy, a header out of shape, objects
    *(EOFError, OSError),  # truncated
    *(zipfile.BadZipFile, zlib.error, struct.error),  # damaged
    *(tokenize.TokenError, TypeError, OverflowError),  # a header that is no Python literal, or no fitting one
    RuntimeError,  # encrypted, of another version, or a header nested without end
    MemoryError,
)
