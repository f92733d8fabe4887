"""A comparison's tables as texts, for a page, the terminal, Markdown, and as CSV."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedhp.comparison.facets import Facet
from fedhp.comparison.result import Result
from fedhp.comparison.rows import Row
from fedhp.studies.writing import number, spread, write_csv

_MOST_PAIRED = 12  # arms, for whose pairs 80 columns have room

MEANING = """\
Accuracies in percent on the held-out set, means over seeds with their standard deviation. Worst class: the
device class on whose devices' own data the last global model is worst, of all classes, whether or not the
strategy lets them take part ({measured}); the mean of each seed's worst, which may not be the same class.
Memory is what was measured while devices trained, in MiB: the mean over clients, rounds and seeds, and the
largest peak of all. Violations: rounds of clients over their budget, of all seeds together. Up and down: MiB
sent in the whole run; seconds are those of one process among others, and rough: means over seeds.
"""

PAIRS = """\
The row's last accuracy less the column's, in points, paired over seeds; in brackets the p of a two-sided
paired t-test, not corrected for the number of pairs. With few seeds a large p says little.
"""

Column = tuple[str, Callable[[Row], str]]
Texts = list[list[str]]


def _number(key: str, form: str, unit: str = "") -> Callable[[Row], str]:
    return lambda row: number(row[key], form, unit)


def _spread(key: str) -> Callable[[Row], str]:
    return lambda row: spread(row[key], row[f"{key}_deviation"])


_WORST = _number("worst_class_accuracy", ".1f")

# What a terminal of 80 columns has room for, and the rest.
_SHORT: tuple[Column, ...] = (
    ("last, %", _spread("last")),
    ("worst\nclass, %", _WORST),
    ("smaller", _number("compression", ".1f", "x")),
    ("memory,\nMiB", _number("memory_mean_mib", ".2f")),
    ("up,\nMiB", _number("up_mib", ",.0f")),
)
_LONG: tuple[Column, ...] = (
    ("seeds", lambda row: str(row["seeds"])),
    ("last accuracy", _spread("last")),
    ("best", _spread("best")),
    ("worst class", lambda row: f"{_WORST(row)} {row['worst_class']}".strip()),
    ("compression", _number("compression", ".1f", "x")),
    ("memory, mean", _number("memory_mean_mib", ".2f")),
    ("memory, peak", _number("memory_peak_mib", ".2f")),
    ("violations", _number("violations", ".0f")),
    ("up", _number("up_mib", ",.1f")),
    ("down", _number("down_mib", ",.1f")),
    ("seconds", _number("seconds", ".0f")),
)
_CLASSES: tuple[Column, ...] = (
    ("class", lambda row: row["device_class"]),
    ("budget", _number("budget_mib", ".2f")),
    ("memory, mean", _number("memory_mean_mib", ".2f")),
    ("memory, peak", _number("memory_peak_mib", ".2f")),
    ("accuracy", _number("accuracy", ".1f")),
    ("of what it receives", _number("accuracy_received", ".1f")),
)


def arm_texts(facet: Facet) -> Texts:
    """Returns the table of arms, its heading first."""
    return _texts(_LONG, facet.arms.items())


def class_texts(facet: Facet, classes: Sequence[Row]) -> Texts:
    """Returns the table of the arms' device classes, its heading first."""
    rows = [(label, row) for label, arm in facet.arms.items() for row in classes if _same(arm, row)]
    return _texts(_CLASSES, rows)


def pair_texts(facet: Facet, pairs: Sequence[Row]) -> Texts:
    """Returns the differences of all pairs with their p, the arms' names above and on the left."""
    body = [[one, *(_difference(pairs, facet, one, other) for other in facet.done)] for one in facet.done]
    return [["", *facet.done], *body]


def _texts(columns: Sequence[Column], rows: Any) -> Texts:
    heading = ["strategy", *(title for title, _ in columns)]
    return [heading, *([label, *(said(row) for _, said in columns)] for label, row in rows)]


def _same(arm: Row, row: Row, prefix: str = "") -> bool:
    return all(arm[key] == row[f"{prefix}{key}"] for key in ("strategy", "value"))


def _pair(pairs: Sequence[Row], facet: Facet, one: str, other: str) -> tuple[float, float | None] | None:
    """Returns the points by which an arm is better than another, and the p of that."""
    first, second = facet.arms[one], facet.arms[other]
    for pair in pairs:
        if _same(first, pair) and _same(second, pair, "other_"):
            return pair["points"], pair["p"]
        if _same(second, pair) and _same(first, pair, "other_"):
            return -pair["points"], pair["p"]
    return None


def _difference(pairs: Sequence[Row], facet: Facet, one: str, other: str) -> str:
    found = _pair(pairs, facet, one, other)
    if found is None:
        return ""
    points, p = found
    return f"{points:+.2f}" + ("" if p is None else f" ({p:.2g})")


