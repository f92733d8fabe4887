"""The devices of a round that are simulated together: who with whom, what they answer, and who fails."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from fedhp.aggregation.holders import BLOCK
from fedhp.aggregation.proportion import Change
from fedhp.aggregation.reconcile import Reconciliation, Sums
from fedhp.errors import TrainingError
from fedhp.federation.asking import Payloads
from fedhp.federation.device import Device
from fedhp.federation.replies import Arrived, Sent
from fedhp.federation.rules import Rules
from fedhp.model.structure import Structure
from fedhp.simulation.answering import Lost
from fedhp.simulation.grid import SimulatedGrid
from fedhp.simulation.tasks import Cohort
from fedhp.training.update import Said

# Of the parameters, and what optimisers keep of them, of the clients whose steps are computed at a time: the
# most with which stacks gain where they were measured (docs/benchmarks.md); beyond the caches they lose it.
_STACK_BYTES = 8 * 2**20
_PARAMETER_BYTES = 4
# From about so many on, larger stacks gain less than more cohorts that can be shared (docs/benchmarks.md).
_ENOUGH = 8
# Into how many cohorts a round is cut: few cost little, and many can be shared by many workers.
_PIECES = (4, 8, 16)


@dataclass(frozen=True)
class Member:
    """What a client of a cohort brings beside its part of the sums; bytes are those of its own message."""

    said: Said
    changes: tuple[Change, ...]
    num_bytes: int


@dataclass(frozen=True)
class CohortAnswer:
    """What a cohort answers.

    Attributes:
        members: Of each client, in the order of the nodes, what it brings, or how it failed, as
            ``"stage: cause"``.
        sums: Of the updates of those that did not fail; None where all did.
    """

    members: tuple[Member | str, ...]
    sums: Sums | None

    @property
    def payload_bytes(self) -> int:
        """Bytes of the sums."""
        return 0 if self.sums is None else sum(array.nbytes for array in self.sums.weights.values())


def stack_of(asked: str, num_parameters: int, state_slots: int) -> int:
    """Returns of how many clients steps are computed at a time.

    Args:
        asked: ``simulation.stack``.
        num_parameters: Of the model that they are sent.
        state_slots: Tensors that their optimisers keep per parameter.
    """
    num_bytes = _PARAMETER_BYTES * num_parameters * (1 + state_slots)
    number = _STACK_BYTES // num_bytes if asked == "auto" else int(asked)
    return max(1, min(number, BLOCK))


def divided(number: int, stack: int, of: int, share: float) -> list[int]:
    """Returns how many clients each cohort has, of so many that are sent the same.

    Args:
        number: How many.
        stack: Of how many of them steps can be computed at a time.
        of: How many clients the round has.
        share: Of the round's work, what they do.
    """
    enough = min(stack, _ENOUGH)
    wanted = next((pieces for pieces in reversed(_PIECES) if of >= pieces * enough), _PIECES[0])
    pieces = min(number, max(1, round(wanted * share)))
    stack = min(stack, -(-number // pieces))
    stacks = -(-number // stack)
    pieces = min(stacks, max(pieces, -(-stacks // (BLOCK // stack))))
    ends = [number * (stacks * piece // pieces) // stacks for piece in range(pieces + 1)]
    return [end - start for start, end in pairwise(ends)]


def cohorts(
    rules: Rules, payloads: Payloads, parts: Iterable[tuple[Device, Structure]]
) -> list[tuple[Cohort, list[Sent]]]:
    """Returns a round's devices in cohorts: of those that are sent the same part of the model.

    Who is in which depends on the devices and the scenario alone, and they stay in their order: those that
    are sent the same by falling numbers of samples, so that those that are computed at a time end together.
    """
    groups: dict[str, list[tuple[Device, Structure]]] = {}
    for device, structure in parts:
        groups.setdefault(structure.digest, []).append((device, structure))
    asked, slots = rules.scenario.simulation.stack, rules.recipe.train.state_slots
    of, found = sum(map(len, groups.values())), list[tuple[Cohort, list[Sent]]]()
    works = [
        payloads.of(group[0][1]).num_parameters * sum(device.profile.num_examples for device, _ in group)
        for group in groups.values()
    ]
    for group, work in zip(groups.values(), works, strict=True):
        payload = payloads.of(group[0][1])
        sent = deque(Sent(*part, payload.num_parameters, payload.num_bytes) for part in group)
        stack = stack_of(asked, payload.num_parameters, slots)
        for size in divided(len(group), stack, of, work / sum(works)):
            own = [sent.popleft() for _ in range(size)]
            found.append((Cohort(payload.content, tuple(one.device.node_id for one in own)), own))
    return found


class _Together:
    """What came of a cohort: see `fedhp.federation.rounds.Part`."""

    def __init__(self, exchange: "CohortExchange", answers: Sequence[tuple[Cohort, CohortAnswer]]) -> None:
        self._exchange, self._answers = exchange, answers
        self.arrived = [one for cohort, answer in answers for one in exchange.arrived(cohort, answer)]

    def add(self, reconciliation: Reconciliation, counted: Sequence[Arrived]) -> None:
        """Adds the sums; where they hold what does not count, those that the others make without it."""
        nodes = {one.sent.device.node_id for one in counted}
        for cohort, answer in self._answers:
            brought = dict(zip(cohort.nodes, answer.members, strict=True))
            wanted = tuple(node for node, one in brought.items() if node in nodes)
            if any(isinstance(one, Member) and node not in nodes for node, one in brought.items()):
                answer = self._exchange.without_others(cohort, wanted) if wanted else None
            if answer is not None and answer.sums is not None:
                reconciliation.merge(answer.sums)


class CohortExchange:
    """Asks a round's cohorts, and yields what comes of each, in their order.

    Who is lost with its cohort (see `fedhp.simulation.answering.Lost`) is asked alone. Whoever is lost then
    has failed, and the others are asked once more, together: they make what they would have made had it never
    been among them.

    Args:
        rules: The strategy's.
        asked: The cohorts, and what each of their devices is sent.
        grid: Where they are.
        timeout: Seconds that one client may take.

    Attributes:
        sent: What each node was sent, in the round's order.
    """

    def __init__(
        self,
        rules: Rules,
        asked: Sequence[tuple[Cohort, Sequence[Sent]]],
        grid: SimulatedGrid,
        timeout: float,
    ) -> None:
        self.sent = {one.device.node_id: one for _, own in asked for one in own}
        self._rules, self._grid, self._timeout = rules, grid, timeout
        self._cohorts = [cohort for cohort, _ in asked]
        self._stream = grid.ask_together(self._cohorts, timeout)
        self._early: deque[Any] = deque()

    def __iter__(self) -> Iterator[_Together]:
        return map(self._part, self._cohorts, chain(self._stream, iter(self._early.popleft, None)))

    def _part(self, cohort: Cohort, answer: CohortAnswer | Lost) -> _Together:
        lost = isinstance(answer, Lost)
        return _Together(self, self._found(cohort, answer) if lost else [(cohort, answer)])

    def arrived(self, cohort: Cohort, answer: CohortAnswer) -> Iterator[Arrived]:
        """Yields what came of each device of a cohort."""
        for node, member in zip(cohort.nodes, answer.members, strict=True):
            sent = self.sent[node]
            if isinstance(member, str):
                yield Arrived(sent, failure=member)
            else:
                said = self._rules.believed(sent.device, member.said)
                yield Arrived(sent, said, member.changes, member.num_bytes)

    def without_others(self, cohort: Cohort, nodes: tuple[int, ...]) -> CohortAnswer:
        """Asks some of a cohort's clients again, whose updates are then the same as before.

        Raises:
            TrainingError: If one of them does not answer this time.
        """
        (answer,) = self._ask_now([Cohort(cohort.content, nodes)])
        said = (answer.reason,) if isinstance(answer, Lost) else answer.members
        failures = [one for one in said if isinstance(one, str)]
        if failures or isinstance(answer, Lost):
            raise TrainingError(f"clients that had answered did not when asked once more: {failures[0]}")
        return answer

    def _found(self, cohort: Cohort, lost: Lost) -> list[tuple[Cohort, CohortAnswer]]:
        """Returns what the clients of a cohort answer that was lost."""
        alone = [Cohort(cohort.content, (node,)) for node in cohort.nodes]
        answers = list(zip(alone, self._ask_now(alone) if len(alone) > 1 else [lost], strict=True))
        failed = [
            (one, CohortAnswer((what.reason,), None)) for one, what in answers if isinstance(what, Lost)
        ]
        others = [(one, what) for one, what in answers if not isinstance(what, Lost)]
        if len(others) > 1:
            rest = Cohort(cohort.content, tuple(node for one, _ in others for node in one.nodes))
            (whole,) = self._ask_now([rest])
            others = others if isinstance(whole, Lost) else [(rest, whole)]
        return failed + others

    def _ask_now(self, asked: Sequence[Cohort]) -> list[Any]:
        """Asks besides: what is on its way is taken in before, as there is one stream at a time."""
        self._early.extend(self._stream)
        return list(self._grid.ask_together(asked, self._timeout))
