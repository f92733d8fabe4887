"""Thousands of wrong replies to every strategy: none counts, none stops a round, the others' mean stays."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Message, MessageType

from fedhp.bench.forged import IN_PROPORTION, REFUSED, Case, Kind, with_weights
from fedhp.federation import wire
from fedhp.federation.asking import Asked, Payloads, ask, by_work
from fedhp.federation.device import Device
from fedhp.federation.rounds import close_round, opened
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.state import ModelState
from fedhp.run.setup import prepare, registry
from fedhp.scenario.loading import load_scenario
from fedhp.simulation.identity import SERVER_NODE_ID, acting_as
from fedhp.training.method_names import SPARSE
from fedhp.training.statistics import STATISTICS, Statistics
from fedhp.training.update import Update

_CLIENTS, _WRONG, _EXAMPLES, _FIRST_NODE = 12, 4, 50, 1000
_ROUNDS = 12  # of one run, after which all begins anew
_TWICE = "a second answer"
_MEASURED = Statistics(**{name: column.kind() for name, column in STATISTICS.items() if not column.optional})

Answers = Mapping[int, Message]


class Held(NamedTuple):
    """What came of a round.

    Attributes:
        sent: The kinds of its wrong replies.
        accepted: Those of them that counted.
        is_right: Whether its model is right; None where the round stopped.
    """

    sent: Sequence[str]
    accepted: Sequence[str]
    is_right: bool | None


def run_replies(
    number: int = 10_000,
    seed: int = 0,
    strategies: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Sends wrong replies in place of a third of a round's right ones, and holds the rounds.

    Args:
        number: Of wrong replies, over all strategies.
        seed: Of everything.
        strategies: Names; all where none is given.
        say: Is told how far it is.

    Returns:
        ``rows``: of each kind, how many were ``sent``, how many ``accepted``, and how many in rounds that
        ``stopped``; ``wrong_models``: rounds whose model was not to the bit the one that the others make
        alone, or, of replies that no check can tell, was brought by the median out of the others' range.
    """
    names = list(strategies or of_units())
    sent, accepted, stopped, wrong = Counter[str](), Counter[str](), Counter[str](), 0
    for place, name in enumerate(names):
        say(f"{place + 1} of {len(names)}: {name}")
        with _without_notes():
            for held in _so_many(name, number / len(names), np.random.default_rng([seed, place])):
                sent.update(held.sent)
                accepted.update(held.accepted)
                stopped.update(held.sent if held.is_right is None else ())
                wrong += held.is_right is False
    rows = [
        {"kind": kind, "sent": sent[kind], "accepted": accepted[kind], "stopped": stopped[kind]}
        for kind in (*REFUSED, _TWICE, *IN_PROPORTION)
    ]
    return {"replies": sent.total(), "wrong_models": wrong, "rows": rows}


def of_units() -> list[str]:
    """Returns the strategies whose messages are of units: single weights have no scores, which are forged."""
    return [name for name, kind in registry().items() if not set(SPARSE) & set(kind.methods)]


@contextmanager
def _without_notes() -> Iterator[None]:
    notes = logging.getLogger("fedhp.notes")
    before = notes.level
    notes.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        notes.setLevel(before)


def _so_many(name: str, number: float, rng: np.random.Generator) -> Iterator[Held]:
    """Yields rounds of several runs, until so many wrong replies were sent; every third run is robust."""
    sent = 0
    for robust in cycle((False, False, True)):
        for held in rounds(name, robust, rng):
            yield held
            sent += len(held.sent)
            if sent >= number:
                return


def rounds(name: str, robust: bool, rng: np.random.Generator, number: int = _ROUNDS) -> Iterator[Held]:
    """Yields the rounds of a run, which ends early where one stops or makes a wrong model.

    Args:
        name: The strategy's.
        robust: Whether the replies look like any others, and the median is to withstand them; else they are
            such as are refused.
        rng: Draws them.
        number: Of rounds, after a first one in which all is right.
    """
    fleet, others = _Fleet(name, robust), _Fleet(name, robust)
    old = fleet.ask()
    fleet.close(old.values())
    others.ask()
    others.close(old.values())
    for _ in range(number):
        before, right = fleet.state, fleet.ask()
        chosen, arriving, honest = _spoiled(IN_PROPORTION if robust else REFUSED, right, old, rng)
        sent = [*chosen.values(), _TWICE]
        try:
            valid = fleet.close(arriving)
        except Exception:  # of whatever kind: that a round stops is what is looked for
            yield Held(sent, (), None)
            return
        others.ask()
        others.close(honest)
        is_right = fleet.is_within(before, honest) if robust else _equal(fleet.state, others.state)
        yield Held(sent, [kind for node, kind in chosen.items() if node in valid], is_right)
        if not is_right:
            return
        old = right


