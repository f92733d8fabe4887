"""Strategies and the roster: who is asked, with what, whose reply counts, and what survives."""

import logging
import re

import numpy as np
import pytest
from factories import (
    MemoryGrid,
    altered,
    dense_layout,
    num_parameters,
    random_state,
    reply,
    same_bits,
    stamped,
    structure,
    trained,
    update,
)
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from small_models import ARCHITECTURES

from fedhp.aggregation.options import ServerOptimizerConfig
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.costs.memory import MemoryModel
from fedhp.data import Normalisation
from fedhp.errors import BudgetError, ScenarioError, TrainingError
from fedhp.federation import wire
from fedhp.federation.replies import Sent, in_order
from fedhp.federation.roster import Device, query_fleet
from fedhp.federation.server_optimizer import ServerOptimizer
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.architecture import initial_state
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.simulation.identity import acting_as
from strategies import (
    STRATEGIES,
    Dense,
    Exclusive,
    FedDST,
    FederatedDropout,
    FedRolex,
    FleetStrategy,
    HeteroFL,
    HoldersMean,
    MaskIntersection,
    Smallest,
)

BRIEF = wire.Brief("{}", (1, 2, 2), 3, Normalisation((0.5,), (0.25,)), prunes=True, budgeted=True)


@pytest.fixture(autouse=True)
def _as_the_server():
    with acting_as(0):
        yield


def scenario(**values) -> Scenario:
    """A perceptron of 4 inputs, 8 and 6 hidden units and 3 classes: 8*5 + 6*9 + 3*7 = 115 parameters."""
    small = {
        "rounds": 4,
        "model": {"widths": [8, 6], "floor": 2},
        "fleet": {"num_clients": 5},
        "prune": {"target_compression": 2.0, "start": 0.0, "end": 1.0},
    }
    return load_scenario("quickstart", values={**small, **values})


def build(kind: type[FleetStrategy] = MaskIntersection, **values) -> FleetStrategy:
    chosen = scenario(**values)
    recipe = chosen.recipe((1, 2, 2), 3)
    memory = recipe.memory_model(1)
    return kind(chosen, recipe, memory, initial_state(recipe.architecture, chosen.seed), BRIEF)


def device(client: int, budget: int | None = None, num_examples: int = 50) -> Device:
    """A device whose node id runs against its partition id, so that the two orders differ."""
    return Device(1000 - client, client, DeviceProfile("phone", budget, num_examples))


def enlisted(kind: type[FleetStrategy] = MaskIntersection, budgets=(None,) * 5, **values) -> FleetStrategy:
    strategy = build(kind, **values)
    strategy.enlist([device(client, budget) for client, budget in enumerate(budgets)])
    return strategy


def asked(strategy: FleetStrategy, server_round: int = 1) -> list[Message]:
    grid = MemoryGrid(lambda message: None)
    return stamped(strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid))


def answers(strategy: FleetStrategy, messages: list[Message], num_cut: int = 1) -> list[Message]:
    return [
        reply(message, trained(strategy.layout, message, 10 + index, num_cut))
        for index, message in enumerate(messages)
    ]


def structure_of(strategy: FleetStrategy, message: Message):
    return wire.unpack_task(message.content, strategy.layout)[1].structure


# Asking


def test_devices_of_one_structure_share_one_payload_object():
    strategy = enlisted(budgets=(None, 900, None, 900, None))
    messages = asked(strategy)
    contents = {id(message.content) for message in messages}
    digests = {structure_of(strategy, message).digest for message in messages}
    assert len(messages) == 5
    assert len(contents) == len(digests) == 2


def test_what_is_sent_is_the_global_model_cut_to_the_structure():
    strategy = enlisted(budgets=(None, 900))
    for message in asked(strategy, 3):
        server_round, state = wire.unpack_task(message.content, strategy.layout)
        assert server_round == 3
        assert message.metadata.message_type == MessageType.TRAIN
        assert same_bits(state, strategy.state.cut(strategy.layout, state.structure))
        assert wire.unpack_brief(message.content) == strategy.brief


def fits(memory: MemoryModel, counts, budget: int, batch: int) -> bool:
    return memory.training_bytes(counts, batch) <= budget


@pytest.mark.parametrize("budget", [700, 900, 1200, 2000, 4000])
def test_every_assigned_structure_fits_its_budget_and_lies_within_the_global_one(budget):
    strategy = enlisted(budgets=(None, budget))
    by_node = {message.metadata.dst_node_id: message for message in asked(strategy)}
    whole = structure_of(strategy, by_node[1000])
    small = structure_of(strategy, by_node[999])
    assert whole == strategy.state.structure
    assert strategy.state.structure.contains(small)
    assert fits(strategy.memory, small.counts, budget, batch=1)


def test_of_budgets_that_hold_the_wanted_batch_a_larger_one_is_given_at_least_as_many_units():
    least = build().memory.training_bytes({"inputs": 2, "fc1": 2, "fc2": 2}, scenario().train.batch_size)
    strategy = enlisted(budgets=(None, least, least + 500, least + 1000, 100_000))
    sizes = [structure_of(strategy, message).num_units() for message in asked(strategy)[1:]]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 18


def test_a_sample_is_seeded_sorted_and_of_the_size_asked_for():
    values = {"server": {"clients_per_round": 3}}
    first, again = enlisted(**values), enlisted(**values)
    draws = [[d.client for d in first.sample(number)] for number in range(1, 13)]
    assert draws == [[d.client for d in again.sample(number)] for number in range(1, 13)]
    assert all(len(set(draw)) == 3 and draw == sorted(draw) for draw in draws)
    assert len(set(map(tuple, draws))) > 1
    assert set().union(*draws) == set(range(5))


def test_another_seed_samples_others():
    one, other = (enlisted(server={"clients_per_round": 2}, seed=seed) for seed in (0, 1))
    assert [[d.client for d in one.sample(n)] for n in range(1, 9)] != [
        [d.client for d in other.sample(n)] for n in range(1, 9)
    ]


