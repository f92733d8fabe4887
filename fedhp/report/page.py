"""The page of a report: facts and figures, laid out by a template."""

from collections.abc import Sequence
from pathlib import Path

from fedhp.drawing.page import fill
from fedhp.drawing.plot import Picture, Plot
from fedhp.records.result import RunResult
from fedhp.report import attendance, facts, series
from fedhp.report.exported import exported

_HERE = Path(__file__).parent


def render(run: RunResult, pictures: Sequence[tuple[Plot, Picture | None]]) -> str:
    """Returns the page as HTML, which needs no other file and no network."""
    shown, more = facts.failures(run)
    events, more_events = attendance.events(run)
    return fill(
        _HERE / "page.html.j2",
        run=run,
        description=facts.description(run),
        facts=facts.facts(run),
        classes=facts.class_rows(run),
        more_classes=max(0, len(series.class_names(run)) - facts.MOST_CLASSES),
        accuracy=series.accuracy_name(run),
        judged=series.judged(run),
        first_of_last=series.first_of_last(run.rounds),
        failures=shown,
        more_failures=more,
        watched=attendance.watched(run),
        exported=exported(run),
        events=events,
        more_events=more_events,
        pictures=pictures,
        config=run.config.to_yaml(),
    )
