"""The tables of columns in docs/record.md: ``python -m fedhp.records.tables docs/record.md`` writes them.

Type and unit of a figure are those of its field, its meaning stands in the docstring of the field's class.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_origin

from fedhp.records.rows import CLIENTS, PARTITION, ROUNDS, ClientReport, LabelCount, RoundReport
from fedhp.records.summary import SUMMARY, Summary
from fedhp.scenario.tables import meanings
from fedhp.training.figures import Column
from fedhp.training.statistics import Statistics

_HEADER = ("| name | type | unit | meaning |", "|---|---|---|---|")
_FILES: Mapping[str, tuple[Mapping[str, Column], tuple[type, ...]]] = {
    "rounds.parquet": (ROUNDS, (RoundReport,)),
    "clients.parquet": (CLIENTS, (ClientReport, Statistics)),
    "partition.parquet": (PARTITION, (LabelCount,)),
    "summary.json": (SUMMARY, (Summary,)),
}
_TYPES = {int: "integer", float: "number", str: "text", Literal: "text", Mapping[str, str]: "texts by name"}
_MARKED = re.compile(r"(<!-- figures of (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """Returns a page with the tables between its marks, ``figures of FILE`` to ``end of figures``, anew."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{_table(found[2])}\n\n{found[3]}", page)


def _table(file: str) -> str:
    return "\n".join([*_HEADER, *_rows(*_FILES[file])])


def _rows(columns: Mapping[str, Column], classes: tuple[type, ...]) -> Iterator[str]:
    said = {name: text for one in classes for name, text in meanings(one).items()}
    for name, column in columns.items():
        kind = _TYPES[get_origin(column.kind) if get_origin(column.kind) is Literal else column.kind]
        unit = column.figure.unit
        yield f"| `{name}` | {kind} |{f' {unit} ' if unit else ' '}| {said[name]} |"


def _main(file: Path) -> None:
    file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
