"""What a live display knows of a run: in constant memory, however many rounds there are."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fedhp.records.classes import ClassRound, by_class
from fedhp.records.plan import RunPlan
from fedhp.records.rows import RoundReport
from fedhp.records.summary import Status

_BARS = "▁▂▃▄▅▆▇█"
_RECENT_ROUNDS = 20
_EVENTS = 8


@dataclass
class Trace:
    """A thinned series: at most ``limit`` points, evenly spaced from the first value on."""

    limit: int = 32
    values: list[float] = field(default_factory=list)
    _stride: int = 1
    _seen: int = 0

    def add(self, value: float) -> None:
        """Adds a value, if its turn has come."""
        if self._seen % self._stride == 0:
            self.values = [*self.values, value]
        self._seen += 1
        if len(self.values) > self.limit:
            self.values = self.values[::2]
            self._stride *= 2

    def sparkline(self) -> str:
        """Draws the series between its own least and greatest value."""
        values = [value for value in self.values if math.isfinite(value)]
        if len(values) < 2:
            return ""
        low, high = min(values), max(values)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((value - low) * scale)] for value in values)


class Progress:
    """The state of a run as seen so far.

    Attributes are replaced, never changed in place: the display is drawn by another thread.

    Args:
        plan: The run.
        clock: Seconds since any fixed time.
    """

    def __init__(self, plan: RunPlan, clock: Callable[[], float]) -> None:
        self.plan = plan
        self.last: RoundReport | None = None
        self.best_accuracy: float | None = None
        self.accuracies = Trace()
        self.classes: dict[str, ClassRound] = {}
        self.failures: dict[str, int] = {}
        self.events: tuple[str, ...] = ()
        self.status: Literal["running", Status] = "running"
        self._clock = clock
        self._started = clock()
        self._ended: float | None = None
        self._recent: deque[float] = deque(maxlen=_RECENT_ROUNDS + 1)

    def add(self, report: RoundReport) -> None:
        """Adds a round; the end of round 1, in which much starts, starts the clock for the time left."""
        if report.round <= 1:
            self._recent.clear()
        self._recent.append(self._clock())
        seen = by_class(report)
        self.classes = {**self.classes, **seen}
        failures = dict(self.failures)
        for name, round_of_class in seen.items():
            failures[name] = failures.get(name, 0) + round_of_class.failures
        self.failures = failures
        self.best_accuracy = max(report.accuracy, self.best_accuracy or 0.0)
        self.accuracies.add(report.accuracy)
        self.last = report

    def recall(self, report: RoundReport) -> None:
        """Adds a round from before the run was cut short, whose pace tells nothing of what is left."""
        self.add(report)
        self._recent.clear()
        self._started -= report.seconds

    def note(self, text: str) -> None:
        """Adds an event; only the latest are kept."""
        self.events = (*self.events, text)[-_EVENTS:]

    def end(self, status: Status) -> None:
        """Stops the clock."""
        self.status = status
        self._ended = self._clock()

    @property
    def round(self) -> int:
        """The last round done."""
        return self.last.round if self.last else 0

    def elapsed(self) -> float:
        """Returns the seconds since the start."""
        return (self._clock() if self._ended is None else self._ended) - self._started

    def seconds_left(self) -> float | None:
        """Returns the time left at the pace of the last rounds; None where that says nothing."""
        recent, rounds = tuple(self._recent), self.plan.scenario.rounds - self.round
        if len(recent) < 2 or rounds < 1 or self._ended is not None:
            return None
        expected = rounds * (recent[-1] - recent[0]) / (len(recent) - 1)
        return max(0.0, expected - (self._clock() - recent[-1]))
