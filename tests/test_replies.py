"""Replies that are wrong, forged, huge or missing: what a fleet of strangers can do to a run, and cannot."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from factories import MemoryGrid, altered, reply, same_bits, stamped, trained
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from fedhp.bench import replies
from fedhp.bench.forged import IN_PROPORTION, MALFORMED, MISATTRIBUTED
from fedhp.errors import TrainingError
from fedhp.federation.device import Device
from fedhp.federation.patience import Patience
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.state import ModelState
from fedhp.run.rollback import RollBack, has_lost_all
from fedhp.run.setup import prepare
from fedhp.run.watch import Look
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import ServerConfig
from fedhp.simulation.identity import acting_as
from fedhp.training.update import Update
from strategies import STRATEGIES, FleetStrategy


@pytest.fixture(autouse=True)
def _as_the_server():
    with acting_as(0):
        yield


def fleet(
    num_clients: int = 20, name: str = "mask_intersection", own: dict[int, int] | None = None, **values
) -> FleetStrategy:
    """A strategy with devices of 50 samples each, or of as many as they say of data of their own."""
    small = {"strategy.name": name, "model.widths": [8, 6], "fleet.num_clients": num_clients, **values}
    small = {"prune.target_compression": 3.0, **small}  # in reach where inputs stay whole, too
    strategy = prepare(load_scenario("quickstart", values=small), simulated=False).strategy
    own = own or {}
    strategy.enlist(
        [
            Device(1000 - client, client, DeviceProfile("phone", None, own.get(client, 50), client in own))
            for client in range(num_clients)
        ]
    )
    return strategy


def asked(strategy: FleetStrategy, server_round: int = 1, grid: MemoryGrid | None = None) -> list[Message]:
    grid = grid or MemoryGrid(lambda message: None)
    messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
    # By partition id, as nodes are numbered the other way round.
    return stamped(sorted(messages, key=lambda message: -message.metadata.dst_node_id))


def honest(strategy: FleetStrategy, message: Message) -> Update:
    """What an honest client sends: weights moved a little, and all units."""
    return trained(strategy.layout, message, 50)


def with_weights(update: Update, change) -> Update:
    weights = {name: change(array).astype(np.float32) for name, array in update.state.weights.items()}
    return replace(update, state=ModelState(weights, update.state.structure))


def norm(state: ModelState) -> float:
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in state.weights.values())))


def test_weights_ten_thousand_times_too_large_are_refused_and_the_rest_is_their_mean():
    strategy, alone = fleet(), fleet()
    messages = asked(strategy)
    right = {m.metadata.dst_node_id: reply(m, honest(strategy, m)) for m in messages}
    honest_one = replace(honest(strategy, messages[7]), state=strategy.state)
    huge = reply(messages[7], with_weights(honest_one, lambda array: 1e4 * array))
    strategy.aggregate_train(1, [{**right, 993: huge}[node] for node in right])
    assert strategy.outcome.rows[7].status == "failed"
    assert strategy.outcome.rows[7].failure.startswith("reply: the change of its weights has norm ")
    assert strategy.outcome.rows[7].update_norm == pytest.approx(9999 * norm(alone.state), rel=1e-3)
    asked(alone)
    alone.aggregate_train(1, [answer for node, answer in right.items() if node != 993])
    assert same_bits(strategy.state, alone.state)


def test_the_norm_of_each_update_is_in_its_row():
    """Over the entries that came back: moved by hand by 3 in one weight and by 4 in another."""
    strategy = fleet(3)
    messages = asked(strategy)
    updates = [honest(strategy, message) for message in messages]
    moved = {name: array.copy() for name, array in strategy.state.weights.items()}
    moved["fc1.bias"][0] += 3
    moved["fc2.bias"][1] -= 4
    updates[1] = replace(updates[1], state=ModelState(moved, strategy.state.structure))
    answers = [reply(message, update) for message, update in zip(messages, updates, strict=True)]
    strategy.aggregate_train(1, answers)
    assert strategy.outcome.rows[1].update_norm == pytest.approx(5, rel=1e-5)


def test_a_device_that_says_it_has_a_million_million_samples_counts_for_a_few():
    """Zeros beside 19 devices of 50 samples that make everything 0.801 as large: 1 / 0.199 as far as theirs.

    So they count for 10 * 50 * 0.199 = 99.5 samples, rounded down.
    """
    strategy = fleet(own={3: 2**40 - 1})
    assert strategy.remarks == [
        "client 3 (phone) says that it has 1,099,511,627,775 samples; it counts as 500 at most, "
        "server.max_times_median times the fleet's median"
    ]
    before = strategy.state
    messages = asked(strategy)
    same = Update(0, before.structure, before, 50, honest(strategy, messages[0]).statistics)
    updates = [with_weights(same, lambda array: 0.801 * array)] * 20
    updates[3] = replace(with_weights(same, np.zeros_like), num_examples=2**40 - 1)
    strategy.aggregate_train(1, [reply(m, update) for m, update in zip(messages, updates, strict=True)])
    assert strategy.outcome.rows[3].num_examples == 99
    assert norm(strategy.state) == pytest.approx(norm(before) * 0.801 * 950 / (950 + 99), rel=1e-5)


def test_a_device_of_many_samples_that_goes_as_far_as_the_others_counts_for_ten_times_the_median():
    strategy = fleet(own={3: 10_000})
    messages = asked(strategy)
    updates = [honest(strategy, message) for message in messages]
    updates[3] = replace(updates[2], num_examples=10_000)
    updates[4] = replace(updates[4], num_examples=20)
    strategy.aggregate_train(1, [reply(m, update) for m, update in zip(messages, updates, strict=True)])
    assert strategy.outcome.rows[3].num_examples == pytest.approx(500, rel=0.05)
    assert [row.num_examples for row in strategy.outcome.rows[:3]] == [50] * 3
    assert strategy.outcome.rows[4].num_examples == 20


def test_no_device_counts_for_more_than_the_cap_wherever_its_samples_are_from():
    """One of 50 devices' 50 samples is there 400 times: of 2 times the median, 50 * 2 = 100 count."""
    capped = {"strategy.robust.cap": 2.0}
    strategy = fleet(**capped)
    devices = [
        replace(d, profile=replace(d.profile, num_examples=50 + 350 * (d.client == 3)))
        for d in strategy.devices
    ]
    strategy.enlist(devices)
    assert strategy.remarks == [
        "1 of 20 devices count for fewer samples than they have, 100: strategy.robust.cap times the fleet's "
        "median"
    ]
    before, messages = strategy.state, asked(strategy)
    same = Update(0, before.structure, before, 50, honest(strategy, messages[0]).statistics)
    updates = [with_weights(same, lambda array: 2 * array)] * 20
    updates[3] = replace(same, num_examples=400)
    strategy.aggregate_train(1, [reply(m, update) for m, update in zip(messages, updates, strict=True)])
    assert [strategy.outcome.rows[client].num_examples for client in (2, 3)] == [50, 100]
    assert [strategy.outcome.rows[client].num_examples_said for client in (2, 3)] == [None, 400]
    assert norm(strategy.state) == pytest.approx(norm(before) * (2 * 950 + 100) / 1050, rel=1e-5)


