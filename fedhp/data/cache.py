"""Named arrays that are prepared once on disk and memory-mapped by every process."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import DataError

# Part of every key: to be raised when the meaning of the stored arrays changes, or more of them are refused.
_FORMAT = 6


def key_of(identity: Mapping[str, Any]) -> str:
    """Returns the folder name under which what this identity prepares is kept."""
    text = json.dumps({"format": _FORMAT, **identity}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def prepared(
    kind: str, key: str, prepare: Callable[[], Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Returns the arrays kept under ``kind`` and ``key``, read-only and memory-mapped.

    What is not there yet is made by ``prepare``. Processes may race: each writes a folder of its
    own, the first to rename it wins, and the others use the winner's.

    Raises:
        DataError: If the cache folder cannot be written or holds damaged files.
    """
    folder = cache_folder() / kind / key
    if not folder.is_dir():
        _write(folder, prepare())
    return _open(folder)


def cache_folder() -> Path:
    """Returns the folder of prepared data: ``FEDHP_CACHE``, or a writable one of the user's.

    Raises:
        DataError: If ``FEDHP_CACHE`` is set and cannot be written, or nothing can.
    """
    return _writable_folder(os.environ.get("FEDHP_CACHE"))


@lru_cache(maxsize=8)
def _writable_folder(wanted: str | None) -> Path:
    user = getattr(os, "getuid", lambda: "user")()
    places = (
        [Path(wanted)]
        if wanted
        else [
            Path("~/.cache/fedhp").expanduser(),
            Path(tempfile.gettempdir()) / f"fedhp-cache-{user}",
        ]
    )
    for place in places:
        if _is_writable(place):
            return place
    raise DataError(
        f"prepared data cannot be written to {' or '.join(map(str, places))}; set FEDHP_CACHE to a "
        f"folder that you may write to"
    )


def _is_writable(place: Path) -> bool:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK)


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        temporary.rename(folder)
    except OSError as error:
        # A folder that is there by now is another process's, complete since renaming is atomic.
        if not folder.is_dir():
            raise DataError(
                f"prepared data cannot be written to {folder} ({error}); free some space, or set "
                f"FEDHP_CACHE to another folder"
            ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _open(folder: Path) -> dict[str, NDArray[Any]]:
    try:
        return {
            # A plain view: np.memmap makes every slice several times slower.
            path.stem: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            for path in folder.glob("*.npy")
        }
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"the prepared data in {folder} is damaged ({error}); delete that folder, it will be "
            f"prepared again"
        ) from None
