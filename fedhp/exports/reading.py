"""What was measured in another process or on a device, read back from JSON, which may be anything."""

import json
import re
from dataclasses import fields
from typing import Any

from fedhp.bounds import LARGEST_BYTES, LARGEST_WHOLE, MOST_THREADS, Bounds, one_line, shown
from fedhp.errors import WireError
from fedhp.exports.measured import Measured, Measurement, Ratios

_POSITIVE, _BYTES = Bounds(above=0), Bounds(at_least=0, largest=LARGEST_BYTES)
_NUMBERS: dict[str, tuple[type, Bounds]] = {
    "threads": (int, Bounds(at_least=1, at_most=MOST_THREADS)),
    "microseconds": (float, _POSITIVE),
    "microseconds_p95": (float, _POSITIVE),
    "num_calls": (int, Bounds(at_least=1)),
    "num_bytes": (int, _BYTES),
    "memory_bytes": (int, _BYTES),
    "microjoules": (float, Bounds(at_least=0)),
}
_RATIO = float, Bounds(at_least=0, largest=LARGEST_BYTES)
_MAY_LACK = {"memory_bytes", "microjoules", "memory"}
_LONGEST, _MOST_AXES, _MOST_FILES = 300, 8, 100
_DTYPE = re.compile(r"[a-z]{1,10}[0-9]{0,3}")


def read_measurement(text: str) -> Measurement:
    """Reads what `Measurement.to_dict` gave as JSON.

    Raises:
        WireError: If it is no JSON, or anything is missing, unknown, of another type, out of its range or not
            finite; the message names the field.
    """
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise WireError(f"what was measured is no JSON: {shown(text)}") from None
    _check_keys(told, {"files", "failures"}, "what was measured")
    files, failures = told["files"], told["failures"]
    if not isinstance(files, list) or not isinstance(failures, dict):
        raise WireError("what was measured: expected a list of files, and failures by file")
    if len(files) + len(failures) > _MOST_FILES:
        raise WireError(f"what was measured: expected at most {_MOST_FILES} files")
    if not all(isinstance(why, str) for why in failures.values()):
        raise WireError("failures: expected a text for each file")
    causes = {_text(name, "failures"): one_line(why) for name, why in failures.items()}
    return Measurement(tuple(map(_measured, files)), causes)


def _measured(told: Any) -> Measured:
    _check_keys(told, {field.name for field in fields(Measured)}, "a file")
    read = {key: _number(told, key, *kind) for key, kind in _NUMBERS.items()}
    if read["microseconds_p95"] < read["microseconds"]:
        raise WireError("microseconds_p95: is below the median")
    names = {key: _text(told[key], key) for key in ("file", "format", "dtype")}
    if not _DTYPE.fullmatch(names["dtype"]):
        raise WireError(f"dtype: expected a type of numbers, got {shown(names['dtype'])}")
    against = None if told["against"] is None else _ratios(told["against"])
    return Measured(**names, **read, shape=_shape(told["shape"]), against=against)


def _ratios(told: Any) -> Ratios:
    _check_keys(told, {field.name for field in fields(Ratios)}, "against")
    quartiles = told["time_quartiles"]
    if not isinstance(quartiles, list) or len(quartiles) != 2:
        raise WireError(f"time_quartiles: expected two numbers, got {shown(quartiles)}")
    lower, upper = (_number({"time_quartiles": one}, "time_quartiles", *_RATIO) for one in quartiles)
    time, size, memory = (_number(told, key, *_RATIO) for key in ("time", "size", "memory"))
    return Ratios(time, (lower, upper), size, memory)


def _check_keys(told: Any, wanted: set[str], what: str) -> None:
    if not isinstance(told, dict):
        raise WireError(f"{what}: expected fields, got {shown(told)}")
    if told.keys() != wanted:
        missing, unknown = sorted(wanted - told.keys()), sorted(told.keys() - wanted)
        raise WireError(one_line(f"{what}: fields missing {missing}, unknown {unknown}", _LONGEST))


def _number(told: dict[str, Any], key: str, kind: type, bounds: Bounds) -> Any:
    if told[key] is None and key in _MAY_LACK:
        return None
    value: Any = told[key]
    if type(value) is not kind:
        raise WireError(f"{key}: expected {kind.__name__}, got {shown(value)}")
    if flaw := bounds.amiss(value):
        raise WireError(f"{key} {flaw}")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable():
        raise WireError(f"{key}: expected a line of at most {_LONGEST} characters, got {shown(value)}")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    axes: list[Any] = value if isinstance(value, list) and len(value) <= _MOST_AXES else [None]
    if not all(type(size) is int and 0 < size <= LARGEST_WHOLE for size in axes):
        raise WireError(f"shape: expected sizes of at most {_MOST_AXES} axes, got {shown(value)}")
    return tuple(axes)