def test_parts_of_the_scenarios_data_count_for_all_their_samples():
    strategy = fleet(own={1: 500})
    assert strategy.remarks == []


def test_predicted_memory_is_the_servers_own():
    """The batch is fixed, so that the server's model gives the peak: the assigned structure's step."""
    strategy = fleet(3)
    messages = asked(strategy)
    expected = strategy.memory.training_bytes(strategy.state.structure.counts, 8)
    answers = []
    for message, claim in zip(messages, (1, expected, 2**40), strict=True):
        update = honest(strategy, message)
        said = replace(update.statistics, memory_predicted_bytes=claim, batch_size_last=8)
        answers.append(reply(message, replace(update, statistics=said)))
    strategy.aggregate_train(1, answers)
    assert [row.value("memory_predicted_bytes") for row in strategy.outcome.rows] == [expected] * 3


def test_memory_claimed_beyond_the_budget_is_noted_by_name(caplog):
    strategy = fleet(2)
    strategy.devices[1] = replace(
        strategy.devices[1], profile=replace(strategy.devices[1].profile, memory_bytes=2**20)
    )
    messages = asked(strategy)
    answers = []
    for message, claim in zip(messages, (1, 2**30), strict=True):
        update = honest(strategy, message)
        said = replace(update.statistics, memory_predicted_bytes=claim)
        answers.append(reply(message, replace(update, statistics=said)))
    strategy.aggregate_train(1, answers)
    (note,) = caplog.messages
    assert note.startswith(
        "client 1 says that its training took 1.00 GiB by the memory model; by the server's"
    )
    assert not strategy.outcome.rows[1].violates_budget()