@pytest.mark.parametrize("number", [0, 5])
def test_without_a_smaller_number_all_are_sampled(number):
    strategy = enlisted(server={"clients_per_round": number})
    assert [d.client for d in strategy.sample(1)] == [0, 1, 2, 3, 4]


# Replies


def test_in_order_yields_as_soon_as_the_order_allows_and_holds_only_early_replies():
    """Replies of clients 1, 0, 3, 2 (nodes run the other way): nothing, then 0 and 1, nothing, 2 and 3."""
    strategy = enlisted()
    messages = asked(strategy)
    replies = {1000 - m.metadata.dst_node_id: reply(m, "no") for m in messages}
    read: list[int] = []

    def arriving():
        for client in (1, 0, 3, 2):
            read.append(client)
            yield replies[client]

    stream = in_order(strategy._sent, arriving())
    seen = []
    for sent, _ in stream:
        seen.append((sent.device.client, list(read)))
    assert seen == [
        (0, [1, 0]),
        (1, [1, 0]),
        (2, [1, 0, 3, 2]),
        (3, [1, 0, 3, 2]),
        (4, [1, 0, 3, 2]),
    ]


def test_in_order_gives_a_device_without_reply_none_and_the_later_ones_theirs():
    strategy = enlisted()
    messages = asked(strategy)
    replies = [reply(m, "no") for m in messages if m.metadata.dst_node_id != 1000]
    got = [(sent.device.client, answer is None) for sent, answer in in_order(strategy._sent, replies)]
    assert got == [(0, True), (1, False), (2, False), (3, False), (4, False)]


def test_in_order_drops_strangers_and_second_replies_and_notes_them(caplog):
    strategy = enlisted(budgets=(None, None))
    messages = asked(strategy)
    first, second = (reply(m, "no") for m in messages)
    stranger = reply(Message(RecordDict(), 77, MessageType.TRAIN), "who?")
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        # Node 999's second one while it waits, node 1000's after it was yielded.
        got = list(in_order(strategy._sent, [stranger, second, second, first, first]))
    assert [answer for _, answer in got] == [first, second]
    assert caplog.messages == [
        "dropped a reply from node 77: the node was not asked",
        "dropped a second reply from client 1 (node 999)",
        "dropped a second reply from client 0 (node 1000)",
    ]


def in_place_of_the_node(message: Message) -> Message:
    """What the SuperLink answers where a node is gone: an error in the server's own name, without a group."""
    server = message.metadata.src_node_id
    answer = reply(message, "no heartbeat")
    return altered(answer, src_node_id=server, dst_node_id=server, group_id="", message_type="system")


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ({"reply_to_message_id": "0:999"}, "client 1 (node 999): it answers no question of this round"),
        ({"reply_to_message_id": ""}, "client 1 (node 999): it answers no question of this round"),
        ({"src_node_id": 1000}, "client 0 (node 1000): it answers what node 999 was asked"),
        ({"src_node_id": 77}, "node 77: it answers what node 999 was asked"),
        ({"src_node_id": 0}, "node 0: it answers what node 999 was asked"),
        ({"group_id": "2"}, "client 1 (node 999): its group id is '2', expected '1'"),
        ({"message_type": "query"}, "client 1 (node 999): its message type is 'query', expected 'train'"),
        ({"run_id": 7}, "client 1 (node 999): it belongs to run 7, not to 1"),
    ],
)
def test_a_reply_that_does_not_answer_what_its_sender_was_asked_is_dropped_and_named(caplog, flaw, said):
    """Node 0 is the server, which answers for a node that is gone, but with an error only."""
    strategy = enlisted(budgets=(None, None))
    first, second = asked(strategy)
    right, wrong = (reply(m, trained(strategy.layout, m, 20)) for m in (first, second))
    strategy.aggregate_train(1, [altered(wrong, **flaw), right])
    assert [row.status for row in strategy.reports] == ["ok", "failed"]
    assert strategy.reports[1].failure.startswith("timeout: ")
    assert caplog.messages == [f"dropped a reply from {said}"]


def test_a_misattributed_reply_does_not_keep_the_right_one_out():
    strategy, alone = enlisted(budgets=(None, None)), enlisted(budgets=(None, None))
    messages = asked(strategy)
    right = answers(strategy, messages)
    forged = altered(reply(messages[1], trained(strategy.layout, messages[1], 50)), src_node_id=1000)
    strategy.aggregate_train(1, [forged, *right])
    asked(alone)
    alone.aggregate_train(1, right)
    assert same_bits(strategy.state, alone.state)


def test_a_message_with_neither_content_nor_error_is_a_failure_like_another():
    strategy = enlisted(budgets=(None, None))
    messages = asked(strategy)
    empty, right = answers(strategy, messages)
    empty.__dict__["_content"] = None
    strategy.aggregate_train(1, [empty, right])
    assert [row.status for row in strategy.reports] == ["failed", "ok"]
    assert strategy.reports[0].failure == "reply: holds neither content nor an error"


def test_an_answer_in_place_of_a_node_is_taken_for_that_nodes(caplog):
    strategy = enlisted(budgets=(None, None))
    first, second = asked(strategy)
    answer = reply(second, trained(strategy.layout, second, 5))
    strategy.aggregate_train(1, [in_place_of_the_node(first), answer])
    assert [(row.client, row.status, row.failure) for row in strategy.reports] == [
        (0, "failed", "no heartbeat"),
        (1, "ok", ""),
    ]
    assert not caplog.messages


def test_sent_says_what_went_down():
    """The full model of 115 parameters: 4 bytes per parameter and score, one per group, and headers.

    The groups are 4 inputs, 8 and 6 neurons; the arrays six weights, three structures and three scores.
    """
    strategy = enlisted()
    asked(strategy)
    sent = strategy._sent[1000]
    assert isinstance(sent, Sent)
    assert sent.num_parameters == 115
    assert sent.num_bytes == 4 * (115 + 18) + 3 + 12 * 128


# Aggregation


