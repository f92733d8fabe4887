"""A round that loses all that was learned is undone, unless the scenario says otherwise."""

import logging
import math
from dataclasses import replace

from fedhp.federation.server_state import Outcome, ServerState
from fedhp.records.rows import RoundReport
from fedhp.records.wording import percent
from fedhp.run.watch import Look, RunWatch

# What a model must be ahead of guessing to have something to lose, and what is left of the lead when it has
# lost it: a cut costs a few points and training wins them back, but nobody falls to guessing by accident.
_LEAD = 0.2
_LEFT = 0.1

_notes = logging.getLogger("fedhp.notes")


class RollBack:
    """Looks at the global model after each round, and undoes the round where nothing is left of it.

    Args:
        watch: Evaluates it.
        guessing: The accuracy of guessing.
        may_undo: Whether a model that has lost everything is undone; one that is none always is.
        last: How good the model was after the last round of a run that goes on.
    """

    def __init__(
        self, watch: RunWatch, guessing: float, may_undo: bool, last: Look | RoundReport | None = None
    ) -> None:
        self._watch, self._guessing, self._may_undo = watch, guessing, may_undo
        self._last = last

    def looked_at(
        self, before: ServerState, after: ServerState, outcome: Outcome
    ) -> tuple[ServerState, Outcome, Look]:
        """Returns what a round came to, undone if need be, and how good the model is."""
        look, last = self._watch.look(after.model), self._last
        if last is not None and self._undoes(last, look):
            _notes.warning(
                "round %d: accuracy fell from %s to %s, the loss went from %.4g to %.4g: nothing is left; "
                "the model stays that of the round before (server.roll_back)%s",
                after.round,
                percent(last.accuracy),
                percent(look.accuracy),
                last.loss,
                look.loss,
                _largest_update(outcome),
            )
            after, outcome = after.undone(before), replace(outcome, votes={})
            look = Look(last.accuracy, last.loss, look.seconds)
        self._last = look
        return after, outcome, look

    def _undoes(self, before: Look | RoundReport, after: Look) -> bool:
        if self._may_undo:
            return has_lost_all(before, after, self._guessing)
        return is_no_model(before, after)


def _largest_update(outcome: Outcome) -> str:
    rows = [row for row in outcome.valid if row.update_norm is not None]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row.update_norm or 0.0)
    return f". The largest update was that of client {most.client}, of norm {most.update_norm:.3g}"


def has_lost_all(before: Look | RoundReport, after: Look, guessing: float) -> bool:
    """Says whether a model that was clearly better than guessing is no longer, or has no loss at all."""
    lead = before.accuracy - guessing
    gone = lead >= _LEAD * (1 - guessing) and after.accuracy - guessing <= _LEFT * lead
    return gone or is_no_model(before, after)


def is_no_model(before: Look | RoundReport, after: Look) -> bool:
    """Says whether a model has no loss at all, where the one before had."""
    return math.isfinite(before.loss) and not math.isfinite(after.loss)