def test_a_mean_that_no_device_would_take_is_not_taken(caplog, monkeypatch):
    strategy = fleet(2)
    before = strategy.state
    wild = {name: np.full_like(array, np.nan) for name, array in before.weights.items()}
    monkeypatch.setattr(type(strategy), "average", lambda self, _: ModelState(wild, before.structure))
    result = strategy.aggregate_train(1, [reply(m, honest(strategy, m)) for m in asked(strategy)])
    assert result == (None, None)
    assert strategy.state is before
    assert strategy.outcome.votes == {}
    assert "round 1: the new model is none (fc1.weight: holds NaN" in caplog.text


# Rolling back


class Looks:
    """A watch that sees what it is told, one look after the other."""

    def __init__(self, *looks: tuple[float, float]) -> None:
        self._looks = [Look(accuracy, loss, 0.5) for accuracy, loss in looks]

    def look(self, state: ModelState) -> Look:
        return self._looks.pop(0)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ((0.81, 0.6), (0.097, 2.3), True),  # of ten classes
        ((0.81, 0.6), (0.17, 2.3), True),  # 7 of 71 points are left
        ((0.81, 0.6), (0.18, 2.3), False),
        ((0.81, 0.6), (0.40, 1.9), False),  # a hard cut
        ((0.25, 2.2), (0.10, 2.3), False),  # it had little to lose
        ((0.10, 2.3), (0.10, float("nan")), True),
        ((0.10, float("inf")), (0.10, float("inf")), False),
    ],
)
def test_everything_is_lost_when_a_tenth_of_the_lead_over_guessing_is_left(before, after, lost):
    assert has_lost_all(Look(*before, 0.0), Look(*after, 0.0), guessing=0.1) is lost


def test_a_round_that_loses_everything_is_undone_and_named(caplog):
    strategy = fleet(3, **{"strategy.optimizer.name": "fedavgm"})
    looks = Looks((0.1, 2.3), (0.8, 0.7), (0.1, 9.0), (0.82, 0.6))
    safety = RollBack(looks, guessing=0.1, may_undo=True)  # type: ignore[arg-type]
    safety.looked_at(strategy.server, strategy.server, strategy.outcome)
    states, seen = [], []
    for server_round in (1, 2, 3):
        before, messages = strategy.server, asked(strategy, server_round)
        strategy.aggregate_train(server_round, [reply(m, honest(strategy, m)) for m in messages])
        strategy.server, _, look = safety.looked_at(before, strategy.server, strategy.outcome)
        seen.append(look)
        states.append(strategy.state)
    assert states[1] is states[0]
    assert states[2] is not states[1]
    assert [(look.accuracy, look.loss) for look in seen] == [(0.8, 0.7), (0.8, 0.7), (0.82, 0.6)]
    (note,) = [record.getMessage() for record in caplog.records if record.name == "fedhp.notes"]
    assert note.startswith("round 2: accuracy fell from 80.0% to 10.0%, the loss went from 0.7 to 9: ")
    assert "The largest update was that of client " in note


def looked_after(roll_back: bool, *looks: tuple[float, float]) -> bool:
    """Holds a round, before and after which the model looks so, and returns whether it counts."""
    strategy = fleet(3)
    safety = RollBack(Looks(*looks), guessing=0.1, may_undo=roll_back)  # type: ignore[arg-type]
    before = strategy.server
    safety.looked_at(before, before, strategy.outcome)
    strategy.aggregate_train(1, [reply(m, honest(strategy, m)) for m in asked(strategy)])
    after, _, look = safety.looked_at(before, strategy.server, strategy.outcome)
    counts = after.model is not before.model
    assert (look.accuracy, look.loss) == looks[counts]
    return counts