def test_the_order_of_replies_changes_no_bit():
    results = []
    for seed in range(4):
        strategy = enlisted(budgets=(None, 900, 1200, None, 2000))
        messages = asked(strategy)
        replies = answers(strategy, messages)
        shuffled = [replies[index] for index in np.random.default_rng(seed).permutation(5)]
        arrays, metrics = strategy.aggregate_train(1, shuffled)
        assert [row.client for row in strategy.reports] == [0, 1, 2, 3, 4]
        assert same_bits(wire.unpack_state(arrays, strategy.layout), strategy.state)
        results.append((strategy.state, dict(metrics)))
    assert all(same_bits(results[0][0], state) for state, _ in results)
    assert all(metrics == results[0][1] for _, metrics in results)


def test_a_round_of_two_complete_replies_is_their_weighted_mean():
    strategy = enlisted(Dense, budgets=(None, None))
    messages = asked(strategy)
    one = random_state(strategy.layout, strategy.layout.full(), 1)
    two = random_state(strategy.layout, strategy.layout.full(), 2)
    strategy.aggregate_train(
        1, [reply(messages[0], update(one, None, 10)), reply(messages[1], update(two, None, 30))]
    )
    for name, got in strategy.state.weights.items():
        expected = np.average([one.weights[name], two.weights[name]], 0, [10, 30])
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_rows_tell_what_a_client_received_and_sent():
    strategy = enlisted(budgets=(None, 900))
    messages = asked(strategy)
    replies = answers(strategy, messages, num_cut=1)
    strategy.aggregate_train(1, replies)
    for row, message, answer in zip(strategy.reports, messages, replies, strict=True):
        task = wire.unpack_task(message.content, strategy.layout)[1]
        back = wire.unpack_state(answer.content["model"], strategy.layout)
        assert (row.round, row.status, row.failure) == (1, "ok", "")
        assert row.params_received == num_parameters(strategy.layout, task.structure.counts)
        assert row.params_sent == num_parameters(strategy.layout, back.structure.counts)
        assert row.units_pruned == task.structure.num_units() - back.structure.num_units()
        assert row.bytes_down == wire.record_bytes(message.content["model"])
        assert row.bytes_up == wire.update_bytes(answer.content)
    assert [row.memory_budget_bytes for row in strategy.reports] == [None, 900]


def test_a_round_in_which_all_fail_changes_nothing_and_is_counted():
    strategy = enlisted()
    before = strategy.state
    messages = asked(strategy)
    replies = [reply(m, f"data: disk {m.metadata.dst_node_id} is gone") for m in reversed(messages)]
    assert strategy.aggregate_train(1, replies) == (None, None)
    assert strategy.state is before
    assert [row.failure for row in strategy.reports] == [f"data: disk {1000 - n} is gone" for n in range(5)]
    assert strategy.patience.rounds_in_vain == (strategy.reports,)


def test_rounds_in_vain_are_counted_in_a_row():
    strategy = enlisted()
    for _ in range(2):
        asked(strategy)
        assert strategy.aggregate_train(1, []) == (None, None)
    assert {row.failure for row in strategy.reports} == {"timeout: no reply arrived in time"}
    assert [len(rows) for rows in strategy.patience.rounds_in_vain] == [5, 5]
    strategy.aggregate_train(2, answers(strategy, asked(strategy)))
    assert strategy.patience.rounds_in_vain == ()


def test_too_few_valid_replies_change_nothing(caplog):
    strategy = enlisted(server={"min_replies": 3})
    before = strategy.state
    messages = asked(strategy)
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        result = strategy.aggregate_train(1, answers(strategy, messages)[:2])
    assert result == (None, None)
    assert strategy.state is before
    assert [row.status for row in strategy.reports] == ["ok", "ok", "failed", "failed", "failed"]
    assert "min_replies" in caplog.text


@pytest.mark.parametrize(("per_round", "asked_for"), [(0, 3), (2, 2)])
def test_replies_that_can_never_be_are_refused_with_both_numbers(per_round, asked_for):
    """Of five devices, three can train the full model and so take part in ``exclusive``."""
    budgets, strategy = (None, 700, None, 700, None), {"name": "exclusive"}
    server = {"clients_per_round": per_round, "min_replies": asked_for}
    enlisted(Exclusive, budgets, strategy=strategy, server=server)
    server = {"clients_per_round": 5, "min_replies": 4}
    with pytest.raises(ScenarioError, match=r"server\.min_replies = 4 .* 3 devices, .*'exclusive'"):
        enlisted(Exclusive, budgets, strategy=strategy, server=server)


@pytest.mark.parametrize(("per_round", "most"), [(0, 5), (3, 3)])
def test_votes_that_can_never_be_are_refused_with_both_numbers(per_round, most):
    server = {"clients_per_round": per_round}
    enlisted(FedDST, strategy={"name": "feddst", "min_votes": most}, server=server)
    with pytest.raises(ScenarioError, match=rf"strategy\.min_votes = {most + 1} .* {most} devices,"):
        enlisted(FedDST, strategy={"name": "feddst", "min_votes": most + 1}, server=server)


def test_votes_are_those_of_the_round_and_none_are_kept_of_one_before():
    """Both devices are assigned everything and cut one of 8 units of ``fc1`` each, on 10 and 11 examples."""
    strategy = enlisted(budgets=(None, None), rounds=2, server={"min_replies": 2})
    messages = asked(strategy)
    strategy.aggregate_train(1, answers(strategy, messages))
    votes = strategy.votes["fc1"]
    assert len(votes) == strategy.layout.widths["fc1"]
    assert 21 * (1 - votes).sum() == pytest.approx(10 + 11)
    strategy.aggregate_train(2, answers(strategy, asked(strategy, 2))[:1])
    assert strategy.votes == {}


def test_where_nobody_prunes_there_are_no_votes():
    strategy = enlisted(Dense, budgets=(None, None))
    strategy.aggregate_train(1, answers(strategy, asked(strategy), num_cut=0))
    assert strategy.votes == {}


