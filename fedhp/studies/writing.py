"""A study's table, for the terminal, as Markdown and as CSV."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedhp.studies.table import Row

COLUMNS = (
    *("arm", "seeds", "last accuracy", "best", "below dense"),
    *("compression", "memory, end", "memory, mean", "time"),
)


_LEGEND = """
Accuracies in percent, means over seeds with their standard deviation; `below dense` in points. Memory is the
memory model's, of the final network and in the mean over the training, relative to the dense network's; time
is that of training, relative to the dense network of the same seed.
"""


def write_tables(
    root: Path, title: str, cells: Sequence[Row], arms: Sequence[Row], names: Mapping[str, str]
) -> None:
    """Writes ``cells.csv`` and ``table.csv``, with every digit, and ``table.md``, for people."""
    _write_csv(root / "cells.csv", cells)
    _write_csv(root / "table.csv", arms)
    (root / "table.md").write_text("\n".join(_markdown(title, arms, names)), encoding="utf-8")


def show_tables(console: Console, arms: Sequence[Row]) -> None:
    """Prints a table per scenario, with the arms' short names: a terminal is narrow."""
    for scenario in scenarios(arms):
        table = Table(title=scenario, title_justify="left", box=None, header_style="bold")
        for column in COLUMNS:
            first = column == "arm"
            table.add_column(column, justify="left" if first else "right", no_wrap=first)
        for row in arms:
            if row["scenario"] == scenario:
                table.add_row(*cells(row))
        console.print(table)


def scenarios(arms: Sequence[Row]) -> list[str]:
    """Returns the scenarios of a table, in order."""
    return list(dict.fromkeys(row["scenario"] for row in arms))


def cells(row: Row, names: Mapping[str, str] | None = None) -> list[str]:
    """Returns an arm's row as texts, one per entry of `COLUMNS`."""
    arm = str((names or {}).get(row["arm"], row["arm"]))
    target = "" if row["target"] == 1 else f" {row['target']:g}x"
    return [
        arm + target,
        str(row["seeds"]),
        _spread(row["last"], row["last_deviation"]),
        _number(row["best"], ".2f"),
        _number(row["below_dense"], "+.2f"),
        _number(row["compression"], ".1f", "x"),
        _number(row["memory_end"], ".3f"),
        _number(row["memory_mean"], ".3f"),
        _number(row["time"], ".2f"),
    ]


def _spread(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if deviation is None else f"{value:.2f} ± {deviation:.2f}"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _markdown(title: str, arms: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    yield f"# {title}"
    for scenario in scenarios(arms):
        own = [row for row in arms if row["scenario"] == scenario]
        yield f"\n## {scenario}\n"
        yield f"| {' | '.join(COLUMNS)} |"
        yield f"|{'---|' * len(COLUMNS)}"
        yield from (f"| {' | '.join(cells(row, names))} |" for row in own)
        remarks = [(cells(row, names)[0], row["reason"]) for row in own if row["reason"]]
        if remarks:
            yield ""
            yield from (f"- {arm}: {reason}" for arm, reason in remarks)
    yield _LEGEND


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)
