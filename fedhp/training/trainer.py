"""Local training: one loop for every client method, never beyond the budget, of one client or of several.

Knows neither Flower nor Ray.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fedhp.data.shard import Shard
from fedhp.model.dense import Loss
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.seeds import derive
from fedhp.training.alone import gradient_norm, training_step
from fedhp.training.device_session import DeviceSession
from fedhp.training.handed_on import HandedOn, handed_on, take_up
from fedhp.training.memory_guard import MemoryGuard
from fedhp.training.method import end, held_structure, local_accuracy, told_gradients
from fedhp.training.peaks import watch_beside, watching
from fedhp.training.recipe import Recipe
from fedhp.training.session import Client, Judged, Session, guarded
from fedhp.training.statistics import Statistics
from fedhp.training.update import RoundTask, Update

if TYPE_CHECKING:
    from fedhp.training.rows import Row
    from fedhp.training.stack import Stack

OnEpoch = Callable[[Update, Callable[[], HandedOn | None]], None]


def train_locally(
    recipe: Recipe,
    task: RoundTask,
    shard: Shard,
    on_epoch: OnEpoch | None = None,
    held_out: Shard | None = None,
    guard: MemoryGuard | None = None,
    before: HandedOn | None = None,
) -> Update:
    """Trains one client for one round, by the recipe's methods, within its budget throughout.

    Args:
        recipe: How to train.
        task: The round, the device and the model that it was assigned.
        shard: The client's own data.
        on_epoch: Called after each local epoch with the model so far, without scores, and what that epoch
            measured; and with a function that tells what the training hands on to the next. The weights are
            the ones in training: what must outlive the call is to be copied.
        held_out: The client's own data on which the model is evaluated before and after the training.
        guard: Looks after what memory a real device has left; it is for this training alone.
        before: Where a training goes on that was cut short; the model of ``task`` is of it.

    Returns:
        The trained, perhaps smaller, model and what was measured.

    Raises:
        BudgetError: If the assigned model does not fit the device's budget, or what is left, with one sample.
        TrainingError: If the loss is not finite.
    """
    (outcome,) = train_together(recipe, [Client(task, shard, held_out, guard)], on_epoch, before=before)
    if isinstance(outcome, Exception):
        raise outcome if guard is None else guard.named(outcome)
    return outcome


def train_together(
    recipe: Recipe,
    clients: Sequence[Client],
    on_epoch: OnEpoch | None = None,
    beside: bool = False,
    before: HandedOn | None = None,
) -> list[Update | Exception]:
    """Trains clients in turn, a step of all at a time: one alone, or several by `train_cohort`'s leave.

    Args:
        recipe: How to train.
        clients: The clients.
        on_epoch: Called after each of their epochs, as by `train_locally`.
        beside: Whether all are sent the same network, copies of which may be trained beside each other. Then
            peaks are measured on a client's step taken again, alone; on a device, of whose memory there is no
            more, on what is trained.
        before: Where a client's training goes on that was cut short.

    Returns:
        What came of each.
    """
    state = clients[0].task.state
    rows = _rows(recipe, state, len(clients)) if beside else [None] * len(clients)
    begun = [_begun(recipe, *pair, before) for pair in zip(clients, rows, strict=True)]
    sessions = [session for session in begun if isinstance(session, Session)]
    training = _Training(is_device=not beside)
    for epoch in range(0 if before is None else before.epochs, recipe.train.local_epochs):
        going = [session for session in sessions if session.failure is None]
        with _drawing(going[0], epoch) if len(clients) == 1 and going else nullcontext():
            is_read = on_epoch is not None or epoch == recipe.train.local_epochs - 1
            for members in _turns(going, epoch, is_read):
                # What goes wrong with several at once is nobody's fault but ours.
                with guarded(members[0]) if len(members) == 1 else nullcontext():
                    training.step(members)
        for session in going:
            if on_epoch is not None and session.failure is None:
                with guarded(session):
                    on_epoch(_so_far(session), partial(handed_on, session.run, epoch + 1))
    return [_outcome(one) if isinstance(one, Session) else one for one in begun]


def _rows(recipe: Recipe, state: ModelState, number: int) -> "list[Row]":
    from fedhp.training.rows import Row, Rows

    rows = Rows(recipe.network(state.structure), state, number)
    return [Row(rows, place) for place in range(number)]


def _begun(recipe: Recipe, client: Client, row: "Row | None", before: HandedOn | None) -> Session | Exception:
    try:
        if client.guard is not None:
            return DeviceSession(recipe, client, client.guard)
        session = Session(recipe, client, row)
        if before is not None:
            _go_on(session, before)
        return session
    except Exception as error:
        return error


def _go_on(session: Session, before: HandedOn) -> None:
    session.take(take_up(session.run, before))
    for _ in range(before.epochs):
        session.stream.permutation(len(session.run.shard))


def _outcome(session: Session) -> Update | Exception:
    if session.failure is None:
        with guarded(session):
            return _ended(session)
    return session.failure


def _drawing(session: Session, epoch: int) -> AbstractContextManager[None]:
    """Lets layers of a lone client's network draw from its own stream."""
    if session.form is not None:  # whose steps draw nothing
        return nullcontext()
    run = session.run
    seed = derive(run.recipe.seed, "layers", run.task.round, run.task.client, epoch)
    return run.runtime.drawing(seed, run.device)