def test_failures_are_rows_and_the_round_goes_on_without_them():
    """Client 1 errs, 2 answers NaN, 3 is silent: the result is that of clients 0 and 4 alone."""
    strategy, alone = enlisted(), enlisted()
    messages = asked(strategy)
    replies = answers(strategy, messages)
    broken = trained(strategy.layout, messages[2], 12)
    broken.state.weights["fc1.bias"][0] = np.nan
    mixed = [replies[0], reply(messages[1], "train: loss is nan"), reply(messages[2], broken), replies[4]]
    strategy.aggregate_train(1, mixed)

    reconciliation = Reconciliation(alone.layout, alone.state)
    for index in (0, 4):
        message, sent = messages[index], alone.state.structure
        update_ = wire.unpack_update(replies[index].content, alone.layout, index, sent, device(index).profile)
        assert message.metadata.dst_node_id == 1000 - index
        reconciliation.add(update_)
    expected = reconciliation.mean().cut(alone.layout, alone.survivors(reconciliation, 1))

    assert same_bits(strategy.state, expected)
    assert [row.status for row in strategy.reports] == ["ok", "failed", "failed", "failed", "ok"]
    assert strategy.reports[1].failure == "train: loss is nan"
    assert strategy.reports[2].failure.startswith("reply: fc1.bias")
    assert strategy.reports[3].failure.startswith("timeout: ")
    assert strategy.reports[3].bytes_up == 0
    assert strategy.reports[3].bytes_down > 0


def test_a_reply_with_more_examples_than_announced_has_no_weight():
    strategy = enlisted(budgets=(None, None))
    messages = asked(strategy)
    greedy = reply(messages[0], trained(strategy.layout, messages[0], 51))
    honest = reply(messages[1], trained(strategy.layout, messages[1], 50))
    _, metrics = strategy.aggregate_train(1, [greedy, honest])
    assert metrics["num-examples"] == 50
    assert "num-examples is 51" in strategy.reports[0].failure


def test_the_loss_of_a_round_is_weighted_by_examples():
    """STATISTICS says 0.5 for both: the mean is 0.5 over 10 + 11 examples."""
    strategy = enlisted(budgets=(None, None))
    messages = asked(strategy)
    _, metrics = strategy.aggregate_train(1, answers(strategy, messages))
    assert dict(metrics) == {"num-examples": 21, "train-loss": 0.5}


def test_the_row_of_a_client_that_trained_on_fewer_samples_says_how_many():
    """A device may announce 50 samples and train on 12: its weight in the mean is 12, and so its row."""
    strategy = enlisted(budgets=(None,))
    (message,) = asked(strategy)
    _, metrics = strategy.aggregate_train(1, [reply(message, trained(strategy.layout, message, 12))])
    assert strategy.reports[0].num_examples == metrics["num-examples"] == 12


# Survivors


@pytest.mark.parametrize("server_round", [1, 2, 3, 4])
def test_the_structure_never_falls_below_the_schedule(server_round):
    """Five clients cut 2 different units each of 8 and 6; their plain intersection would be far smaller."""
    strategy = enlisted()
    messages = asked(strategy)
    plain = strategy.state.structure
    replies = answers(strategy, messages, num_cut=2)
    for answer in replies:
        plain = plain.intersect(wire.unpack_state(answer.content["model"], strategy.layout).structure)
    bounds = strategy.recipe.schedule.counts(server_round / 4)
    strategy.aggregate_train(server_round, replies)
    after = strategy.state.structure
    assert after.contains(plain)
    for group, count in after.counts.items():
        assert count == max(plain.counts[group], bounds[group])


def test_units_that_all_pruned_go_even_before_schedule():
    # At round 1 of 100 the schedule, which begins at half-way, still wants the full model.
    prune = {"target_compression": 2.0, "start": 0.5, "end": 1.0}
    strategy = enlisted(budgets=(None, None), rounds=100, prune=prune)
    kept = structure(strategy.layout, fc1=range(1, 8), fc2=range(6))
    replies = [
        reply(message, update(random_state(strategy.layout, kept), strategy.layout.full(), 10))
        for message in asked(strategy)
    ]
    strategy.aggregate_train(1, replies)
    assert strategy.state.structure == kept


@pytest.mark.parametrize("kind", [Dense, Exclusive])
def test_the_yardsticks_keep_all_units_whatever_a_client_sends(kind):
    strategy = enlisted(kind)
    messages = asked(strategy)
    strategy.aggregate_train(1, answers(strategy, messages, num_cut=2))
    assert strategy.state.structure == strategy.layout.full()


# Who takes part


def test_dense_knows_no_budget():
    strategy = enlisted(Dense, budgets=(None, 1, 100))
    assert [d.client for d in strategy.devices] == [0, 1, 2]
    assert all(structure_of(strategy, message) == strategy.layout.full() for message in asked(strategy))
    strategy.aggregate_train(1, answers(strategy, asked(strategy)))
    assert [row.memory_budget_bytes for row in strategy.reports] == [None, None, None]


def test_exclusive_admits_exactly_those_that_hold_the_full_model_with_one_sample():
    needed = build(Exclusive).memory.training_bytes({"inputs": 4, "fc1": 8, "fc2": 6}, 1)
    strategy = enlisted(Exclusive, budgets=(needed - 1, needed, needed + 1, None))
    assert [d.client for d in strategy.devices] == [1, 2, 3]
    assert all(structure_of(strategy, message) == strategy.layout.full() for message in asked(strategy))


def test_exclusive_without_any_device_is_refused():
    with pytest.raises(BudgetError, match=r"no device.*budget"):
        enlisted(Exclusive, budgets=(1, 2))


def test_a_device_too_small_for_the_smallest_structure_is_left_out_by_name():
    strategy = enlisted(budgets=(None, 10))
    assert [device.client for device in strategy.devices] == [0]
    (remark,) = strategy.remarks
    assert re.search(r"^client 1 \(phone\) is left out: .*budget is 10 bytes", remark)
    with pytest.raises(BudgetError, match=r"no device.*client 0 \(phone\) is left out: .*10 bytes"):
        enlisted(budgets=(10, 10))


