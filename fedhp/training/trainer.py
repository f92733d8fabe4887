"""Local training: one loop for every client method, never beyond the budget, of one client or of several.

Knows neither Flower nor Ray.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from fedhp.data.shard import Shard
from fedhp.model.draws import drawing
from fedhp.seeds import derive
from fedhp.training.alone import gradient_norm, training_step
from fedhp.training.ending import ended, so_far
from fedhp.training.peaks import watch_beside, watching
from fedhp.training.recipe import Recipe
from fedhp.training.rows import Row, Rows
from fedhp.training.session import Client, Judged, Session, guarded
from fedhp.training.stack import Stack
from fedhp.training.update import RoundTask, Update


def train_locally(
    recipe: Recipe,
    task: RoundTask,
    shard: Shard,
    on_epoch: Callable[[Update], None] | None = None,
    held_out: Shard | None = None,
) -> Update:
    """Trains one client for one round, by the recipe's methods, within its budget throughout.

    Args:
        recipe: How to train.
        task: The round, the device and the model that it was assigned.
        shard: The client's own data.
        on_epoch: Called after each local epoch with the model so far, without scores, and what that epoch
            measured. The weights are the ones in training: what must outlive the call is to be copied.
        held_out: The client's own data on which the model is evaluated before and after the training.

    Returns:
        The trained, perhaps smaller, model and what was measured.

    Raises:
        BudgetError: If the assigned model does not fit the device's budget with one sample.
        TrainingError: If the loss is not finite.
    """
    (outcome,) = train_together(recipe, [Client(task, shard, held_out)], on_epoch)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_together(
    recipe: Recipe,
    clients: Sequence[Client],
    on_epoch: Callable[[Update], None] | None = None,
    beside: bool = False,
) -> list[Update | Exception]:
    """Trains clients in turn, a step of all at a time: one alone, or several by `train_cohort`'s leave.

    Args:
        recipe: How to train.
        clients: The clients.
        on_epoch: Called after each of their epochs with the model so far.
        beside: Whether all are sent the same network, copies of which may be trained beside each other. Then
            peaks are measured on a client's step taken again, alone; on a device, of whose memory there is no
            more, on what is trained.

    Returns:
        What came of each.
    """
    state = clients[0].task.state
    rows = Rows(recipe.network(state.structure), state, len(clients)) if beside else None
    begun = [_begun(recipe, client, rows and Row(rows, place)) for place, client in enumerate(clients)]
    sessions = [session for session in begun if isinstance(session, Session)]
    training = _Training(is_device=not beside)
    for epoch in range(recipe.train.local_epochs):
        going = [session for session in sessions if session.failure is None]
        with _drawing(going[0], epoch) if len(clients) == 1 and going else nullcontext():
            for members in _turns(going, epoch):
                # What goes wrong with several at once is nobody's fault but ours.
                with guarded(members[0]) if len(members) == 1 else nullcontext():
                    training.step(members)
        for session in going:
            if on_epoch is not None and session.failure is None:
                with guarded(session):
                    on_epoch(so_far(session))
    return [_outcome(one) if isinstance(one, Session) else one for one in begun]


def _begun(recipe: Recipe, client: Client, row: Row | None) -> Session | Exception:
    try:
        return Session(recipe, client, row)
    except Exception as error:
        return error


def _outcome(session: Session) -> Update | Exception:
    if session.failure is None:
        with guarded(session):
            return ended(session)
    return session.failure


def _drawing(session: Session, epoch: int) -> AbstractContextManager[None]:
    """Lets layers of a lone client's network draw from its own stream."""
    if session.form is not None:  # whose steps draw nothing
        return nullcontext()
    run = session.run
    return drawing(derive(run.recipe.seed, "layers", run.task.round, run.task.client, epoch), run.device)


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
        with watching(members[0]):
            judged = self._stack(members).step(members, rates) if beside else step_alone(members[0])
        for member, loss, right in zip(members, *judged, strict=True):
            try:
                member.after_step(loss, right)
            except Exception as error:
                member.failure = error
        seconds = (time.perf_counter() - started) / len(members)
        for member in members:
            member.seconds += seconds

    def _stack(self, members: Sequence[Session]) -> Stack:
        shape = members[0].shape
        if shape in self._stacks and self._stacks[shape].holds(members):
            return self._stacks[shape]
        stack = Stack(members)
        if not self._is_device:  # where it would keep, with its views, what a cut is to free
            self._stacks[shape] = stack
            stack.stay()
        return stack


def _turns(sessions: Sequence[Session], number: int) -> Iterator[Sequence[Session]]:
    """Passes over each client's data once: yields those whose next steps are one computation."""
    for session in sessions:
        with guarded(session):
            session.begin_epoch(number)
    while active := [one for one in sessions if one.failure is None and one.has_batch]:
        yield from _alike(active)
    for session in sessions:
        if session.failure is None:
            with guarded(session):
                session.end_epoch()


def step_one(session: Session) -> None:
    """Takes a client's next step, but for looking at its memory."""
    rates = [session.before_step()]
    if session.is_dense:
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

    loss, right = training_step(*run.part, *run.batch(member.rows), observe, run.mask)
    return [loss.item()], [int(right)]
