"""Published figures beside ours: for the terminal, as Markdown and CSV, and as a picture."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedhp.errors import MissingExtraError
from fedhp.studies.figure import new_figure, save
from fedhp.studies.published.rows import cell_rows, line_rows
from fedhp.studies.published.tables import TABLES
from fedhp.sweep.cell import Outcome, Study
from fedhp.sweep.texts import Row, markdown_table, number, spread, write_csv

_logger = logging.getLogger("fedhp")

_ACCURACIES = ("run", "seeds", "published", "last", "best", "difference", "minutes")
_ROUNDS = ("run", "seeds", "published", "rounds", "best", "difference", "minutes")
_LEGEND = """
Accuracies in percent on the test samples, means over seeds with their standard deviation. The difference is
ours, {reads}, less what is published. Minutes are those of one run here.
"""


def conclude(study: Study, outcomes: Mapping[str, Outcome], root: Path, console: Console) -> None:
    """Writes ``cells.csv``, ``table.csv``, ``table.md`` and ``figure``, and shows the tables."""
    rows = cell_rows(study.cells, outcomes, root)
    lines = line_rows(rows)
    write_csv(root / "cells.csv", rows)
    write_csv(root / "table.csv", lines)
    (root / "table.md").write_text("\n".join(_markdown(study, rows, lines)), encoding="utf-8")
    _show(console, study, lines)
    try:
        draw(root, lines)
    except MissingExtraError as error:
        _logger.warning("%s", error)
    _logger.info("study: %s", root)


def _parted(lines: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for name in dict.fromkeys(line["table"] for line in lines):
        yield name, [line for line in lines if line["table"] == name]


def columns(name: str) -> tuple[str, ...]:
    """Returns the headings of a published table."""
    return _ROUNDS if TABLES[name].reads == "rounds" else _ACCURACIES


def texts(line: Row) -> list[str]:
    """Returns a line as texts, one per entry of `columns`."""
    counts = line["reads"] == "rounds"
    published = f"{line['published']:g}" if counts else spread(line["published"], line["published_deviation"])
    minutes = None if line["seconds"] is None else line["seconds"] / 60
    return [
        line["case"],
        str(line["seeds"]),
        published,
        _rounds(line) if counts else spread(line["last"], line["last_deviation"]),
        spread(line["best"], line["best_deviation"]),
        number(line["difference"], "+.1f" if counts else "+.2f"),
        number(minutes, ".0f"),
    ]


def _rounds(line: Row) -> str:
    """Writes the rounds to the target; of fewer seeds than there are, of how many."""
    text = spread(line["rounds"], line["rounds_deviation"])
    return text if line["reached"] in (0, line["seeds"]) else f"{text}, {line['reached']} of {line['seeds']}"


def _markdown(study: Study, rows: Sequence[Row], lines: Sequence[Row]) -> Iterator[str]:
    yield f"# {study.title}"
    yield from (f"\n{note}" for note in study.notes)
    for name, own in _parted(lines):
        yield f"\n## {TABLES[name].title}\n"
        yield from markdown_table([columns(name), *map(texts, own)])
        yield _LEGEND.format(reads=_read(name))
        yield TABLES[name].about
    reasons = [row for row in rows if row["reason"]]
    if reasons:
        yield ""
    for row in reasons:
        yield f"- {row['table']}/{row['case']}, seed {row['seed']}, {row['status']}: {row['reason']}"


def _read(name: str) -> str:
    return {"last": "of the last round", "best": "of the best round", "rounds": "in rounds"}[
        TABLES[name].reads
    ]


def _show(console: Console, study: Study, lines: Sequence[Row]) -> None:
    for name, own in _parted(lines):
        table = Table(title=TABLES[name].title, title_justify="left", box=None, header_style="bold")
        table.padding, table.pad_edge = (0, 1, 0, 0), False  # a terminal is narrow
        for column in columns(name):
            table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
        for line in own:
            table.add_row(*texts(line))
        console.print(table)
    for note in study.notes:
        console.print(note, markup=False, highlight=False)


def draw(root: Path, lines: Sequence[Row]) -> list[Path]:
    """Draws a panel per table, each line's published figure and ours beside it, and returns the files.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    parted = list(_parted(lines))
    longest = max(len(own) for _, own in parted)
    figure = new_figure(4.8 * len(parted), 1.6 + 0.3 * longest)
    for axes, (name, own) in zip(figure.subplots(1, len(parted), squeeze=False)[0], parted, strict=True):
        _panel(axes, name, own)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return save(figure, root)


def _panel(axes: Any, name: str, own: Sequence[Row]) -> None:
    reads = TABLES[name].reads
    for label, key, spreads, colour, marker in (
        ("published", "published", "published_deviation", "0.4", "D"),
        ("fedhp", reads, f"{reads}_deviation", "C0", "o"),
    ):
        there = [(place, line) for place, line in enumerate(own) if line[key] is not None]
        axes.errorbar(
            [line[key] for _, line in there],
            [place for place, _ in there],
            xerr=[line[spreads] or 0.0 for _, line in there],
            label=label,
            color=colour,
            marker=marker,
            fillstyle="none" if key == "published" else "full",
            linestyle="none",
            capsize=3,
        )
    axes.set_yticks(range(len(own)), [line["case"] for line in own])
    axes.invert_yaxis()
    axes.set_title(TABLES[name].title.partition(":")[0], fontsize="medium")
    axes.set_xlabel("rounds" if reads == "rounds" else f"accuracy of the {reads} round, %")
    axes.grid(alpha=0.3)
