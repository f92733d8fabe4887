"""A comparison's tables, for the terminal, as Markdown and as CSV."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedhp.comparison.rows import Row
from fedhp.studies.writing import number, spread, write_csv


@dataclass(frozen=True)
class Tables:
    """A comparison's figures.

    Attributes:
        runs: A row per run.
        arms: A row per strategy and value.
        classes: A row per strategy, value and device class.
        pairs: A row per pair of arms.
    """

    runs: Sequence[Row]
    arms: Sequence[Row]
    classes: Sequence[Row]
    pairs: Sequence[Row]


_LEGEND = """
Accuracies in percent on the held-out set, means over seeds with their standard deviation. Worst class: the
device class, of those that take part, of the lowest accuracy on its own samples over the last fifth of the
rounds ({measured}); the mean of each seed's worst, which may not be the same class.
Memory is what was measured while devices trained, in MiB: the mean over clients and rounds, and the largest
peak. Up and down: MiB sent in the whole run. Seconds are those of one process among others, and rough.
"""

_PAIRS = """
The row's last accuracy less the column's, in points, paired over seeds; in brackets the p of a two-sided
paired t-test, not corrected for the number of pairs. With few seeds a large p says little.
"""

Column = tuple[str, Callable[[Row], str]]


def _number(key: str, form: str, unit: str = "") -> Callable[[Row], str]:
    return lambda row: number(row[key], form, unit)


def _spread(key: str) -> Callable[[Row], str]:
    return lambda row: spread(row[key], row[f"{key}_deviation"])


def name(row: Row, prefix: str = "") -> str:
    """Returns what an arm is called: its strategy, and the value of the varied key."""
    strategy, value = row[f"{prefix}strategy"], row[f"{prefix}value"]
    return f"{strategy} {value}".strip()


_WORST = _number("worst_class_accuracy", ".1f")

# What a terminal of 80 columns has room for, and the rest.
_SHORT: tuple[Column, ...] = (
    ("strategy", name),
    ("last", _spread("last")),
    ("worst class", _WORST),
    ("smaller", _number("compression", ".1f", "x")),
    ("memory", _number("memory_mean", ".2f")),
    ("up", _number("bytes_up", ",.0f")),
)
_LONG: tuple[Column, ...] = (
    ("strategy", name),
    ("seeds", lambda row: str(row["seeds"])),
    ("last accuracy", _spread("last")),
    ("best", _number("best", ".2f")),
    ("worst class", lambda row: f"{_WORST(row)} {row['worst_class']}".strip()),
    ("compression", _number("compression", ".1f", "x")),
    ("memory, mean", _number("memory_mean", ".2f")),
    ("memory, peak", _number("memory_peak", ".2f")),
    ("violations", _number("violations", ".0f")),
    ("up", _number("bytes_up", ",.1f")),
    ("down", _number("bytes_down", ",.1f")),
    ("seconds", _number("seconds", ".0f")),
)
_CLASSES: tuple[Column, ...] = (
    ("strategy", name),
    ("class", lambda row: row["device_class"]),
    ("budget", _number("budget", ".2f")),
    ("memory, mean", _number("memory_mean", ".2f")),
    ("memory, peak", _number("memory_peak", ".2f")),
    ("accuracy", _number("accuracy", ".1f")),
)


def show(console: Console, tables: Tables) -> None:
    """Prints the arms, the best first."""
    table = Table(box=None, header_style="bold")
    for title, _ in _SHORT:
        table.add_column(title, justify="left" if title == "strategy" else "right", no_wrap=True)
    for row in by_accuracy(tables.arms):
        table.add_row(*(said(row) for _, said in _SHORT))
    console.print(table)
    console.print(
        "last: accuracy, % (± over seeds); worst class: accuracy on its own samples;\n"
        "memory: mean while training, MiB; up: sent by the clients, MiB",
        style="dim",
        highlight=False,
    )


def by_accuracy(arms: Sequence[Row]) -> list[Row]:
    """Returns the arms, the most accurate first, those without a result last."""
    return sorted(arms, key=lambda row: -(row["last"] if row["last"] is not None else -1.0))


def write(root: Path, title: str, tables: Tables, held_out: bool) -> None:
    """Writes ``runs.csv``, ``table.csv``, ``classes.csv`` and ``pairs.csv``, and ``table.md`` for people."""
    files = {
        "runs": tables.runs,
        "table": tables.arms,
        "classes": tables.classes,
        "pairs": tables.pairs,
    }
    for file, rows in files.items():
        write_csv(root / f"{file}.csv", rows)
    (root / "table.md").write_text("\n".join(_markdown(title, tables, held_out)) + "\n", encoding="utf-8")


def _markdown(title: str, tables: Tables, held_out: bool) -> Iterator[str]:
    yield f"# {title}\n"
    yield from _table(_LONG, by_accuracy(tables.arms))
    for row in tables.arms:
        if row["reason"]:
            yield f"\n- {name(row)}: {row['reason']}"
    measured = "of the received model on samples held out" if held_out else "on those trained on"
    yield _LEGEND.format(measured=measured)
    yield "## By device class\n"
    yield from _table(_CLASSES, tables.classes)
    if tables.pairs:
        yield "\n## In pairs\n"
        yield from _matrix(by_accuracy(tables.arms), tables.pairs)
        yield _PAIRS


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[str]:
    yield f"| {' | '.join(title for title, _ in columns)} |"
    yield f"|{'---|' * len(columns)}"
    yield from (f"| {' | '.join(said(row) for _, said in columns)} |" for row in rows)


def _matrix(arms: Sequence[Row], pairs: Sequence[Row]) -> Iterator[str]:
    names = [name(row) for row in arms if row["last"] is not None]
    known: dict[tuple[str, str], str] = {}
    for pair in pairs:
        one, other = name(pair), name(pair, "other_")
        known[one, other], known[other, one] = _difference(pair, 1), _difference(pair, -1)
    yield f"| | {' | '.join(names)} |"
    yield f"|{'---|' * (len(names) + 1)}"
    for one in names:
        yield f"| {one} | {' | '.join(known.get((one, other), '') for other in names)} |"


def _difference(pair: Mapping[str, Any], sign: int) -> str:
    chance = "" if pair["p"] is None else f" ({pair['p']:.2g})"
    return f"{sign * pair['points']:+.2f}{chance}"
