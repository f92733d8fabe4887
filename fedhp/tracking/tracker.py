"""The tracker protocol, what a tracker is told at the start, and the fan-out to several."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fedhp.data import Normalisation
from fedhp.errors import RecordError
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.rows import RoundReport
from fedhp.tracking.totals import Summary

if TYPE_CHECKING:
    from fedhp.scenario.schema import Scenario

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """What is known of a run before its first round.

    Attributes:
        scenario: The resolved scenario.
        layout: How the full model is wired.
        devices: Per device class, the number of clients.
        budgets: Per device class, the memory budget in bytes; None where there is none.
        params_full: Parameters of the full model.
        training_bytes_full: The memory model's bytes to train the full model at the scenario's
            batch size.
        input_shape: The shape of one sample.
        num_classes: The number of classes to tell apart.
        partition: Per client that plays a part of the scenario's data set, its training samples per label.
        owners: The name in the data of each client that plays an owner of samples.
        normalisation: What brings the data's raw samples to those that the model takes.
        label_names: The classes' names, in order; none where they have numbers only.
    """

    scenario: "Scenario"
    layout: Layout
    devices: Mapping[str, int]
    budgets: Mapping[str, int | None]
    params_full: int
    training_bytes_full: int
    input_shape: tuple[int, ...]
    num_classes: int
    partition: Mapping[int, Sequence[int]] = field(default_factory=dict)
    owners: Mapping[int, str] = field(default_factory=dict)
    normalisation: Normalisation | None = None
    label_names: tuple[str, ...] = ()


class Tracker(Protocol):
    """Told what happens in a run; the methods are called in the order in which they stand here."""

    def on_start(self, plan: RunPlan) -> None:
        """Called once, before anything else."""
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
