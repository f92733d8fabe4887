"""What every strategy shares: asking, adding up what comes back, and its rows."""

import logging

import numpy as np
import pytest
from factories import num_parameters, random_state, reply, same_bits, trained, update
from fleets import answers, asked, build, device, enlisted, fits, scenario, structure_of
from flwr.app import MessageType

from fedhp.aggregation.reconcile import Reconciliation
from fedhp.errors import ScenarioError
from fedhp.federation import wire
from strategies import Dense, Exclusive, FedDST

pytestmark = pytest.mark.usefixtures("as_the_server")


def test_devices_of_one_structure_share_one_payload_object():
    strategy = enlisted(budgets=(None, 900, None, 900, None))
    messages = asked(strategy)
    contents = {id(message.content) for message in messages}
    digests = {structure_of(strategy, message).digest for message in messages}
    assert len(messages) == 5
    assert len(contents) == len(digests) == 2


def test_a_question_is_over_a_little_after_the_round_is():
    """Flower hands out none that is, so that a late device is not asked for rounds that have gone by."""
    strategy = enlisted(server={"timeout_seconds": 90.0})
    assert {message.metadata.ttl for message in asked(strategy)} == {95.0}


def test_what_is_sent_is_the_global_model_cut_to_the_structure():
    strategy = enlisted(budgets=(None, 900))
    for message in asked(strategy, 3):
        server_round, state = wire.unpack_task(message.content, strategy.layout)
        assert server_round == 3
        assert message.metadata.message_type == MessageType.TRAIN
        assert same_bits(state, strategy.state.cut(strategy.layout, state.structure))
        assert wire.unpack_brief(message.content) == strategy.brief


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


def test_the_order_of_replies_changes_no_bit():
    results = []
    for seed in range(4):
        strategy = enlisted(budgets=(None, 900, 1200, None, 2000))
        messages = asked(strategy)
        replies = answers(strategy, messages)
        shuffled = [replies[index] for index in np.random.default_rng(seed).permutation(5)]
        arrays, metrics = strategy.aggregate_train(1, shuffled)
        assert [row.client for row in strategy.outcome.rows] == [0, 1, 2, 3, 4]
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
    for row, message, answer in zip(strategy.outcome.rows, messages, replies, strict=True):
        task = wire.unpack_task(message.content, strategy.layout)[1]
        back = wire.unpack_state(answer.content["model"], strategy.layout)
        assert (row.round, row.status, row.failure) == (1, "ok", "")
        assert row.params_received == num_parameters(strategy.layout, task.structure.counts)
        assert row.params_sent == num_parameters(strategy.layout, back.structure.counts)
        assert row.units_pruned == task.structure.num_units() - back.structure.num_units()
        assert row.bytes_down == wire.record_bytes(message.content["model"])
        assert row.bytes_up == wire.update_bytes(answer.content)
    assert [row.memory_budget_bytes for row in strategy.outcome.rows] == [None, 900]


def test_a_round_in_which_all_fail_changes_nothing_and_is_counted():
    strategy = enlisted()
    before = strategy.state
    messages = asked(strategy)
    replies = [reply(m, f"data: disk {m.metadata.dst_node_id} is gone") for m in reversed(messages)]
    assert strategy.aggregate_train(1, replies) == (None, None)
    assert strategy.state is before
    assert [row.failure for row in strategy.outcome.rows] == [
        f"data: disk {1000 - n} is gone" for n in range(5)
    ]
    assert strategy.server.in_vain == (strategy.outcome.rows,)


def test_rounds_in_vain_are_counted_in_a_row():
    strategy = enlisted()
    for _ in range(2):
        asked(strategy)
        assert strategy.aggregate_train(1, []) == (None, None)
    assert {row.failure for row in strategy.outcome.rows} == {"timeout: no reply arrived in time"}
    assert [len(rows) for rows in strategy.server.in_vain] == [5, 5]
    strategy.aggregate_train(2, answers(strategy, asked(strategy, 2)))
    assert strategy.server.in_vain == ()


def test_too_few_valid_replies_change_nothing(caplog):
    strategy = enlisted(server={"min_replies": 3})
    before = strategy.state
    messages = asked(strategy)
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        result = strategy.aggregate_train(1, answers(strategy, messages)[:2])
    assert result == (None, None)
    assert strategy.state is before
    assert [row.status for row in strategy.outcome.rows] == ["ok", "ok", "failed", "failed", "failed"]
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
    votes = strategy.outcome.votes["fc1"]
    assert len(votes) == strategy.layout.widths["fc1"]
    assert 21 * (1 - votes).sum() == pytest.approx(10 + 11)
    strategy.aggregate_train(2, answers(strategy, asked(strategy, 2))[:1])
    assert strategy.outcome.votes == {}


def test_where_nobody_prunes_there_are_no_votes():
    strategy = enlisted(Dense, budgets=(None, None))
    strategy.aggregate_train(1, answers(strategy, asked(strategy), num_cut=0))
    assert strategy.outcome.votes == {}


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
    assert [row.status for row in strategy.outcome.rows] == ["ok", "failed", "failed", "failed", "ok"]
    assert strategy.outcome.rows[1].failure == "train: loss is nan"
    assert strategy.outcome.rows[2].failure.startswith("reply: fc1.bias")
    assert strategy.outcome.rows[3].failure.startswith("timeout: ")
    assert strategy.outcome.rows[3].bytes_up == 0
    assert strategy.outcome.rows[3].bytes_down > 0


def test_a_reply_with_more_examples_than_announced_has_no_weight():
    strategy = enlisted(budgets=(None, None))
    messages = asked(strategy)
    greedy = reply(messages[0], trained(strategy.layout, messages[0], 51))
    honest = reply(messages[1], trained(strategy.layout, messages[1], 50))
    _, metrics = strategy.aggregate_train(1, [greedy, honest])
    assert metrics["num-examples"] == 50
    assert "num-examples is 51" in strategy.outcome.rows[0].failure


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
    assert strategy.outcome.rows[0].num_examples == metrics["num-examples"] == 12
