"""When to give up on a fleet that answers nothing, and when to wait for it."""

import re
import time
from collections.abc import Collection, Sequence

from flwr.serverapp import Grid

from fedhp.errors import TrainingError
from fedhp.federation.roster import wait_for
from fedhp.records.rows import ClientReport
from fedhp.scenario.schema import ServerConfig

_ROUNDS = 3


class Patience:
    """Counts the rounds, and the time, in which no device has given a valid reply.

    Devices that fail have three rounds. Those that are not there are given time as well: the SuperLink
    answers for them at once, and a run would be over before the first of them is back.

    Args:
        config: For how long to wait, and for how many.
        num_rounds: How many rounds the run has.

    Attributes:
        rounds_in_vain: The rows of each round in a row, the last included, without any valid reply.
    """

    def __init__(self, config: ServerConfig, num_rounds: int) -> None:
        self._config, self._num_rounds = config, num_rounds
        self.rounds_in_vain: tuple[tuple[ClientReport, ...], ...] = ()
        self._some_absent = False
        self._heard = time.monotonic()

    def take(self, rows: tuple[ClientReport, ...], some_absent: bool) -> None:
        """Takes in a round, and whether some of its devices failed because they were not there."""
        self._some_absent = some_absent
        self.rounds_in_vain = (*self.rounds_in_vain, rows)
        if any(row.status == "ok" for row in rows):
            self.rounds_in_vain = ()
            self._heard = time.monotonic()

    def wait(self, grid: Grid, nodes: Collection[int]) -> None:
        """Waits, after a round that failed because devices were not there, until enough of them are.

        Raises:
            TrainingError: If they do not come back in time.
        """
        if not (self.rounds_in_vain and self._some_absent):
            return
        wanted = min(self._config.min_replies, len(nodes))
        if not wait_for(grid, nodes, wanted, self._left):
            raise self._refusal(f"; server.patience_seconds = {self._config.patience_seconds:g} are over")

    def check(self) -> None:
        """Ends the run when nobody has answered for some rounds, or in all that it has: nothing is learned.

        Raises:
            TrainingError: With the most frequent cause.
        """
        in_vain = len(self.rounds_in_vain)
        may_come_back = self._some_absent and self._left > 0 and in_vain < self._num_rounds
        if in_vain >= min(_ROUNDS, self._num_rounds) and not may_come_back:
            raise self._refusal()

    @property
    def _left(self) -> float:
        return self._config.patience_seconds - (time.monotonic() - self._heard)

    def _refusal(self, also: str = "") -> TrainingError:
        rows = [row for rows in self.rounds_in_vain for row in rows]
        first, last = rows[0].round, rows[-1].round
        span = f"round {last}" if first == last else f"rounds {first} to {last}"
        alike = _most_alike(rows)
        one = alike[0]
        return TrainingError(
            f"all clients failed in {span}; the most frequent cause ({len(alike)} of {len(rows)}), of client "
            f"{one.client} in round {one.round}: {one.failure}{also}"
        )


def _most_alike(rows: Sequence[ClientReport]) -> list[ClientReport]:
    """Returns those that failed of the most frequent cause: causes that differ in numbers are one."""
    by_cause: dict[str, list[ClientReport]] = {}
    for row in rows:
        by_cause.setdefault(re.sub(r"\d+", "", row.failure), []).append(row)
    return max(by_cause.values(), key=len)