def test_a_round_that_loses_everything_counts_where_nothing_is_to_be_rolled_back(caplog):
    assert not looked_after(True, (0.8, 0.7), (0.1, 9.0))
    assert "(server.roll_back)" in caplog.text
    caplog.clear()
    assert looked_after(False, (0.8, 0.7), (0.1, 9.0))
    assert caplog.messages == []


def test_a_model_without_a_loss_is_never_kept():
    assert not looked_after(False, (0.8, 0.7), (0.8, float("nan")))


# Patience


def gone(message: Message) -> Message:
    """What the SuperLink answers at once for a node that missed its heartbeats."""
    return Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)


def round_in_vain(strategy: FleetStrategy, number: int, answer, nodes=((),)) -> None:
    grid = MemoryGrid(lambda message: None, nodes)
    strategy.aggregate_train(number, [answer(message) for message in asked(strategy, number, grid)])
    strategy.patience.check(strategy.server)


def test_devices_that_fail_have_three_rounds():
    strategy = fleet(2)
    for number in (1, 2):
        round_in_vain(strategy, number, lambda message: reply(message, "no disk"))
    with pytest.raises(TrainingError, match=r"all clients failed in rounds 1 to 3; .* \(6 of 6\).*no disk"):
        round_in_vain(strategy, 3, lambda message: reply(message, "no disk"))


def test_devices_that_are_gone_are_waited_for_and_the_run_goes_on_when_one_is_back(monkeypatch, caplog):
    """Rounds 1 to 4 fail at once; each next one begins only when node 1000 or 999 is connected again."""
    monkeypatch.setattr("fedhp.federation.roster._POLL_SECONDS", 0.0)
    strategy = fleet(2)
    for number in range(1, 5):
        round_in_vain(strategy, number, gone, nodes=[[7], [7], [7, 999]])
    strategy.aggregate_train(5, [reply(m, honest(strategy, m)) for m in asked(strategy, 5, back())])
    assert strategy.server.in_vain == ()
    assert caplog.text.count("waiting for devices to come back: 0 of 1 connected") == 3


def back() -> MemoryGrid:
    return MemoryGrid(lambda message: None, [[999, 1000]])


def test_patience_has_an_end(monkeypatch):
    monkeypatch.setattr("fedhp.federation.roster._POLL_SECONDS", 0.0)
    strategy = fleet(2, **{"server.patience_seconds": 0})
    round_in_vain(strategy, 1, gone)
    with pytest.raises(TrainingError, match=r"in round 1; .*Node Unavailable; server\.patience_seconds = 0"):
        round_in_vain(strategy, 2, gone)


def test_time_alone_ends_no_run():
    """Devices that are there and fail are not waited for, and those that answer again are forgiven."""
    patience = Patience(ServerConfig(patience_seconds=0), num_rounds=9)
    strategy = fleet(2)
    strategy.patience = patience
    round_in_vain(strategy, 1, lambda message: reply(message, "no disk"))
    round_in_vain(strategy, 2, lambda message: reply(message, "no disk"))
    strategy.aggregate_train(3, [reply(m, honest(strategy, m)) for m in asked(strategy, 3)])
    patience.check(strategy.server)
    assert strategy.server.in_vain == ()


def test_a_run_of_fewer_rounds_ends_with_them():
    strategy = fleet(2, rounds=1)
    with pytest.raises(TrainingError, match="all clients failed in round 1"):
        round_in_vain(strategy, 1, gone)


def test_notes_of_dropped_replies_name_who_sent_them(caplog):
    strategy = fleet(2)
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        messages = asked(strategy)
        strategy.aggregate_train(1, [reply(m, honest(strategy, m)) for m in (*messages, messages[0])])
    assert caplog.messages == ["dropped a second reply from client 0 (node 1000)"]


# What devices report


def reported(update: Update, rng: np.random.Generator) -> Update:
    """The same update with other figures, each such as is taken."""
    said = {
        name: rng.uniform(0, 1) if type(value) is float else int(rng.integers(1, 2**40))
        for name, value in vars(update.statistics).items()
        if value is not None and name != "num_local_test"
    }
    return replace(update, statistics=replace(update.statistics, **said))


