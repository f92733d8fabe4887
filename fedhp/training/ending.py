"""What comes of a client's training: its update, with what it measured."""

from dataclasses import replace

from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.training.method import end, local_accuracy
from fedhp.training.session import Session
from fedhp.training.statistics import Statistics
from fedhp.training.update import Update


def so_far(session: Session) -> Update:
    """Returns the model so far, without scores, and what its last epoch measured."""
    return _update(session, session.epoch.assigned, {}, session.epochs[-1])


def ended(session: Session) -> Update:
    """Ends the methods; returns what came of the training."""
    run, held_out = session.run, session.client.held_out
    scores, statistics = end(run), Statistics.over(session.epochs)
    if held_out is not None:
        statistics = replace(
            statistics,
            num_local_test=len(held_out),
            local_accuracy_global=session.received,
            local_accuracy_personal=local_accuracy(run, held_out, "trained"),
            memory_measured_bytes=max(statistics.memory_measured_bytes, run.meter.measured),
        )
    return _update(session, run.task.state.structure, scores, statistics)


def _update(session: Session, assigned: Structure, scores: Weights, statistics: Statistics) -> Update:
    run = session.run
    state = ModelState(run.weights(), run.structure, scores)
    return Update(run.task.client, assigned, state, len(run.shard), statistics)
