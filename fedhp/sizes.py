"""Bytes, and times of a sample, as people write them."""

import re

from fedhp.bounds import LARGEST_BYTES, shown
from fedhp.errors import ScenarioError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}
_LONGEST = 60e6
_BY_CAPITALS = {unit.upper(): size for unit, size in _UNITS.items()}


def parse_size(text: str | int, place: str = "") -> int:
    """Reads a size such as ``4MiB``, ``512 KiB``, ``1.5MB`` or a plain number of bytes.

    Args:
        text: What was given.
        place: Where, for errors: a key, option or device class.

    Raises:
        ScenarioError: If the text is no positive size, or one beyond any machine's.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", str(text))
    unit = _BY_CAPITALS.get((match[2] or "B").upper()) if match else None
    size = float(match[1]) * unit if match and unit else 0.0
    if not 1 <= size <= LARGEST_BYTES:
        said = f"{place}: " if place else ""
        raise ScenarioError(
            f"{said}{shown(str(text))} is not a memory size; write a positive number and a unit, such as "
            f"512KiB, 4MiB or 1.5GB (units: {', '.join(_UNITS)}), of {format_size(LARGEST_BYTES)} at most"
        )
    return int(size)


def parse_duration(text: str, place: str = "") -> float:
    """Reads a time such as ``2ms``, ``1.5 ms`` or ``800us``, in microseconds.

    Args:
        text: What was given.
        place: Where, for errors: a key or option.

    Raises:
        ScenarioError: If the text is no such time.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|ms|s)\s*", str(text))
    found = float(match[1]) * _MICROSECONDS[match[2]] if match else 0.0
    if not 0 < found <= _LONGEST:
        said = f"{place}: " if place else ""
        raise ScenarioError(
            f"{said}{shown(str(text))} is not the time of a sample; write a positive number and a unit, such "
            f"as 2ms or 800us (units: {', '.join(_MICROSECONDS)}), of a minute at most"
        )
    return found


def format_duration(microseconds: float) -> str:
    """Writes a time with three digits and its unit, such as ``1.93 ms``."""
    for unit in ("us", "ms"):
        if float(written := f"{microseconds / _MICROSECONDS[unit]:#.3g}".rstrip(".")) < 1000:
            return f"{written} {unit}"
    return f"{microseconds / _MICROSECONDS['s']:#.3g}".rstrip(".") + " s"


def format_size(num_bytes: float) -> str:
    """Writes a size with a binary unit, such as ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"


def at_least(num_bytes: int) -> str:
    """Writes the next size, such as ``212KiB``, that a scenario takes and that is no smaller."""
    unit = "KiB" if num_bytes <= _UNITS["MiB"] * 10 else "MiB"
    return f"{-(-num_bytes // _UNITS[unit])}{unit}"