@pytest.mark.parametrize("name", replies.of_units())
def test_what_devices_report_of_loss_accuracy_time_and_memory_steers_nothing(name):
    """Whatever figures come with the same updates: equal models to the bit, and the same are asked next."""
    few, rng = {"server.clients_per_round": 7}, np.random.default_rng(0)
    one, other = (fleet(12, name, **few) for _ in range(2))
    for server_round in (1, 2, 3):
        messages, others = asked(one, server_round), asked(other, server_round)
        for message, same in zip(messages, others, strict=True):
            assert message.metadata.dst_node_id == same.metadata.dst_node_id
            assert message.content.array_records == same.content.array_records
        updates = [trained(one.layout, message, 50, num_cut=1) for message in messages]
        told = [replace(update, statistics=reported(update, rng).statistics) for update in updates]
        one.aggregate_train(server_round, map(reply, messages, updates))
        other.aggregate_train(server_round, map(reply, others, told))
        assert [row.status for row in other.outcome.rows] == ["ok"] * 7
        assert same_bits(one.state, other.state)
        assert one.server.update_norms == other.server.update_norms


# Whatever comes

ENVELOPES = (
    {"reply_to_message_id": ""},
    {"reply_to_message_id": "0:1000"},
    {"src_node_id": 77},
    {"src_node_id": 0},
    {"group_id": "0"},
    {"message_type": "query"},
    {"run_id": 2},
)


def forged_envelope(rng: np.random.Generator, answer: Message) -> Message:
    """A right answer that does not answer what its sender was asked."""
    return altered(answer, **ENVELOPES[rng.integers(len(ENVELOPES))])


def spoiled_array(rng: np.random.Generator, answer: Message) -> Message:
    """One array is missing, unknown, cut off, of another type or kind, or out of all bounds."""
    record = dict(answer.content.array_records["model"])
    name = str(rng.choice(sorted(record)))
    array = record.pop(name)
    nan = array.data[:128] + b"\xff" * (len(array.data) - 128)  # what the header announces, each NaN
    spoiled = {
        "missing": None,
        "unknown": array,
        "cut off": Array(array.dtype, array.shape, array.stype, array.data[: -int(rng.integers(1, 9))]),
        "longer": Array(array.dtype, array.shape, array.stype, array.data + b"0"),
        "pickled": Array(array.dtype, array.shape, "pickle", array.data),
        "double": Array(array.numpy().astype(np.float64)),
        "noise": Array(array.dtype, array.shape, array.stype, rng.bytes(len(array.data))),
        "nan": Array(array.dtype, array.shape, array.stype, nan),
    }
    if name.startswith("structure"):
        del spoiled["nan"]  # every unit is kept already
    kind = str(rng.choice(list(spoiled)))
    if spoiled[kind] is not None:
        record["surprise" if kind == "unknown" else name] = spoiled[kind]
    return altered(answer, RecordDict({**answer.content, "model": ArrayRecord(record)}))


def spoiled_metric(rng: np.random.Generator, answer: Message) -> Message:
    """One number is missing, of another type, or beyond what can be."""
    metrics = dict(answer.content.metric_records["metrics"])
    name = str(rng.choice(sorted(metrics)))
    number = [None, -1, float("nan"), float("inf"), 2**62, [1, 2], -0.5][rng.integers(7)]
    metrics.pop(name)
    if number is not None:
        metrics[name] = number
    return altered(answer, RecordDict({**answer.content, "metrics": MetricRecord(metrics)}))


def out_of_proportion(rng: np.random.Generator, answer: Message) -> Message:
    """Every weight many times too large, with either sign."""
    factor = np.float32(rng.choice([-1e3, 1e3, 1e6, 1e30]))
    record = {
        name: array if name.startswith(("structure.", "score.")) else Array(array.numpy() * factor)
        for name, array in answer.content.array_records["model"].items()
    }
    return altered(answer, RecordDict({**answer.content, "model": ArrayRecord(record)}))