class _Training:
    """Steps of clients: of those whose networks and batches are of one shape, in one computation."""

    def __init__(self, is_device: bool) -> None:
        self._is_device = is_device
        self._stacks: dict[object, Stack] = {}

    def step(self, members: Sequence[Session]) -> None:
        """Takes the next step of each."""
        started = time.perf_counter()
        rates = list[float]()
        for member in members:
            with guarded(member):
                rates.append(member.before_step())
        members = [member for member in members if member.failure is None]
        if not members:
            return
        beside = members[0].is_dense or len(members) > 1
        if beside and not self._is_device:
            watch_beside(members, step_one)
        try:
            with watching(members[0]):
                judged = self._stack(members).step(members, rates) if beside else step_alone(members[0])
        except Exception as error:
            guard = members[0].client.guard
            if guard is None or not guard.forgives(error):
                raise
            return  # as if the step had never begun: it is taken again, smaller
        for member, loss, right in zip(members, *judged, strict=True):
            try:
                member.after_step(loss, right)
            except Exception as error:
                member.failure = error
        seconds = (time.perf_counter() - started) / len(members)
        for member in members:
            member.seconds += seconds

    def _stack(self, members: Sequence[Session]) -> "Stack":
        from fedhp.training.stack import Stack

        shape = members[0].shape
        if shape in self._stacks and self._stacks[shape].holds(members):
            return self._stacks[shape]
        stack = Stack(members)
        if not self._is_device:  # where it would keep, with its views, what a cut is to free
            self._stacks[shape] = stack
            stack.stay()
        return stack


def _turns(sessions: Sequence[Session], number: int, is_read: bool) -> Iterator[Sequence[Session]]:
    """Passes over each client's data once: yields those whose next steps are one computation.

    Args:
        sessions: The clients' trainings.
        number: Of the epoch, from 0.
        is_read: Whether somebody looks at the models at its end.
    """
    for session in sessions:
        with guarded(session):
            session.begin_epoch(number)
    while active := [one for one in sessions if one.failure is None and one.has_batch]:
        yield from _alike(active)
    for session in sessions:
        if session.failure is None:
            with guarded(session):
                session.end_epoch(is_read)


def step_one(session: Session) -> None:
    """Takes a client's next step, but for looking at its memory."""
    rates = [session.before_step()]
    if session.is_dense:
        from fedhp.training.stack import Stack

        Stack([session]).step([session], rates)
    else:
        step_alone(session)


def _alike(sessions: Sequence[Session]) -> Iterator[Sequence[Session]]:
    """Parts clients into those whose next steps are one computation."""
    parts: dict[object, list[Session]] = {}
    for session in sessions:
        parts.setdefault(session if session.form is None else session.shape, []).append(session)
    yield from parts.values()


def step_alone(member: Session) -> Judged:
    """Takes a step of a client whose network is no dense chain, or of which it trains a part."""
    run = member.run

    def observe() -> None:
        member.on_gradients(lambda: gradient_norm(run.part[1]))

    loss = Loss(run.mask, run.recipe.train.label_smoothing)
    mean, right = training_step(run.runtime.gradients, *run.part, *run.batch(member.rows), observe, loss)
    return [mean.item()], [int(right)]


def _so_far(session: Session) -> Update:
    """Returns the model so far, without scores, and what its last epoch measured."""
    return _update(session, session.epoch.assigned, {}, session.epochs[-1])


def _ended(session: Session) -> Update:
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
    if session.client.guard is not None:
        statistics = session.client.guard.told(statistics)
    update = _update(session, session.client.task.state.structure, scores, statistics)
    return replace(update, gradients=told_gradients(run))


def _update(session: Session, assigned: Structure, scores: Weights, statistics: Statistics) -> Update:
    run = session.run
    state = ModelState(run.weights(), held_structure(run), scores)
    return Update(run.task.client, assigned, state, len(run.shard), statistics)
