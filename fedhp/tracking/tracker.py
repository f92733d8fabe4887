"""The tracker protocol, what a tracker is told at the start, and the fan-out to several."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from fedhp.errors import RecordError
from fedhp.model.state import ModelState
from fedhp.records.plan import RunPlan
from fedhp.records.rows import RoundReport
from fedhp.records.summary import Summary

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Told what happens in a run; the methods are called in the order in which they stand here."""

    def on_start(self, plan: RunPlan) -> None:
        """Called once, before anything else."""
        ...

    def on_past(self, report: RoundReport) -> None:
        """Called, where a run goes on, for each round that was held before it was cut short."""
        ...

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Called after every round with the new global model; for round 0 too, before training."""
        ...

    def on_note(self, text: str) -> None:
        """Called at any time after the start with something worth a line."""
        ...

    def on_finish(self, summary: Summary) -> None:
        """Called once after the last round; not when the run fails or is interrupted."""
        ...

    def on_failure(self, cause: str) -> None:
        """Called once when an error ends the run, instead of `on_finish`."""
        ...

    def close(self) -> None:
        """Releases files and terminal; always called, after Ctrl-C or an error too."""
        ...


class Silent:
    """A tracker that does nothing: for those that want to hear of some things alone."""

    def on_start(self, plan: RunPlan) -> None:
        """Does nothing."""

    def on_past(self, report: RoundReport) -> None:
        """Does nothing."""

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Does nothing."""

    def on_note(self, text: str) -> None:
        """Does nothing."""

    def on_finish(self, summary: Summary) -> None:
        """Does nothing."""

    def on_failure(self, cause: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Trackers:
    """Tells several trackers; itself a tracker.

    Hours of training are worth more than a line in a display, so a tracker that fails is logged and the run
    goes on. A `RecordError` ends it: what nobody can look at later has not been run.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def on_start(self, plan: RunPlan) -> None:
        """Tells the start.

        Raises:
            RecordError: If a tracker cannot record the run.
        """
        for tracker in self._trackers:
            try:
                tracker.on_start(plan)
            except RecordError:
                raise
            except Exception as error:
                _log_failure(tracker, error)

    def on_past(self, report: RoundReport) -> None:
        """Tells a round that was held before the run was cut short."""
        self._tell(lambda tracker: tracker.on_past(report))

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Tells a round.

        Raises:
            RecordError: If a tracker cannot record it.
        """
        self._tell(lambda tracker: tracker.on_round(report, state))

    def on_note(self, text: str) -> None:
        """Tells a note."""
        self._tell(lambda tracker: tracker.on_note(text))

    def on_finish(self, summary: Summary) -> None:
        """Tells the end.

        Raises:
            RecordError: If a tracker cannot record it.
        """
        self._tell(lambda tracker: tracker.on_finish(summary))

    def on_failure(self, cause: str) -> None:
        """Tells why the run ends early."""
        self._tell(lambda tracker: tracker.on_failure(cause))

    def close(self) -> None:
        """Closes every tracker, whatever the others do."""
        self._tell(lambda tracker: tracker.close())

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        unrecorded: RecordError | None = None
        for tracker in self._trackers:
            try:
                call(tracker)
            except RecordError as error:
                unrecorded = error
            except Exception as error:
                _log_failure(tracker, error)
        if unrecorded is not None:
            raise unrecorded


def _log_failure(tracker: Tracker, error: Exception) -> None:
    logger.warning(
        "%s failed, and the run does not depend on it: %s: %s",
        type(tracker).__name__,
        type(error).__name__,
        error,
        exc_info=logger.isEnabledFor(logging.DEBUG),
    )
