"""The peaks of steps: those of one shape are measured once in a process, on a device's own or one like it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from fedhp.model.state import ModelState
from fedhp.training.meter import PEAKS, Key
from fedhp.training.session import Client, Session, guarded


def watching(session: Session) -> AbstractContextManager[None]:
    """Measures the peak of a client's next step, if none of its shape was measured in this process yet.

    The live tensors of a step are a function of its shapes alone, so that one measurement serves every client
    and round that takes the same step. An epoch's last step may be shorter and take less: it is measured
    where it comes first, and the next full one is measured again.
    """
    if session.run.odd is not None:  # which says nothing of others
        key = *_key(session, True), session.run.odd
        return session.run.meter.watching(key, session.run.held)
    if _is_watched(session):
        return nullcontext()
    run, kind = session.run, _kind(session)
    session.watched = run.part, kind
    return run.meter.watching(_key(session, kind[0]), run.held)


def watch_beside(sessions: Sequence[Session], step: Callable[[Session], object]) -> None:
    """Takes in the peaks of the next steps of clients side by side: each a device's, on which it is alone.

    Where a peak is not known, a step of the same shape is taken on copies.

    Args:
        sessions: The clients.
        step: Takes a step of one alone.
    """
    keys: dict[object, Key] = {}  # by what is left to tell clients side by side apart
    for session in sessions:
        if session.watched is None:  # the first step, until there are others, takes the most
            kind = *(method.key for method in session.run.methods), _size(session)
            key = keys[kind] if kind in keys else keys.setdefault(kind, _key(session, True))
            session.watched = None, (True, _size(session))  # of the whole
            with guarded(session):
                if key not in PEAKS:
                    _rehearse(session, step, key)
                with session.run.meter.watching(key, session.run.held):
                    pass


def _size(session: Session) -> int:
    """Returns how many samples the next step computes with: those of dense networks are filled up."""
    return session.run.steps.batch if session.is_dense else len(session.rows)


def _kind(session: Session) -> tuple[bool, int]:
    """Returns what of most steps' peaks depends on: whether they keep gradients, and their samples."""
    return not session.is_dense or session.wants_gradients, _size(session)


def _is_watched(session: Session) -> bool:
    if session.watched is None:
        return False
    part, (keeps_gradients, most) = session.watched
    knows = (part is None or part is session.run.part) and _size(session) <= most
    return knows and (keeps_gradients or not _kind(session)[0])


def _key(session: Session, keeps_gradients: bool) -> Key:
    return *session.run.step_key(_size(session)), keeps_gradients


def _rehearse(session: Session, step: Callable[[Session], object], key: Key) -> None:
    run = session.run
    state = ModelState(run.weights(), run.structure)
    other = Session(run.recipe, Client(replace(run.task, state=state), run.shard))
    other.begin_epoch(0)
    other.epoch.done = len(run.shard) - _size(session)  # so many are left
    with other.run.meter.watching(key, other.run.held):
        step(other)
