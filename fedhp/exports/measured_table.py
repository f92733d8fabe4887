"""What files cost, as a table in the terminal."""

from collections.abc import Sequence

from rich.table import Table

from fedhp.exports.measured import Measured
from fedhp.sizes import format_size


def measured_table(rows: Sequence[tuple[tuple[str, ...], Measured]], leads: tuple[str, ...]) -> Table:
    """Returns a row for each file that was measured.

    Args:
        rows: What each row begins with, and the file; one at least.
        leads: The headings of what rows begin with.
    """
    files = [one for _, one in rows]
    headings = ["time", "95 %", "size", "memory"]
    headings += ["energy"] * any(one.microjoules is not None for one in files)
    headings += ["x time", "x size", "x memory"] * (files[0].against is not None)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # 80 columns are few
    for lead in leads:
        table.add_column(lead, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for begins, one in rows:
        table.add_row(*begins, *(_cell(one, heading) for heading in headings))
    return table


def _cell(one: Measured, heading: str) -> str:
    """Returns what stands under a heading; a dash where it is not known."""
    beside = one.against
    cells = {
        "time": f"{one.microseconds:.1f} us",
        "95 %": f"{one.microseconds_p95:.1f} us",
        "size": format_size(one.num_bytes),
        "memory": "-" if one.memory_bytes is None else format_size(one.memory_bytes),
        "energy": "-" if one.microjoules is None else f"{one.microjoules:.0f} uJ",
    }
    if beside is not None:
        cells["x time"] = f"{beside.time:.2f}"
        cells["x size"] = f"{beside.size:.2f}"
        cells["x memory"] = "-" if beside.memory is None else f"{beside.memory:.2f}"
    return cells.get(heading, "-")
