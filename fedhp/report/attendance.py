"""What became of the devices of a run, beside its training: who came and went, and what guards saw."""

from typing import Any, NamedTuple

from fedhp.records.result import RunResult
from fedhp.records.wording import is_attendance, round_told
from fedhp.report import series
from fedhp.sizes import format_size

MOST_EVENTS = 50


class Event(NamedTuple):
    """Before which round a device came, went or was left out, or the run went on; and how that is told."""

    before: str
    what: str


class Watched(NamedTuple):
    """What the guards of a class's devices saw, as texts."""

    name: str
    rounds: str
    shortages: str
    left: str


def events(run: RunResult) -> tuple[list[Event], int]:
    """Returns the first events of the devices, and how many more there are; none of a simulation's."""
    try:
        log = (run.folder / "events.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [], 0
    found, before = [], "the first"
    for line in log.splitlines():
        text = line.partition(" ")[2]
        if (told := round_told(text)) is not None:
            before = f"round {told + 1}"
        elif is_attendance(text):
            found.append(Event(before, text))
    return found[:MOST_EVENTS], max(0, len(found) - MOST_EVENTS)


def watched(run: RunResult) -> list[Watched]:
    """Returns a row per device class on whose devices a guard watched; none where none did."""
    rows: series.Frame = run.clients[run.clients["num_shortages"].notna()]
    return [_watched(str(name), own) for name, own in rows.groupby("device_class", sort=False)]


def _watched(name: str, own: Any) -> Watched:
    left, short = own["memory_left_bytes"].min(), own["num_shortages"]
    least = "-" if left != left else format_size(left)
    return Watched(name, f"{len(own):,}", f"{short.sum():.0f}, in {(short > 0).sum()} client rounds", least)