def test_the_global_model_starts_no_larger_than_the_largest_device_can_train():
    strategy = enlisted(budgets=(900, 1200))
    counts = strategy.state.structure.counts
    assert sum(counts.values()) < 18
    assert fits(strategy.memory, counts, 1200, batch=1)
    largest = structure_of(strategy, asked(strategy)[1])
    assert largest == strategy.state.structure


def test_the_global_model_starts_whole_where_one_device_has_no_limit():
    assert enlisted(budgets=(900, None)).state.structure.num_units() == 18


# Set-up


@pytest.mark.parametrize(("name", "kind"), STRATEGIES.items(), ids=STRATEGIES)
def test_every_strategy_that_ships_holds_a_round(name, kind):
    """Three devices, two of them small, answer; whatever is sent fits, and the model is one of the layout."""
    chosen = load_scenario("quickstart", [f"strategy.name={name}"])
    strategy = prepare(chosen).strategy
    assert type(strategy) is kind
    budgets = (None, 2**16, 2**15)
    strategy.enlist([device(client, budget) for client, budget in enumerate(budgets)])
    for server_round in (1, 2):
        messages = asked(strategy, server_round)
        for message in messages if strategy.budgeted else []:
            budget = budgets[1000 - message.metadata.dst_node_id]
            counts = structure_of(strategy, message).counts
            assert budget is None or fits(strategy.memory, counts, budget, batch=1)
        strategy.aggregate_train(server_round, answers(strategy, messages, num_cut=1 if kind.prunes else 0))
        assert {row.status for row in strategy.reports} == {"ok"}
        state, counts = strategy.state, strategy.state.structure.counts
        assert {n: w.shape for n, w in state.weights.items()} == {
            name: strategy.layout.shape(name, counts) for name in strategy.layout.shapes
        }


def test_a_strategy_of_the_users_own_is_found_by_reference():
    chosen = load_scenario("quickstart", ["strategy.name='test_strategies:Own'"])
    assert type(prepare(chosen).strategy).__name__ == "Own"


@pytest.mark.parametrize(
    ("name", "option", "owners"),
    [
        ("heterofl", "quorum=0.5", "mask_intersection, zero_filled"),
        ("mask_intersection", "levels=[0.5]", "heterofl, fedrolex, fjord, federated_dropout"),
        ("dense", "uncovered=zero", "mask_intersection, holders_mean"),
        ("mask_intersection", "min_votes=3", "feddst"),
    ],
)
def test_an_option_that_another_strategy_owns_is_refused(name, option, owners):
    chosen = load_scenario("quickstart", [f"strategy.name={name}", f"strategy.{option}"])
    with pytest.raises(ScenarioError, match=rf"strategy\.{option.partition('=')[0]}: .*'{name}'.*{owners}"):
        prepare(chosen)


@pytest.mark.parametrize("name", ["heterofl", "fedrolex", "fjord", "federated_dropout", "smallest"])
def test_strategies_that_cut_no_inputs_leave_the_image_whole(name):
    setup = prepare(load_scenario("quickstart", [f"strategy.name={name}"]))
    assert set(setup.strategy.layout.widths) == {"fc1", "fc2"}
    assert not setup.scenario.model.prune_inputs


def whole_inputs(kind: type[FleetStrategy], budgets, **values) -> FleetStrategy:
    model = {"widths": [8, 6], "floor": 1, "prune_inputs": False}
    return enlisted(kind, budgets, model=model, **values)


def test_nested_parts_lie_within_each_other_and_the_model_is_the_widest_of_them():
    strategy = whole_inputs(HeteroFL, (1500, 2000, 2600))
    parts = [structure_of(strategy, message) for message in asked(strategy)]
    assert parts[1].contains(parts[0])
    assert parts[2].contains(parts[1])
    assert parts[0] != parts[1] != parts[2] == strategy.state.structure
    assert all(
        part.kept(group).tolist() == list(range(n)) for part in parts for group, n in part.counts.items()
    )


def test_levels_are_those_of_the_scenario():
    strategy = whole_inputs(HeteroFL, (None, 1000), strategy={"name": "heterofl", "levels": [0.5, 0.25]})
    counts = [dict(structure_of(strategy, message).counts) for message in asked(strategy)]
    assert counts == [{"fc1": 4, "fc2": 3}, {"fc1": 2, "fc2": 2}]


def test_of_levels_that_fit_nobody_the_smallest_budget_tells_what_would():
    """Whoever takes the level that is named is not refused again for another class."""
    classes = [{"name": str(size), "memory": f"{size}B"} for size in (2**20, 80_000, 70_000)]
    values = {"strategy.name": "heterofl", "strategy.levels": [1.0], "fleet.classes": classes}
    with pytest.raises(BudgetError, match=r"budget is 70,000 bytes") as refusal:
        prepare(load_scenario("quickstart", values=values))
    (level,) = re.findall(r"Add the level (0\.\d+)", str(refusal.value))
    prepare(load_scenario("quickstart", values={**values, "strategy.levels": [1.0, float(level)]}))


@pytest.mark.parametrize("kind", [HeteroFL, FedRolex, FederatedDropout])
def test_a_device_too_small_for_every_level_is_left_out_by_name(kind):
    strategy = whole_inputs(kind, (None, 1000), strategy={"name": "heterofl", "levels": [1.0]})
    (remark,) = strategy.remarks
    assert "client 1 (phone) is left out: the smallest of strategy.levels, 1, takes" in remark
    assert len(asked(strategy)) == 1


def test_a_setting_of_no_optimiser_is_refused():
    with pytest.raises(ScenarioError, match=r"strategy\.optimizer\.momentum has no effect.*fedavgm"):
        ServerOptimizerConfig(momentum=0.5)


def test_a_rolling_window_moves_with_the_round_and_random_parts_differ_by_client_and_round():
    budgets = (700, 700)
    rolling, drawn = (whole_inputs(kind, budgets) for kind in (FedRolex, FederatedDropout))
    windows = [[structure_of(rolling, m).digest for m in asked(rolling, number)] for number in (1, 2)]
    parts = [[structure_of(drawn, m).digest for m in asked(drawn, number)] for number in (1, 2)]
    again = [[structure_of(drawn, m).digest for m in asked(drawn, number)] for number in (1, 2)]
    assert windows[0][0] == windows[0][1] != windows[1][0]
    assert len({*parts[0], *parts[1]}) == 4
    assert parts == again