def no_answer(rng: np.random.Generator, answer: Message) -> Message:
    """Nothing at all, nothing that belongs here, or an error with a forged line."""
    if rng.integers(3) == 0:
        empty = altered(answer)
        empty.__dict__["_content"] = None
        return empty
    content = (RecordDict(), RecordDict({"model": ConfigRecord({"a": 1})}), RecordDict({"x": ArrayRecord()}))
    return altered(answer, content[rng.integers(3)])


@pytest.mark.parametrize("name", STRATEGIES)
def test_of_whatever_comes_only_right_answers_count_and_no_round_stops(name):
    """Twelve devices, of whom four send something wrong beside or instead of their answer, in any order.

    The model is to the bit what the others' answers make of it. Two rounds: what was remembered counts too.
    """
    rng = np.random.default_rng(sum(map(ord, name)))
    spoilers = (forged_envelope, spoiled_array, spoiled_metric, out_of_proportion, no_answer)
    strategy, alone = (fleet(12, name, **{"server.min_replies": 1}) for _ in range(2))
    for server_round in (1, 2):
        messages = asked(strategy, server_round)
        asked(alone, server_round)
        right = [reply(m, honest(strategy, m)) for m in messages]
        chosen = set(rng.permutation(12)[:4].tolist())
        wrong = [spoilers[rng.integers(5)](rng, right[index]) for index in chosen]
        others = [answer for index, answer in enumerate(right) if index not in chosen]
        arriving = [*wrong, *others]
        strategy.aggregate_train(server_round, [arriving[i] for i in rng.permutation(len(arriving))])
        alone.aggregate_train(server_round, others)
        bad = [row.client for row in strategy.outcome.rows if row.status != "ok"]
        assert bad == sorted(chosen)
        assert same_bits(strategy.state, alone.state)


@pytest.mark.parametrize("name", replies.of_units())
def test_no_kind_of_wrong_reply_counts_or_stops_a_round_or_moves_the_others_mean(name):
    """The short form of ``fedhp bench replies``: 20 of 60 replies in four rounds."""
    held = list(replies.rounds(name, False, np.random.default_rng(sum(map(ord, name))), 4))
    assert [one.is_right for one in held] == [True] * 4
    assert [kind for one in held for kind in one.accepted] == []


@pytest.mark.parametrize("name", ["mask_intersection", "fedrolex", "dense"])
def test_replies_that_no_check_can_tell_are_withstood_by_the_median(name):
    held = list(replies.rounds(name, True, np.random.default_rng(1), 4))
    assert [one.is_right for one in held] == [True] * 4
    assert {kind for one in held for kind in one.accepted} <= set(IN_PROPORTION)
    assert any(one.accepted for one in held)


def test_a_run_of_wrong_replies_is_counted_by_kind(monkeypatch):
    """A round that accepts one, one whose model is wrong, and one that stops."""
    outcomes = iter(
        [
            replies.Held(["an error", "no samples"], ["no samples"], True),
            replies.Held(["no samples", "no samples"], [], False),
            replies.Held(["an error", "an error"], [], None),
        ]
    )
    monkeypatch.setattr(replies, "rounds", lambda *_: iter([next(outcomes)]))
    result = replies.run_replies(6, strategies=["dense"], say=lambda _: None)
    assert (result["replies"], result["wrong_models"]) == (6, 1)
    rows = {row.pop("kind"): row for row in result["rows"]}
    assert rows["no samples"] == {"sent": 3, "accepted": 1, "stopped": 0}
    assert rows["an error"] == {"sent": 3, "accepted": 0, "stopped": 2}
    assert len(MISATTRIBUTED) + len(MALFORMED) > 40


def test_a_check_that_is_missing_is_found(monkeypatch):
    monkeypatch.setattr("fedhp.federation.checks.check_scores", lambda *_: None)
    monkeypatch.setattr("fedhp.federation.wire.check_scores", lambda *_: None)
    monkeypatch.setattr(replies, "REFUSED", {"a score is negative": MALFORMED["a score is negative"]})
    (first, *_) = replies.rounds("mask_intersection", False, np.random.default_rng(0), 1)
    assert first.accepted == ["a score is negative"] * 4
