"""What memory is left to this process, by its control group and by the machine, and what one takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_OWN_LIMITS = {"Max data size": "VmData:", "Max address space": "VmSize:"}
_NO_LIMIT = 2**60  # version 1 writes the largest number of pages for none


@dataclass(frozen=True)
class Room:
    """Memory that is left to this process.

    Attributes:
        limit: The control group's limit in bytes, the tightest on the way up; None where there is none.
        left: Bytes below that limit, without what the system would give back; None where there is none.
        available: Bytes that the machine can give without swapping; None where it does not tell.
        own: Bytes below the process's own limits (RLIMIT_DATA, RLIMIT_AS); None where it has none.
    """

    limit: int | None
    left: int | None
    available: int | None
    own: int | None = None

    @property
    def bytes(self) -> int | None:
        """The least of the three; None where none is known."""
        known = (size for size in (self.left, self.available, self.own) if size is not None)
        return min(known, default=None)


def room(proc: Path = _PROC, groups: Path = _GROUPS) -> Room:
    """Returns what is left to this process: by its control groups, the machine and its own limits."""
    found = list(_groups(proc, groups))
    tightest = min(found, key=lambda group: group[0] - group[1], default=None)
    limit, left = (None, None) if tightest is None else (tightest[0], max(0, tightest[0] - tightest[1]))
    available = _numbers(proc / "meminfo", scale=1024).get("MemAvailable:")
    return Room(limit, left, available, min(_below_own(proc), default=None))


def own_memory(process: int | str = "self", proc: Path = _PROC) -> int | None:
    """Returns what a process takes in bytes: its own pages and its share of others (PSS); None if unknown."""
    return _numbers(proc / str(process) / "smaps_rollup", scale=1024).get("Pss:")


def resident_memory(proc: Path = _PROC) -> int | None:
    """Returns the bytes of this process that are in memory, shared ones included; None if unknown."""
    return _numbers(proc / "self" / "status", scale=1024).get("VmRSS:")


def peak_above(proc: Path = _PROC) -> int:
    """Returns how far this process's memory once lay above what it is now, since `forget_peak`, in bytes."""
    taken = _numbers(proc / "self" / "status", scale=1024)
    return max(0, taken.get("VmHWM:", 0) - taken.get("VmRSS:", 0))


def forget_peak(proc: Path = _PROC) -> bool:
    """Lets the peak begin anew; says whether the system does so."""
    try:
        (proc / "self" / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _below_own(proc: Path) -> Iterator[int]:
    """Yields the bytes that are left below each limit of this process's own."""
    for line in _lines(proc / "self" / "limits"):
        for name, taken in _OWN_LIMITS.items():
            soft = line.removeprefix(name).split()[0] if line.startswith(name) else ""
            if soft.isdecimal():
                yield max(0, int(soft) - _numbers(proc / "self" / "status", scale=1024).get(taken, 0))


def _groups(proc: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Yields limit and use of the control groups of this process that limit memory, in bytes."""
    for line in _lines(proc / "self" / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _limited(mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _limited(mount / "memory", path, *names)


def _limited(mount: Path, path: str, limit: str, use: str, spare: str) -> Iterator[tuple[int, int]]:
    inner = PurePosixPath(path).relative_to("/")
    for group in (inner, *inner.parents):
        most, used = (_number(mount / group / name) for name in (limit, use))
        if most is not None and used is not None and most < _NO_LIMIT:
            # The system drops what it has read of files before it lets a process die.
            yield most, max(0, used - _numbers(mount / group / "memory.stat").get(spare, 0))


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdecimal() else None


def _numbers(path: Path, scale: int = 1) -> dict[str, int]:
    words = [line.split() for line in _lines(path)]
    return {one[0]: int(one[1]) * scale for one in words if len(one) > 1 and one[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
