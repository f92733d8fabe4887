"""A comparison's tables in a terminal of 80 columns."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedhp.comparison.facets import Facet
from fedhp.comparison.result import Result
from fedhp.comparison.texts import (
    WORST,
    Column,
    figure,
    heading,
    is_exported,
    mebibytes,
    own_samples,
    pair_of,
    said_few,
    said_identical,
    with_spread,
)
from fedhp.sweep.texts import Row

_MOST_PAIRED = 12  # arms, for whose pairs 80 columns have room

_COLUMNS: tuple[Column, ...] = (
    ("last, %", with_spread("last")),
    ("worst\nclass, %", WORST),
    ("smaller", figure("compression", ".1f", "x")),
    ("memory,\nMiB", mebibytes("memory_mean_mib")),
    ("up,\nMiB", mebibytes("up_mib")),
)
_SEEDS: Column = ("seeds", lambda row: str(row["seeds"]))


def show(console: Console, result: Result) -> None:
    """Prints, per facet, the arms, the best first, and how significant their differences are."""
    console.print(heading(result), style="bold", markup=False, highlight=False)
    for facet in result.facets:
        if facet.title:
            console.print(f"\n{facet.title}", style="bold", markup=False, highlight=False)
        console.print(_arms_table(facet, result.manifest.export))
        for said in said_identical(result, facet):
            console.print(said, markup=False, highlight=False)
        _show_chances(console, facet, result.tables.pairs)
    if few := said_few(result):
        console.print(f"\n{few}", highlight=False)
    console.print(
        "\nlast: accuracy, ± over seeds; worst class: the last model's on its devices'\n"
        f"{own_samples(result)}; memory: mean while training; up: sent by clients;\n"
        "p -: the difference does not vary; all else in table.md",
        style="dim",
        highlight=False,
    )


def _show_chances(console: Console, facet: Facet, pairs: Sequence[Row]) -> None:
    family = [row for row in pairs if row["facet"] == facet.title]
    if not family or len(facet.done) > _MOST_PAIRED or max(row["seeds"] for row in family) < 2:
        return
    tested = sum(row["p"] is not None for row in family)
    corrected = f", corrected for {tested} pairs (Holm)" if tested > 1 else ""
    said = f"\np of the difference in last accuracy over seeds{corrected}"
    console.print(said, style="bold", highlight=False)
    console.print(_chances_table(facet, pairs))


def _arms_table(facet: Facet, export: str) -> Table:
    """Returns the arms by number; how many seeds each has where that differs."""
    differ = len({row["seeds"] for row in facet.arms.values()}) > 1
    columns = (_SEEDS, *_COLUMNS) if differ else _COLUMNS
    if is_exported(facet):
        columns = (*columns, (f"sample,\nus in\n{export}", figure("latency_us", ".1f")))
    table = _new_table([title for title, _ in columns])
    for number, (label, row) in enumerate(facet.arms.items(), 1):
        table.add_row(str(number), escape(label), *(escape(said(row)) for _, said in columns))
    return table


def _chances_table(facet: Facet, pairs: Sequence[Row]) -> Table:
    """Returns each pair once: an arm's row has the arms above it, by their numbers."""
    done = list(facet.done)
    table = _new_table([str(number) for number in range(1, len(done))])
    for place, label in enumerate(done):
        chances = [_chance(pair_of(pairs, facet, other, label)) for other in done[:place]]
        table.add_row(str(place + 1), escape(label), *chances)
    return table


def _new_table(titles: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("strategy", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _chance(pair: Row | None) -> str:
    if pair is None or pair["p_holm"] is None:
        return "-"
    return f"{pair['p_holm']:.2f}".removeprefix("0") if pair["p_holm"] >= 0.01 else "<.01"