def show(console: Console, result: Result) -> None:
    """Prints, per facet, the arms, the best first, and how significant their differences are."""
    console.print(_heading(result), style="bold", markup=False, highlight=False)
    for facet in result.facets:
        if facet.title:
            console.print(f"\n{facet.title}", style="bold", markup=False, highlight=False)
        console.print(_arms_table(facet))
        if 1 < len(facet.done) <= _MOST_PAIRED and len(result.seeds) > 1:
            console.print(
                "\np of the difference in last accuracy, paired over seeds (-: not to be told)", style="bold"
            )
            console.print(_chances_table(facet, result.tables.pairs))
    console.print(
        f"\nlast: accuracy, ± over seeds; worst class: that of the last model on its devices'\n"
        f"{own_samples(result)}; memory: mean while training; up: sent by the clients;\n"
        "all else in table.md",
        style="dim",
        highlight=False,
    )


def _heading(result: Result) -> str:
    """Says what is compared, over which seeds, and what is varied."""
    manifest = result.manifest
    varied = f"; varied: {manifest.key} = {', '.join(result.values)}" if manifest.key else ""
    return f"{manifest.scenario}, {said_seeds(result.seeds)}{varied}"


def said_seeds(seeds: Sequence[int]) -> str:
    """Writes rising seeds, such as ``seeds 0 to 2``."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"seeds {seeds[0]} to {seeds[-1]}" if whole else f"seeds {', '.join(map(str, seeds))}"


def _arms_table(facet: Facet) -> Table:
    table = _new_table([title for title, _ in _SHORT])
    for number_, (label, row) in enumerate(facet.arms.items(), 1):
        table.add_row(str(number_), escape(label), *(escape(said(row)) for _, said in _SHORT))
    return table


def _chances_table(facet: Facet, pairs: Sequence[Row]) -> Table:
    """Returns each pair once: an arm's row has the arms above it, by their numbers."""
    done = list(facet.done)
    table = _new_table([str(number_) for number_ in range(1, len(done))])
    for place, label in enumerate(done):
        chances = [_chance(_pair(pairs, facet, label, other)) for other in done[:place]]
        table.add_row(str(place + 1), escape(label), *chances)
    return table


def _new_table(titles: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("strategy", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _chance(found: tuple[float, float | None] | None) -> str:
    if found is None or found[1] is None:
        return "-"
    return f"{found[1]:.2f}".lstrip("0") if found[1] >= 0.01 else "<.01"


def measured(result: Result) -> str:
    """Says which of their own samples devices are judged on."""
    held_out, trained_on = "samples that the devices hold out", "samples that the devices train on"
    if len(result.held_out) > 1:
        return f"{held_out} where data.local_test is above 0, otherwise {trained_on}"
    return held_out if True in result.held_out else trained_on


def own_samples(result: Result) -> str:
    """Says briefly which of their own samples devices are judged on."""
    return "own samples, held out" if result.held_out == {True} else "own samples"


def write(result: Result) -> None:
    """Writes ``runs.csv``, ``table.csv``, ``classes.csv`` and ``pairs.csv``, and ``table.md`` for people."""
    tables, root = result.tables, result.root
    files = {
        "runs": tables.runs,
        "table": tables.arms,
        "classes": tables.classes,
        "pairs": tables.pairs,
    }
    for file, rows in files.items():
        write_csv(root / f"{file}.csv", rows)
    (root / "table.md").write_text("\n".join(_markdown(result)) + "\n", encoding="utf-8")


def reasons(facet: Facet) -> list[str]:
    """Says why arms, or single seeds of them, have no result."""
    return [f"{label}: {row['reason']}" for label, row in facet.arms.items() if row["reason"]]


def _markdown(result: Result) -> Iterator[str]:
    yield f"# {result.manifest.title}\n"
    yield f"{_heading(result)}.\n"
    for facet in result.facets:
        if facet.title:
            yield f"## {facet.title}\n"
        yield from _table(arm_texts(facet))
        yield ""
        yield from (f"- {reason}\n" for reason in reasons(facet))
    yield MEANING.format(measured=measured(result))
    for title, texts, said in (
        ("By device class", lambda facet: class_texts(facet, result.tables.classes), ""),
        ("In pairs", lambda facet: pair_texts(facet, result.tables.pairs), PAIRS),
    ):
        for facet in result.facets:
            yield f"## {title}{f', {facet.title}' if facet.title else ''}\n"
            yield from _table(texts(facet))
            yield ""
        yield said


def _table(rows: Texts) -> Iterator[str]:
    heading, *body = rows
    yield f"| {' | '.join(heading)} |"
    yield f"|{'---|' * len(heading)}"
    yield from (f"| {' | '.join(row)} |" for row in body)