def test_the_smallest_model_is_that_of_the_weakest_device():
    strategy = whole_inputs(Smallest, (None, 900, 1400))
    counts = strategy.state.structure.counts
    assert fits(strategy.memory, counts, 900, batch=1)
    assert {structure_of(strategy, message).digest for message in asked(strategy)} == {
        strategy.state.structure.digest
    }
    assert strategy.state.num_parameters() < 8 * 5 + 6 * 9 + 3 * 7


def one_round(kind: type[FleetStrategy], kept: list[list[int]], **values) -> Structure:
    """Returns what is left of 8 and 6 units after clients kept these of the first 8, at round 4 of 4."""
    strategy = enlisted(kind, (None,) * len(kept), **values)
    replies = []
    for message, units in zip(asked(strategy), kept, strict=True):
        state = random_state(strategy.layout, structure(strategy.layout, fc1=units))
        replies.append(reply(message, update(state, strategy.layout.full(), 10)))
    strategy.aggregate_train(4, replies)
    return strategy.state.structure


def test_by_the_union_a_unit_goes_when_all_have_cut_it():
    kept = [[0, 1, 2], [2, 3], [2, 5]]
    assert one_round(HoldersMean, kept).kept("fc1").tolist() == [0, 1, 2, 3, 5]


def test_by_votes_a_unit_needs_as_many_clients_as_asked_for():
    """At the last round the schedule wants a compression of 2, and more than two units of fc1."""
    kept = [[0, 1, 2, 7], [2, 3, 7], [2, 5, 7]]
    survivors = one_round(FedDST, kept, strategy={"name": "feddst", "min_votes": 2})
    assert {2, 7} <= set(survivors.kept("fc1").tolist())
    assert survivors.counts["fc1"] == enlisted(FedDST).bounds(4)["fc1"]


# Server optimisers


def server_step(config: ServerOptimizerConfig, layout, before, means) -> list[ModelState]:
    optimizer = ServerOptimizer(config, layout)
    states = [before]
    for number, mean in enumerate(means, start=1):
        states.append(optimizer.step(number, states[-1], mean))
    return states[1:]


def constant(layout, value: float, kept: Structure | None = None) -> ModelState:
    kept = kept or layout.full()
    shapes = {name: layout.shape(name, kept.counts) for name in layout.shapes}
    return ModelState({name: np.full(shape, value, np.float32) for name, shape in shapes.items()}, kept)


def test_momentum_on_the_server_by_hand():
    """From 1 the mean 2 gives a step of 1: to 2. Then the mean 2 gives none, and .5 of the last one: 2.5."""
    layout = dense_layout(3)
    config = ServerOptimizerConfig("fedavgm", learning_rate=1.0, momentum=0.5)
    first, second = server_step(config, layout, constant(layout, 1), [constant(layout, 2)] * 2)
    assert {w for array in first.weights.values() for w in array.ravel().tolist()} == {2.0}
    assert {w for array in second.weights.values() for w in array.ravel().tolist()} == {2.5}


def test_adam_on_the_server_by_hand():
    """Flower's: delta 1, m = .1, v = .01; its rate for round 1 is eta sqrt(1 - .99^2) / (1 - .9^2)."""
    layout = dense_layout(3)
    config = ServerOptimizerConfig("fedadam", learning_rate=0.1, momentum=0.9, beta_2=0.99, tau=0.001)
    (after,) = server_step(config, layout, constant(layout, 1), [constant(layout, 2)])
    rate = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    expected = 1 + rate * 0.1 / (np.sqrt(0.01) + 0.001)
    np.testing.assert_allclose(after.weights["in.weight"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_what_a_server_optimiser_remembers_is_cut_with_the_model(name):
    """A cut between two steps gives what cutting all three models beforehand gives."""
    layout = dense_layout(4)
    part = structure(layout, a=[1, 3])
    start, one, two = (random_state(layout, layout.full(), seed) for seed in (1, 2, 3))
    config = ServerOptimizerConfig(name)
    optimizer = ServerOptimizer(config, layout)
    between = optimizer.step(1, start, one).cut(layout, part)
    optimizer.cut(layout.full(), part)
    cut_late = optimizer.step(2, between, two.cut(layout, part))
    small = [state.cut(layout, part) for state in (start, one, two)]
    cut_early = server_step(config, layout, small[0], small[1:])[-1]
    for weights, expected in zip(cut_late.weights.values(), cut_early.weights.values(), strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_running_statistics_are_no_parameters_to_a_server_optimiser():
    arch = ARCHITECTURES["resnet20"]
    before = initial_state(arch, 0)
    mean = ModelState({name: w + 1 for name, w in before.weights.items()}, before.structure)
    after = ServerOptimizer(ServerOptimizerConfig("fedadam"), arch.layout).step(1, before, mean)
    for name in arch.layout.shapes:
        taken = np.array_equal(after.weights[name], mean.weights[name])
        assert taken == (name in arch.layout.buffers)


def test_a_strategy_takes_the_step_of_the_servers_optimiser():
    values = {"strategy": {"name": "dense", "optimizer": {"name": "fedavgm", "learning_rate": 0.5}}}
    strategy, plain = enlisted(Dense, (None,), **values), enlisted(Dense, (None,))
    before = strategy.state
    (message,) = asked(strategy)
    state = random_state(strategy.layout, strategy.layout.full(), 1)
    strategy.aggregate_train(1, [reply(message, update(state, None, 10))])
    (message,) = asked(plain)
    plain.aggregate_train(1, [reply(message, update(state, None, 10))])
    for name, got in strategy.state.weights.items():
        half_way = before.weights[name] + 0.5 * (plain.state.weights[name] - before.weights[name])
        np.testing.assert_allclose(got, half_way, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "flags"), [("mask_intersection", True), ("dense", False)])
def test_the_brief_says_what_a_device_needs_to_know_of_the_run(name, flags):
    """Of the digits: 8 x 8, ten classes, and the figures by which every value is normalised."""
    brief = prepare(load_scenario("quickstart", values={"strategy.name": name})).strategy.brief
    assert (brief.input_shape, brief.num_classes) == ((1, 8, 8), 10)
    assert brief.normalisation == Normalisation((0.3054,), (0.3760,))
    assert (brief.prunes, brief.budgeted) == (flags, flags)


class Own(MaskIntersection):
    """A user's strategy."""


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("mask_intersektion", "mask_intersection, holders_mean.*dense.*Did you mean 'mask_intersection'"),
        ("factories:MemoryGrid", "no subclass of FleetStrategy"),
        ("factories:Nothing", "'factories' has no 'Nothing'"),
        ("no_such_module:Own", "'no_such_module'.*Python path"),
    ],
)
def test_an_unknown_strategy_is_refused_and_the_known_ones_named(name, match):
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", values={"strategy.name": name}))


