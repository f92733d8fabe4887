"""What every run has around its training: who is told of it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedhp.errors import FedhpError
from fedhp.records.kept import Kept, forget
from fedhp.records.record import RunRecord
from fedhp.report.writing import drawn
from fedhp.scenario.schema import Scenario
from fedhp.terminal import OutputHandler
from fedhp.tracking.console import ConsoleTracker
from fedhp.tracking.tracker import Tracker, Trackers
from fedhp.tracking.wandb_tracker import WandbTracker


@contextmanager
def reporting(
    scenario: Scenario, folder: Path, show: bool = True, kept: Kept | None = None
) -> Iterator[Trackers]:
    """Opens the trackers, and closes them whatever happens.

    Args:
        scenario: What is run.
        folder: The run record.
        show: Whether the run is shown in the terminal.
        kept: Where a run that was cut short goes on.
    """
    record = RunRecord(folder, None if kept is None else kept.told)
    members: list[Tracker] = [record]
    if scenario.tracking.wandb.mode != "none":
        members.append(WandbTracker(scenario.tracking.wandb, folder, drawn))
    if show:
        members.append(ConsoleTracker(folder=folder))
    trackers = Trackers(members)
    with _notes_to(trackers):
        try:
            yield trackers
        except Exception as error:
            refused = isinstance(error, FedhpError)
            trackers.on_failure(str(error) if refused else f"{type(error).__name__}: {error}")
            raise
        finally:
            trackers.close()
    forget(folder)  # last of all: until then, a run that is killed as it ends goes on to end whole


@contextmanager
def _notes_to(trackers: Trackers) -> Iterator[None]:
    """Passes what is logged as a note (a lost worker, a dropped reply) to the trackers, which show it."""
    if not logging.getLogger().handlers and not logging.getLogger("fedhp").handlers:
        logging.getLogger("fedhp").addHandler(OutputHandler())
        logging.getLogger("fedhp").setLevel(logging.INFO)
    logger = logging.getLogger("fedhp.notes")
    handler = _Notes(trackers)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


class _Notes(logging.Handler):
    """Takes the notes of its own thread: another may be at another run, whose record they belong into."""

    def __init__(self, trackers: Trackers) -> None:
        super().__init__(logging.INFO)
        self._trackers = trackers
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._trackers.on_note(record.getMessage())
