"""A study's table, for the terminal, as Markdown and as CSV."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedhp.sweep.cell import Study
from fedhp.sweep.texts import Row, markdown_table, number, spread, write_csv

COLUMNS = (
    *("arm", "seeds", "last accuracy", "best", "below dense"),
    *("compression", "memory, end", "memory, mean", "time"),
)
_SHORT = {"last accuracy": "last", "compression": "smaller"}  # a terminal is narrow

_LEGEND = """
Accuracies in percent, means over seeds with their standard deviation; `below dense` in points. Memory is the
memory model's, of the final network and in the mean over the training, relative to the dense network's; time
is that of training, relative to the dense network of the same seed.
"""


def write_tables(root: Path, study: Study, rows: Sequence[Row], arms: Sequence[Row]) -> None:
    """Writes ``cells.csv`` and ``table.csv``, with every digit, and ``table.md``, for people."""
    write_csv(root / "cells.csv", rows)
    write_csv(root / "table.csv", arms)
    (root / "table.md").write_text("\n".join(_markdown(study, rows, arms)), encoding="utf-8")


def show_tables(console: Console, study: Study, arms: Sequence[Row]) -> None:
    """Prints a table per scenario, which fits 80 columns, and the notes below."""
    for scenario in scenarios(arms):
        table = Table(title=scenario, title_justify="left", box=None, header_style="bold")
        table.padding, table.pad_edge = (0, 1, 0, 0), False
        for column in COLUMNS:
            first = column == "arm"
            heading = _SHORT.get(column, column).replace(" ", "\n")
            table.add_column(heading, justify="left" if first else "right", no_wrap=first)
        for row in arms:
            if row["scenario"] == scenario:
                table.add_row(*cells(row, study.names))
        console.print(table)
    for note in study.notes:
        console.print(note, markup=False, highlight=False)


def scenarios(arms: Sequence[Row]) -> list[str]:
    """Returns the scenarios of a table, in order."""
    return list(dict.fromkeys(row["scenario"] for row in arms))


def cells(row: Row, names: Mapping[str, str]) -> list[str]:
    """Returns an arm's row as texts, one per entry of `COLUMNS`."""
    return [
        _arm(row, names),
        str(row["seeds"]),
        spread(row["last"], row["last_deviation"]),
        number(row["best"], ".2f"),
        number(row["below_dense"], "+.2f"),
        number(row["compression"], ".1f", "x"),
        number(row["memory_end"], ".3f"),
        number(row["memory_mean"], ".3f"),
        number(row["time"], ".2f"),
    ]


def _arm(row: Row, names: Mapping[str, str]) -> str:
    target = "" if row["target"] == 1 else f" {row['target']:g}x"
    return str(names.get(row["arm"], row["arm"])) + target


def _markdown(study: Study, rows: Sequence[Row], arms: Sequence[Row]) -> Iterator[str]:
    yield f"# {study.title}"
    yield from (f"\n{note}" for note in study.notes)
    for scenario in scenarios(arms):
        own = [row for row in arms if row["scenario"] == scenario]
        yield f"\n## {scenario}\n"
        yield from markdown_table([COLUMNS, *(cells(row, study.names) for row in own)])
        yield from _causes([row for row in rows if row["scenario"] == scenario], study.names)
    yield _LEGEND


def _causes(rows: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    """Says why cells have no record: a line for the seeds of an arm that have one cause."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["reason"]:
            place = (_arm(row, names), row["status"], row["reason"])
            seeds.setdefault(place, []).append(str(row["seed"]))
    if seeds:
        yield ""
    for (arm, status, reason), own in seeds.items():
        yield f"- {arm}, seed {', '.join(own)}, {status}: {reason}"
