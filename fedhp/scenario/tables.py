"""The tables of keys in docs/scenarios.md: ``python -m fedhp.scenario.tables docs/scenarios.md`` writes them.

All of a row stands beside its field: the type with what it declares, the default, and in the docstring of the
schema's part, under ``Attributes``, the meaning, whose links are those of the page.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from fedhp.bounds import Bounds
from fedhp.choices import STABLE, OneOf, declared
from fedhp.fleet.devices import DeviceClassConfig
from fedhp.scenario.schema import Scenario

_HEADER = (
    "| key | type | default | allowed | stable | meaning |",
    "|---|---|---|---|---|---|",
)
_TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    float | None: "number or null",
    bool: "true or false",
    list[int]: "list of integers",
    list[float]: "list of numbers",
    list[str]: "list of texts",
    list[DeviceClassConfig]: "list of device classes",
}
_MARKED = re.compile(r"(<!-- keys of (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def with_tables(page: str) -> str:
    """Returns a page with the tables between its marks, ``keys of SECTION`` to ``end of keys``, made anew."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{_table(found[2])}\n\n{found[3]}", page)


def _table(section: str) -> str:
    """Returns the table of a section's keys; of ``run``, of those that are in none."""
    whole = Scenario()
    in_none = section == "run"
    part, prefix = (whole, "") if in_none else (getattr(whole, section), f"{section}.")
    return "\n".join([*_HEADER, *_rows(part, prefix, nested=not in_none)])


def _rows(part: Any, prefix: str, nested: bool = True) -> Iterator[str]:
    said = meanings(type(part))
    for name, kind in get_type_hints(type(part), include_extras=True).items():
        key, value = f"{prefix}{name}", getattr(part, name)
        if is_dataclass(value):
            yield from _rows(value, f"{key}.") if nested else ()
            continue
        yield _row(key, kind, value, said[name])
        if isinstance(value, list) and value:
            yield from _rows(value[0], f"{key}[].")


def _row(key: str, kind: Any, default: Any, meaning: str) -> str:
    plain = [asdict(one) for one in default] if isinstance(default, list) else default
    written, *_ = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=1000).splitlines()
    type_said = _TYPES[get_args(kind)[0] if declared(kind) else kind]
    stable = "yes" if STABLE in declared(kind) else ""
    cells = f"`{key}`", type_said, f"`{written}`", _allowed(kind), stable, meaning
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _allowed(kind: Any) -> str:
    for one in declared(kind):
        if isinstance(one, OneOf):
            return ", ".join(f"`{name}`" for name in one.names)
        if isinstance(one, Bounds):
            return f"each {one}" if get_origin(get_args(kind)[0]) is list else str(one)
    return ""


def meanings(schema: type) -> Mapping[str, str]:
    """Returns what a part's docstring says of its fields, by name, each on one line."""
    _, _, attributes = cleandoc(schema.__doc__ or "").partition("\nAttributes:\n")
    found = _ATTRIBUTE.findall(attributes)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in found}


def _main(file: Path) -> None:
    file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
