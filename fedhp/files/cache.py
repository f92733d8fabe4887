"""Named arrays that are prepared once on disk and memory-mapped by every process."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.bounds import one_line
from fedhp.errors import DataError
from fedhp.files.locks import NAME, locked, of

# Part of every key: to be raised when the meaning of the stored arrays changes, or more of them are refused.
_FORMAT = 11
_CONTENTS = "contents.json"


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
    shared = Path(tempfile.gettempdir()) / f"fedhp-cache-{user}"
    home = os.path.expanduser("~")  # which a user without an account, as in a container, may not have
    own = [Path(home) / ".cache" / "fedhp"] if home != "~" else []
    places = [Path(wanted)] if wanted else [*own, shared]
    for place in places:
        if _is_writable(place) and (place != shared or _is_ours(place)):
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


def _is_ours(place: Path) -> bool:
    """Says whether nobody else can have put anything there, where everybody may make folders.

    Raises:
        DataError: If somebody can: who waits with a folder of that name may want to be found.
    """
    found = place.lstat()
    owner = getattr(os, "getuid", lambda: found.st_uid)()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o022:
        raise DataError(
            f"{place} is a link, another user's, or open to others: prepared data from there is not to be "
            f"trusted; remove it, or set FEDHP_CACHE to a folder of your own"
        )
    return True


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(folder.parent) as whose:
            temporary = whose / folder.name
            temporary.mkdir()
            for name, array in arrays.items():
                with (temporary / f"{name}.npy").open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())  # before the name is there: a power failure must not leave zeros
            sizes = {path.stem: path.stat().st_size for path in temporary.glob("*.npy")}
            (temporary / _CONTENTS).write_text(json.dumps(sizes), encoding="utf-8")
            temporary.rename(folder)
    except OSError as error:
        # A folder that is there by now is another process's, complete since renaming is atomic.
        if not folder.is_dir():
            raise DataError(
                f"prepared data cannot be written to {folder} ({error}); free some space, or set "
                f"FEDHP_CACHE to another folder"
            ) from None


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """Makes a folder for as long as this process writes it, and removes those of processes that were killed.

    It is locked, which a process that dies undoes; all such folders of the place are so that nobody takes one
    just made for one left behind.
    """
    with ExitStack() as held:
        with locked(of(parent)):
            for other in parent.glob(".*"):
                with suppress(BlockingIOError), locked(other / NAME, wait=False) as is_abandoned:
                    if is_abandoned:
                        shutil.rmtree(other, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=".", dir=parent))
            held.callback(shutil.rmtree, temporary, ignore_errors=True)
            held.enter_context(locked(temporary / NAME))
        yield temporary


def _open(folder: Path) -> dict[str, NDArray[Any]]:
    try:
        sizes = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
        found = {path.stem: path.stat().st_size for path in folder.glob("*.npy")}
        if found != sizes:
            raise ValueError("it is not whole")
        return {
            # A plain view: np.memmap makes every slice several times slower.
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            for name in found
        }
    except Exception as error:  # NumPy's reader raises many kinds; all mean a damaged file
        raise DataError(
            f"the prepared data in {folder} is damaged ({one_line(str(error))}); delete that folder, it will "
            f"be prepared again"
        ) from None
