"""What was found of two records, as texts for a terminal and a page."""

from collections.abc import Mapping
from typing import Any

from fedhp.bounds import one_line
from fedhp.records.result import RunResult
from fedhp.records.wording import percent, rounds
from fedhp.report.facts import Fact
from fedhp.sizes import format_size
from fedhp.twins.measures import MEASURES
from fedhp.twins.result import RecordComparison

_NONE = "-"
_SMALL = 0.1
_MOST_REASONS = 20
HEADING = ("simulated", "real", "real / simulated")
MEANING = """\
Means, and their ratio with its standard deviation, are over the client rounds that succeeded in both runs; \
of what is the server's, over rounds. *: there are none, and each mean is over its own run's. same: equal to \
the bit. Memory is the peak in a client round; what was sent are payloads.
"""


def tables(found: RecordComparison) -> dict[str, list[list[str]]]:
    """Returns, of the whole fleet and of each device class, a line per figure: its name and three cells."""
    lines: dict[str, list[list[str]]] = {}
    for row in found.figures.to_dict("records"):
        lines.setdefault(one_line(row["device_class"]), []).append(_line(row))
    return lines


def _line(row: Mapping[Any, Any]) -> list[str]:
    cells = (_value(row[name], row["unit"]) for name in ("simulated", "real"))
    ratio = _ratio(row["ratio"], row["ratio_deviation"])
    apart = row["over"] == "mean" and not row["pairs"] and ratio != _NONE
    return [MEASURES[row["figure"]].said, *cells, f"{ratio} *" if apart else ratio]


def _value(value: float, unit: str) -> str:
    if value != value:
        return _NONE
    if unit == "bytes":
        return format_size(value)
    if unit == "share":
        return percent(value)
    return f"{_digits(value)} s" if unit == "seconds" else f"{value:,.0f}"


def _ratio(ratio: float, deviation: float) -> str:
    if ratio != ratio:
        return _NONE
    if ratio == 1 and not deviation > 0:
        return "same"
    spread = (
        "" if deviation != deviation else f" ± {deviation:.2f}" if ratio >= _SMALL else f" ± {deviation:.2g}"
    )
    return f"{_digits(ratio)}{spread}"


def _digits(value: float) -> str:
    """Writes a number, 0 or more, with two decimals, or with two digits that tell where it is small."""
    return f"{value:,.2f}" if value >= _SMALL or not value else f"{value:.2g}"


def abouts(found: RecordComparison) -> list[Fact]:
    """Returns which runs these are, in a few words."""
    return [_about("simulated", found.simulated), _about("real", found.real)]


def _about(name: str, run: RunResult) -> Fact:
    summary, clients = run.summary, run.clients["client"].nunique()
    ended = "" if summary["status"] == "finished" else f", {summary['status']}"
    note = f"{run.folder.name}: {clients} clients, seed {summary['seed']}{ended}"
    return Fact(name, rounds(summary["rounds"]), note)


def said_alike(found: RecordComparison) -> str:
    """Says how far the two runs went the same way, and how alike their last models are."""
    alike = found.likeness.rounds
    if not alike:
        way = "the models differ before training already"
    else:
        until = "after every round" if alike > found.rounds else f"up to round {alike - 1}"
        way = f"same structure, accuracy and loss {until}, to the bit"
    return f"{way}; {found.likeness}"


def said_failures(found: RecordComparison) -> list[list[str]]:
    """Returns the reasons for which clients failed, the most frequent first, and in how many rounds."""
    table: Any = found.failures
    most = table.loc[(table["simulated"] + table["real"]).sort_values(ascending=False, kind="stable").index]
    rows = most.head(_MOST_REASONS).itertuples(index=False)
    return [
        [one_line(row.device_class), one_line(row.failure), f"{row.simulated:,}", f"{row.real:,}"]
        for row in rows
    ]
