"""When to give up on a fleet that answers nothing, and when to wait for it."""

import re
import time
from collections.abc import Collection, Sequence

from flwr.serverapp import Grid

from fedhp.errors import TrainingError
from fedhp.federation.roster import wait_for
from fedhp.federation.server_state import ServerState
from fedhp.records.rows import ClientReport
from fedhp.scenario.schema import ServerConfig

_ROUNDS = 3


class Patience:
    """Says of rounds in which no device has given a valid reply when they are too many, or take too long.

    Devices that fail have three rounds. Those that are not there are given time as well: the SuperLink
    answers for them at once, and a run would be over before the first of them is back.

    Args:
        config: For how long to wait, and for how many.
        num_rounds: How many rounds the run has.
    """

    def __init__(self, config: ServerConfig, num_rounds: int) -> None:
        self._config, self._num_rounds = config, num_rounds
        self._heard = time.monotonic()

    def wait(self, state: ServerState, grid: Grid, nodes: Collection[int]) -> None:
        """Waits, after a round that failed because devices were not there, until enough of them are.

        Raises:
            TrainingError: If they do not come back in time.
        """
        self._hear(state)
        if not (state.in_vain and state.some_absent):
            return
        wanted = min(self._config.min_replies, len(nodes))
        if not wait_for(grid, nodes, wanted, self._left):
            also = f"; server.patience_seconds = {self._config.patience_seconds:g} are over"
            raise _refusal(state, also)

    def check_there(self, number: int, wanted: int) -> None:
        """Ends the run when too few devices have been connected for too long.

        Raises:
            TrainingError: With both numbers.
        """
        if self._left <= 0:
            raise TrainingError(
                f"{number} of the {wanted} devices that a round needs are connected; "
                f"server.patience_seconds = {self._config.patience_seconds:g} are over"
            )

    def check(self, state: ServerState) -> None:
        """Ends the run when nobody has answered for some rounds, or in all that it has: nothing is learned.

        Raises:
            TrainingError: With the most frequent cause.
        """
        self._hear(state)
        in_vain = len(state.in_vain)
        may_come_back = state.some_absent and self._left > 0 and in_vain < self._num_rounds
        if in_vain >= min(_ROUNDS, self._num_rounds) and not may_come_back:
            raise _refusal(state)

    def _hear(self, state: ServerState) -> None:
        if not state.in_vain:
            self._heard = time.monotonic()

    @property
    def _left(self) -> float:
        return self._config.patience_seconds - (time.monotonic() - self._heard)


def _refusal(state: ServerState, also: str = "") -> TrainingError:
    rows = [row for rows in state.in_vain for row in rows]
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
