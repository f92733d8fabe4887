"""Numbers of many runs, as texts and tables."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def spread(value: float | None, deviation: float | None) -> str:
    """Writes a mean with its deviation; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.2f}" if deviation is None else f"{value:.2f} ± {deviation:.2f}"


def number(value: float | None, form: str, unit: str = "") -> str:
    """Writes a number by a format, with its unit; a dash where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


def markdown_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a table, the first row of which is its heading."""
    heading, *body = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows)
    yield f"| {heading} |"
    yield f"|{'---|' * len(rows[0])}"
    yield from (f"| {row} |" for row in body)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows with every digit; their columns are all the keys that any of them has."""
    columns = dict.fromkeys(key for row in rows for key in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)
