"""A run in the terminal: a live display, or plain log lines where there is no terminal."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.live import Live

from fedhp.bounds import one_line
from fedhp.model.state import ModelState
from fedhp.records.classes import ClassRound, by_class
from fedhp.records.plan import RunPlan
from fedhp.records.rows import RoundReport
from fedhp.records.summary import Summary
from fedhp.records.wording import duration, failure, finish, percent, start
from fedhp.sizes import format_size
from fedhp.tracking.display import render
from fedhp.tracking.progress import Progress

logger = logging.getLogger("fedhp")


class ConsoleTracker:
    """Shows a run in the terminal; where the output is none, logs to the logger ``fedhp``.

    Args:
        console: Where to; by default standard output.
        folder: The run record, to name it at the end.
        clock: Seconds since any fixed time.
    """

    def __init__(
        self,
        console: Console | None = None,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console()
        self._folder = folder
        self._clock = clock
        self._progress: Progress | None = None
        self._live: Live | None = None
        self._draws = _can_draw(self._console)
        self._log = _Nothing() if self._draws else logger

    def on_start(self, plan: RunPlan) -> None:
        """Opens the display."""
        progress = self._progress = Progress(plan, self._clock)
        self._log.info(start(plan))
        if self._draws:
            # Redrawn between rounds too: a clock that stands still looks like a run that hangs.
            self._live = Live(
                get_renderable=lambda: render(progress, self._console.size),
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()

    def on_past(self, report: RoundReport) -> None:
        """Takes in the round."""
        assert self._progress is not None
        self._progress.recall(report)

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Shows the round."""
        assert self._progress is not None
        self._progress.add(report)
        for row in report.failures:
            self._note(failure(row))
        self._log.info(plain_line(report, self._progress))
        if self._live is not None:
            self._live.refresh()

    def on_note(self, text: str) -> None:
        """Shows the note."""
        self._note(one_line(text))

    def on_finish(self, summary: Summary) -> None:
        """Keeps the last picture, and writes the summary below it."""
        assert self._progress is not None
        self._progress.end("finished")
        self._stop()
        self._say(finish(summary))
        self._name_record()

    def on_failure(self, cause: str) -> None:
        """Keeps the last picture; the cause is shown by whoever called."""
        self._cut_short("failed")

    def close(self) -> None:
        """Gives the terminal back."""
        self._cut_short("interrupted")

    def _cut_short(self, status: Literal["failed", "interrupted"]) -> None:
        """Ends the display of a run that still goes on, and names its record."""
        if self._progress is not None and self._progress.status == "running":
            self._progress.end(status)
            self._stop()
            self._name_record()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _name_record(self) -> None:
        if self._folder is not None:
            self._say(f"record: {self._folder}")

    def _note(self, text: str) -> None:
        if self._progress is not None:
            self._progress.note(text)
        self._log.warning(text)

    def _say(self, text: str) -> None:
        if self._draws:
            self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._log.info(text)


def _can_draw(console: Console) -> bool:
    """Says whether the output is a terminal that can move its cursor and show block characters."""
    capable = console.is_terminal and not console.is_dumb_terminal
    return capable and console.encoding.lower().startswith("utf")


class _Nothing:
    """Takes the place of the logger where the live display shows the same."""

    def info(self, text: str) -> None:
        """Says nothing."""

    def warning(self, text: str) -> None:
        """Says nothing."""


def plain_line(report: RoundReport, progress: Progress) -> str:
    """Tells a round in one line that is not too long: the model, peak memory of each budget, time left."""
    failed = f", failures {len(report.failures)}" if report.failures else ""
    parts = [
        f"round {report.round}: accuracy {percent(report.accuracy)}, loss {report.loss:.4f}, "
        f"compression {report.compression:.2f}, replies {len(report.clients) - len(report.failures)}{failed}"
    ]
    classes = by_class(report)
    names = dict.fromkeys((*progress.plan.devices, *classes))  # some may have joined later
    peaks = [_peak(name, classes[name], progress) for name in names if name in classes]
    if peaks:
        parts.append(f"memory {', '.join(peaks)}")
    left = progress.seconds_left()
    if left is not None:
        parts.append(f"{duration(left)} left")
    return "; ".join(parts)


def _peak(name: str, seen: ClassRound, progress: Progress) -> str:
    peak, budget = seen.memory_peak_bytes, progress.plan.budgets.get(name)
    if peak is None:
        return f"{name} -"
    return f"{name} {peak / budget:.0%}" if budget else f"{name} {format_size(peak)}"
