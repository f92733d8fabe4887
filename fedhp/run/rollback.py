"""A round that loses all that was learned is undone, unless the scenario says otherwise."""

import logging
import math

from fedhp.federation.strategy import FleetStrategy
from fedhp.records.wording import percent
from fedhp.run.reporting import Look, RunWatch

# What a model must be ahead of guessing to have something to lose, and what is left of the lead when it has
# lost it: a cut costs a few points and training wins them back, but nobody falls to guessing by accident.
_LEAD = 0.2
_LEFT = 0.1

_notes = logging.getLogger("fedhp.notes")


class RollBack:
    """Looks at the global model after each round, and undoes the round where nothing is left of it.

    Args:
        strategy: Whose model it is.
        watch: Evaluates it.
        guessing: The accuracy of guessing.
    """

    def __init__(self, strategy: FleetStrategy, watch: RunWatch, guessing: float) -> None:
        self._strategy, self._watch, self._guessing = strategy, watch, guessing
        self._last: Look | None = None

    def look(self, server_round: int) -> Look:
        """Returns how good the model is after a round, rolled back if need be."""
        look, last = self._watch.look(self._strategy.state), self._last
        if last is not None and self._undoes(last, look):
            _notes.warning(
                "round %d: accuracy fell from %s to %s, the loss went from %.4g to %.4g: nothing is left; "
                "the model stays that of the round before (server.roll_back)%s",
                server_round,
                percent(last.accuracy),
                percent(look.accuracy),
                last.loss,
                look.loss,
                self._largest_update(),
            )
            self._strategy.roll_back()
            look = Look(last.accuracy, last.loss, look.seconds)
        self._last = look
        return look

    def _undoes(self, before: Look, after: Look) -> bool:
        if self._strategy.scenario.server.roll_back:
            return has_lost_all(before, after, self._guessing)
        return is_no_model(before, after)

    def _largest_update(self) -> str:
        rows = [row for row in self._strategy.reports if row.status == "ok" and row.update_norm is not None]
        if not rows:
            return ""
        most = max(rows, key=lambda row: row.update_norm or 0.0)
        return f". The largest update was that of client {most.client}, of norm {most.update_norm:.3g}"


def has_lost_all(before: Look, after: Look, guessing: float) -> bool:
    """Says whether a model that was clearly better than guessing is no longer, or has no loss at all."""
    lead = before.accuracy - guessing
    gone = lead >= _LEAD * (1 - guessing) and after.accuracy - guessing <= _LEFT * lead
    return gone or is_no_model(before, after)


def is_no_model(before: Look, after: Look) -> bool:
    """Says whether a model has no loss at all, where the one before had."""
    return math.isfinite(before.loss) and not math.isfinite(after.loss)