def test_a_class_whose_budget_is_too_small_is_refused_before_the_run():
    fleet = {"fleet.classes": [{"name": "gateway", "memory": "1MiB"}, {"name": "mote", "memory": "512B"}]}
    with pytest.raises(BudgetError, match=r"'mote' \(512B\).*takes [\d,]+ bytes.*budget is 512 bytes"):
        prepare(load_scenario("quickstart", values=fleet))
    dense = prepare(load_scenario("quickstart", values={**fleet, "strategy.name": "dense"}))
    assert isinstance(dense.strategy, Dense)
    # Real devices tell their budgets themselves, and none of them need be of such a class.
    strategy = prepare(load_scenario("quickstart", values=fleet), simulated=False).strategy
    strategy.enlist([device(0, 512), device(1, 2**20)])
    assert [device.client for device in strategy.devices] == [1]


def test_a_budget_that_the_regularisers_own_memory_breaks_is_refused_before_the_run():
    """HALO keeps three more tensors per parameter; strategies that do not prune keep none of them."""
    smallest = prepare(load_scenario("quickstart")).memory.training_bytes(dict.fromkeys(SMALLEST, 2), 1)
    halo = {"fleet.classes": [{"memory": f"{smallest}B"}], "prune.regularizer": "halo"}
    prepare(load_scenario("quickstart", values={**halo, "prune.regularizer": "group_lasso"}))
    with pytest.raises(BudgetError, match=r"prune.regularizer = halo keeps 3 tensors per parameter$"):
        prepare(load_scenario("quickstart", values=halo))
    dense, plain = (
        prepare(load_scenario("quickstart", values={"strategy.name": "dense", "prune.regularizer": name}))
        for name in ("halo", "none")
    )
    widths = dense.recipe.architecture.layout.widths
    assert dense.memory.training_bytes(widths, 8) == plain.memory.training_bytes(widths, 8)


@pytest.mark.parametrize(
    ("strategy", "overrides", "said"),
    [
        ("heterofl", {"prune.regularizer": "halo"}, "smaller model or input"),
        ("heterofl", {"train.proximal_mu": 0.5}, "train.proximal_mu = 0.5 keeps 1 tensor per parameter"),
        (
            "mask_intersection",
            {"train.proximal_mu": 0.5, "prune.regularizer": "halo"},
            "halo keeps 3 tensors per parameter, and train.proximal_mu = 0.5 keeps 1 tensor per parameter",
        ),
    ],
)
def test_a_refused_budget_names_what_this_strategy_keeps_and_nothing_else(strategy, overrides, said):
    values = {"strategy.name": strategy, "fleet.classes": [{"name": "mote", "memory": "512B"}], **overrides}
    with pytest.raises(BudgetError) as refusal:
        prepare(load_scenario("quickstart", values=values))
    assert str(refusal.value).endswith(said)


SMALLEST = ("inputs", "fc1", "fc2")


@pytest.mark.parametrize(
    ("override", "match"),
    [
        (
            "prune.criterion=bn_scale",
            r"bn_scale needs a normalisation layer .* 'inputs', 'fc1', 'fc2' have none",
        ),
        ("prune.regularizer=slimming", r"slimming presses on the scales of normalisation layers"),
    ],
)
def test_what_needs_normalisation_is_refused_before_the_run_where_there_is_none(override, match):
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", [override]))
    prepare(load_scenario("quickstart", [override, "strategy.name=dense"]))


def test_a_target_beyond_the_floors_is_refused_before_the_run():
    with pytest.raises(ScenarioError, match=r"target_compression = 5000 cannot be reached"):
        prepare(load_scenario("quickstart", ["prune.target_compression=5000"]))


# The roster


def fleet_of(profiles: dict[int, tuple[int | None, int]]) -> MemoryGrid:
    """Nodes with the given partition ids and numbers of examples."""

    def answer(message: Message) -> Message:
        client, num_examples = profiles[message.metadata.dst_node_id]
        return reply(message, wire.pack_profile(DeviceProfile("phone", 1000, num_examples), client))

    return MemoryGrid(answer, [list(profiles)])


def test_devices_come_by_partition_id_whatever_their_node_ids():
    devices, _ = query_fleet(fleet_of({30: (1, 5), 10: (2, 6), 20: (0, 7)}), BRIEF, 3, 1.0)
    assert [(d.client, d.node_id, d.profile.num_examples) for d in devices] == [
        (0, 20, 7),
        (1, 30, 5),
        (2, 10, 6),
    ]


@pytest.mark.parametrize("nodes", [[11, 12, 13, 14], [14, 13, 12, 11]])
def test_devices_without_a_partition_are_numbered_by_what_they_say_rather_than_by_node_id(nodes):
    """Node ids change from run to run; the class comes first, then the budget, then the samples."""
    told = [("b", 2, 9), ("a", 3, 1), ("b", 1, 9), ("b", 2, 8)]

    def answer(message: Message) -> Message:
        profile = DeviceProfile(*told[nodes.index(message.metadata.dst_node_id)])
        return reply(message, wire.pack_profile(profile, None))

    devices, _ = query_fleet(MemoryGrid(answer, [nodes]), BRIEF, 4, 1.0)
    assert [nodes.index(device.node_id) for device in devices] == [1, 2, 3, 0]


