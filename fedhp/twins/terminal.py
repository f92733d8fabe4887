"""What was found of two records in a terminal of 80 columns."""

from itertools import islice

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedhp.bounds import one_line
from fedhp.twins import texts
from fedhp.twins.result import RecordComparison

_LONGEST = 2000  # characters of a warning: scenarios may differ in much
_MOST_TABLES = 9  # the fleet's and those of eight classes


def show(found: RecordComparison) -> None:
    """Prints which runs these are, what keeps them from being comparable, and a table per device class."""
    console = Console(highlight=False, emoji=False, markup=False)
    for fact in texts.abouts(found):
        console.print(f"{fact.name:<10} {fact.note}, {fact.value}")
    for caution in found.cautions:
        console.print(Padding(Text(f"warning: {one_line(caution, _LONGEST)}", "yellow"), (0, 0, 0, 2)))
    console.print(_table(found))
    if (left_out := len(texts.tables(found)) - _MOST_TABLES) > 0:
        console.print(f"classes that --out and --json tell of besides: {left_out}")
    for name, failure, *counts in texts.said_failures(found):
        console.print(f"failed, {name}, simulated {counts[0]}, real {counts[1]}: {failure}")
    console.print(f"\n{texts.said_alike(found)}")
    console.print(f"\n{texts.MEANING}", style="dim", end="")


def _table(found: RecordComparison) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    for title in texts.HEADING:
        table.add_column(title, justify="right", no_wrap=True)
    for name, lines in islice(texts.tables(found).items(), _MOST_TABLES):
        table.add_row(Text(name, "bold"))
        for line in lines:
            table.add_row(Padding(Text(line[0]), (0, 0, 0, 2)), *line[1:])
    return table
