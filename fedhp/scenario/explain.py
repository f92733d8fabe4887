"""The keys of a schema in the words of its users, who know keys and values, not the classes behind them."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fedhp.bounds import UNWRITTEN, Bounds, Text, beyond, shown
from fedhp.choices import TELLING, declared, near


@dataclass(frozen=True, slots=True)
class Key:
    """What a key's value must be, in words, and its `Bounds` or `Text`, where it has any."""

    wanted: str
    bounds: Bounds | Text | None = None


# By dotted key; the keys of a list's entries have ``[]`` where the number would be.
Keys = Mapping[str, Key]

_WANTED = {
    str: "a text ('' is the empty one)",
    int: "an integer, written without point or exponent",
    float: "a number",
    bool: "true or false",
    float | None: "a number or null",
}
_NUMBERS = (_WANTED[int], _WANTED[float], _WANTED[float | None])


def keys_of(schema: type, examples: Mapping[str, str]) -> Keys:
    """Returns the keys of a schema of nested dataclasses.

    Args:
        schema: A dataclass.
        examples: A value of every key that takes a list.
    """
    types = get_type_hints(schema, include_extras=True)
    return {key: one for name, kind in types.items() for key, one in _described(name, kind, None, examples)}


def _described(
    key: str, kind: Any, bounds: Bounds | Text | None, examples: Mapping[str, str]
) -> Iterator[tuple[str, Key]]:
    """Yields a key with what it must be, and those below it; a list's bounds are those of its entries."""
    if get_origin(kind) is Annotated:
        bounds = next((one for one in declared(kind) if isinstance(one, Bounds | Text)), None)
        kind = get_args(kind)[0]
    if is_dataclass(kind):
        types = get_type_hints(kind, include_extras=True)
        yield key, Key(f"a section of the keys {', '.join(types)}")
        for name, below in types.items():
            yield from _described(f"{key}.{name}", below, None, examples)
    elif get_origin(kind) is list:
        yield key, Key(f"a list, such as {key}={examples[key]}")
        yield from _described(f"{key}[]", get_args(kind)[0], bounds, examples)
    else:
        yield key, Key(_WANTED[kind], bounds)


def unknown_key(key: str, known: Keys) -> str:
    """Says that there is no such key, and which was meant: one beside it, or else one of any section."""
    section, _, last = key.rpartition(".")
    beside = [one for one in known if one.rpartition(".")[0] == section]
    meant = _near(last, beside) or _near(last, known)
    hint = f"Did you mean {' or '.join(meant)}?" if meant else f"Keys are: {', '.join(beside)}"
    return f"there is no key {shown(key)}. {hint}"


def keys_named(name: str, known: Keys) -> list[str]:
    """Returns the key of this name, or else those whose last part it is, or else begins; no sections."""
    single = [key for key in known if "[" not in key and not any(one.startswith(f"{key}.") for one in known)]
    last = {key: key.rpartition(".")[2] for key in single}
    return (
        [key for key in single if key == name]
        or [key for key in single if last[key] == name]
        or [key for key in single if len(name) >= TELLING and last[key].startswith(name)]
    )


def _near(last: str, keys: Collection[str]) -> list[str]:
    meant = near(last, (key.rpartition(".")[2] for key in keys))
    return [key for key in keys if key.rpartition(".")[2] in meant]


def misfit(key: str, value: Any, known: Keys) -> str:
    """Says what a key's value must be, and what came."""
    came = shown(value)  # by which a text is told from a number, whatever node it is wrapped in
    return f"{key} must be {known[_indexed(key)].wanted}, got {'nothing' if came == 'None' else came}"


def is_known(key: str, known: Keys) -> bool:
    """Says whether there is such a key, which may point into a list."""
    return _indexed(key) in known


def section_amiss(values: Mapping[str, Any], known: Keys, prefix: str = "") -> tuple[str, Any] | None:
    """Returns the first section that was given a value instead of keys, with that value."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if not any(one.startswith(f"{key}.") for one in known):
            continue
        amiss = section_amiss(value, known, f"{key}.") if isinstance(value, dict) else (key, value)
        if amiss:
            return amiss
    return None


def value_amiss(key: str, value: Any, known: Keys) -> str | None:
    """Says what the first value is, in a section, list or alone, that no scenario can hold whatever its key.

    Args:
        key: The value's own key; empty for a whole scenario.
        value: As it was written, or as plain nested values.
        known: The keys. Others are left to whoever merges.
    """
    if isinstance(value, dict) and not value and key.endswith("]") and is_known(key, known):
        return f"{key} is empty; it must be {known[_indexed(key)].wanted}"
    if isinstance(value, dict):
        below = [(f"{key}.{name}" if key else str(name), one) for name, one in value.items()]
    elif isinstance(value, list):
        below = [(f"{key}[{place}]", one) for place, one in enumerate(value)]
    else:
        below = []
    flaw = _flaw(key, value, known) if is_known(key, known) else None
    return flaw or next(filter(None, (value_amiss(*one, known) for one in below)), None)


def _flaw(key: str, value: Any, known: Keys) -> str | None:
    wanted = known[_indexed(key)].wanted
    if wanted in _NUMBERS and isinstance(value, str) and not value.isascii():
        return misfit(key, value, known)  # Python's int takes the digits of all scripts
    if wanted == _WANTED[bool] and isinstance(value, int) and value not in (0, 1):
        return misfit(key, value, known)
    if wanted == _WANTED[str] and isinstance(value, int | float):  # taken as written: 2000000 bytes
        return f"{key} has more than 30 digits" if abs(value) >= UNWRITTEN else None
    flaw = beyond(value, known[_indexed(key)].bounds)
    return f"{key} {flaw}" if flaw else None


def _indexed(key: str) -> str:
    return re.sub(r"\[\d+\]", "[]", key)