def test_devices_that_are_alike_take_the_free_numbers_in_the_order_of_node_ids():
    """Claimed are 0 and 2: the free numbers are 1, 3, 4 for the nodes 11, 12, 13."""
    profiles = {13: (None, 1), 11: (None, 1), 20: (2, 1), 12: (None, 1), 21: (0, 1)}
    devices, _ = query_fleet(fleet_of(profiles), BRIEF, 5, 1.0)
    assert [(d.client, d.node_id) for d in devices] == [(0, 21), (1, 11), (2, 20), (3, 12), (4, 13)]


def test_the_query_goes_to_every_node_once_and_carries_the_brief():
    grid = fleet_of({1: (0, 1), 2: (1, 1)})
    seen = []
    inner = grid._answer
    grid._answer = lambda message: seen.append(message) or inner(message)
    query_fleet(grid, BRIEF, 2, 1.0)
    assert [m.metadata.dst_node_id for m in seen] == [1, 2]
    assert all(m.metadata.message_type == MessageType.QUERY for m in seen)
    assert all(wire.unpack_brief(m.content) == BRIEF for m in seen)


def test_the_roster_waits_until_all_nodes_are_there(monkeypatch):
    monkeypatch.setattr("fedhp.federation.roster._POLL_SECONDS", 0.0)
    grid = fleet_of({1: (0, 1), 2: (1, 1), 3: (2, 1)})
    grid._nodes = [[], [2], [2, 1], [2, 1, 3]]
    devices, _ = query_fleet(grid, BRIEF, 3, 60.0)
    assert [d.node_id for d in devices] == [1, 2, 3]


def test_nodes_that_never_connect_are_counted(monkeypatch):
    monkeypatch.setattr("fedhp.federation.roster._POLL_SECONDS", 0.0)
    with pytest.raises(TrainingError, match="1 of 2 devices connected"):
        query_fleet(fleet_of({1: (0, 1)}), BRIEF, 2, 0.01)


def test_more_nodes_than_the_fleet_has_are_refused_with_both_keys():
    wanted = r"3 devices .* fleet\.num_clients is 2: set fleet\.num_clients=3.* num-supernodes=2"
    with pytest.raises(TrainingError, match=wanted):
        query_fleet(fleet_of({1: (0, 1), 2: (1, 1), 3: (2, 1)}), BRIEF, 2, 1.0)


def test_two_devices_of_one_partition_are_left_out_by_name():
    devices, left_out = query_fleet(fleet_of({1: (1, 5), 2: (1, 5), 3: (0, 5)}), BRIEF, 3, 1.0)
    assert [device.node_id for device in devices] == [3]
    assert left_out == [
        f"client 1 (node {node}) is left out: several devices claim this partition-id; give each its own"
        for node in (1, 2)
    ]


def test_a_partition_beyond_the_fleet_is_left_out_by_name():
    _, left_out = query_fleet(fleet_of({1: (0, 5), 2: (2, 5)}), BRIEF, 2, 1.0)
    assert left_out == ["client 2 (node 2) is left out: the fleet has clients 0 to 1"]


def test_a_device_with_more_samples_than_its_part_of_the_data_is_left_out_by_name():
    """Parts have 5 and 6 samples: what a device holds out of its part counts too."""
    grid = fleet_of({1: (0, 5), 2: (1, 2**40 - 1)})
    devices, left_out = query_fleet(grid, BRIEF, 2, 1.0, (5, 6))
    assert [device.client for device in devices] == [0]
    assert left_out == [
        "client 1 (node 2) is left out: it says that it has 1,099,511,627,775 samples; this part of the "
        "scenario's data has 6"
    ]


@pytest.mark.parametrize(("client", "name"), [(1, "client 1 (node 2)"), (None, "node 2")])
def test_a_device_without_data_is_left_out_by_name(client, name):
    _, left_out = query_fleet(fleet_of({1: (0, 5), 2: (client, 0)}), BRIEF, 2, 1.0)
    assert left_out == [f"{name} is left out: it has no training samples; give it some"]


def failing(node: int, answer) -> MemoryGrid:
    """Two devices, one of which answers as it is told."""
    grid = fleet_of({1: (0, 1), 2: (1, 1)})
    inner = grid._answer
    grid._answer = lambda message: (answer if message.metadata.dst_node_id == node else inner)(message)
    return grid


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda message: reply(message, "data: no file mine.npz"), "data: no file mine.npz"),
        (in_place_of_the_node, "no heartbeat"),
        (lambda message: reply(message, RecordDict()), "no config record 'profile', got []"),
        (lambda message: None, "it did not answer the first query; check that its process runs"),
        (lambda message: reply(message, "a\x1b[2J\nlie"), "a [2J lie"),
    ],
    ids=["errs", "is gone", "answers nonsense", "does not answer", "forges lines"],
)
def test_a_device_that_does_not_describe_itself_is_left_out_by_name(answer, said):
    devices, left_out = query_fleet(failing(2, answer), BRIEF, 2, 1.0)
    assert [device.node_id for device in devices] == [1]
    assert left_out == [f"node 2 is left out: {said}"]
    with pytest.raises(TrainingError, match=rf"none of 1 devices .* node 4 is left out: {re.escape(said)}"):
        query_fleet(MemoryGrid(answer, [[4]]), BRIEF, 1, 1.0)


def test_a_profile_in_another_devices_name_is_dropped(caplog):
    forged = failing(2, lambda message: altered(reply(message, "lie"), src_node_id=1))
    devices, _ = query_fleet(forged, BRIEF, 2, 1.0)
    assert [device.node_id for device in devices] == [1]
    assert caplog.messages == ["dropped a reply from node 1: it answers what node 2 was asked"]