def _spoiled(
    kinds: Mapping[str, Kind], right: Answers, old: Answers, rng: np.random.Generator
) -> tuple[Mapping[int, str], list[Message], list[Message]]:
    """Puts wrong replies in place of some right ones, in any order.

    Returns:
        Which kind comes from which node, all that arrives, and the right replies in it.
    """
    nodes = rng.permutation(list(right)).tolist()
    chosen = dict(zip(nodes[:_WRONG], rng.choice(list(kinds), _WRONG).tolist(), strict=True))
    honest = [right[node] for node in nodes[_WRONG:]]
    wrong = [kinds[kind](Case(rng, right[node], honest[0], old[node])) for node, kind in chosen.items()]
    arriving = [(wrong + honest)[index] for index in rng.permutation(len(nodes))]
    return chosen, [*arriving, with_weights(honest[1], np.zeros_like)], honest


class _Fleet:
    """A strategy, and devices that answer it rightly."""

    def __init__(self, name: str, robust: bool) -> None:
        rule = "median" if robust else "mean"
        values = {"strategy.name": name, "strategy.robust.rule": rule, "rounds": _ROUNDS}
        small = {**values, "model.widths": [8, 6], "fleet.num_clients": _CLIENTS}
        small["prune.target_compression"] = 3.0  # in reach where inputs stay whole, too
        self._strategy = prepare(load_scenario("quickstart", values=small), simulated=False).strategy
        profile = DeviceProfile("phone", None, _EXAMPLES)
        self._strategy.enlist([Device(_FIRST_NODE - n, n, profile) for n in range(_CLIENTS)])
        self._asked = Asked([], {})

    @property
    def state(self) -> ModelState:
        return self._strategy.state

    def ask(self) -> Answers:
        """Asks for the next round, and returns what right devices answer."""
        strategy, number = self._strategy, self._strategy.server.round + 1
        parts = ((device, strategy.assign(device, number)) for device in strategy.sample(number))
        payloads = Payloads(strategy.brief, strategy.layout, strategy.state, number)
        with acting_as(SERVER_NODE_ID):
            self._asked = ask(MessageType.TRAIN, payloads, by_work(strategy.layout, parts), 600.0)
        for message in self._asked.messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"{number}:{node}"  # as Flower's grids write it
        return {message.metadata.dst_node_id: self._answer(message) for message in self._asked.messages}

    def _answer(self, message: Message) -> Message:
        node, layout = message.metadata.dst_node_id, self._strategy.layout
        number, state = wire.unpack_task(message.content, layout)
        stream = np.random.default_rng([node, number])
        moved = {
            name: (values + 0.1 * stream.standard_normal(values.shape)).astype(np.float32)
            for name, values in state.weights.items()
        }
        made = ModelState(moved, state.structure)
        with acting_as(node):
            content = wire.pack_update(Update(0, state.structure, made, _EXAMPLES, _MEASURED))
            return Message(content, reply_to=message)

    def close(self, answers: Iterable[Message]) -> set[int]:
        """Holds the round with what arrives, and returns the nodes that count."""
        strategy, asked = self._strategy, self._asked
        parts = opened(strategy, strategy.state, asked.sent, answers)
        strategy.server, outcome = close_round(strategy, strategy.server, parts)
        return {_FIRST_NODE - row.client for row in outcome.valid}

    def is_within(self, before: ModelState, honest: Sequence[Message]) -> bool:
        """Says whether each weight lies among those of right answers, all of the whole model before."""
        layout, after = self._strategy.layout, self.state
        told = [wire.unpack_state(one.content.array_records["model"], layout).weights for one in honest]
        for name, values in after.weights.items():
            rows = np.stack(
                [layout.slice(weights, before.structure, after.structure)[name] for weights in told]
            )
            if not ((rows.min(0) <= values) & (values <= rows.max(0))).all():
                return False
        return True


def _equal(one: ModelState, other: ModelState) -> bool:
    return one.structure == other.structure and all(
        values.tobytes() == other.weights[name].tobytes() for name, values in one.weights.items()
    )
