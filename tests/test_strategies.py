"""Each strategy: what it asks of whom, and which units survive by it."""

import re

import pytest
from factories import random_state, reply, structure, update
from fleets import answers, asked, build, device, enlisted, fits, structure_of

from fedhp.data import Normalisation
from fedhp.errors import BudgetError
from fedhp.federation import wire
from fedhp.model.structure import Structure
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.training.method_names import PRUNING
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

pytestmark = pytest.mark.usefixtures("as_the_server")


@pytest.mark.parametrize("server_round", [1, 2, 3, 4])
def test_the_structure_never_falls_below_the_schedule(server_round):
    """Five clients cut 2 different units each of 8 and 6; their plain intersection would be far smaller."""
    strategy = enlisted()
    messages = asked(strategy, server_round)
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


def test_dense_knows_no_budget():
    strategy = enlisted(Dense, budgets=(None, 1, 100))
    assert [d.client for d in strategy.devices] == [0, 1, 2]
    assert all(structure_of(strategy, message) == strategy.layout.full() for message in asked(strategy))
    strategy.aggregate_train(1, answers(strategy, asked(strategy)))
    assert [row.memory_budget_bytes for row in strategy.outcome.rows] == [None, None, None]


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
        strategy.aggregate_train(server_round, answers(strategy, messages, num_cut=1 if kind.prunes() else 0))
        assert {row.status for row in strategy.outcome.rows} == {"ok"}
        state, counts = strategy.state, strategy.state.structure.counts
        assert {n: w.shape for n, w in state.weights.items()} == {
            name: strategy.layout.shape(name, counts) for name in strategy.layout.shapes
        }


def test_a_strategy_of_the_users_own_is_found_by_reference():
    chosen = load_scenario("quickstart", ["strategy.name='test_strategies:Own'"])
    assert type(prepare(chosen).strategy).__name__ == "Own"


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
    for message, units in zip(asked(strategy, 4), kept, strict=True):
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


@pytest.mark.parametrize(("name", "flags"), [("mask_intersection", True), ("dense", False)])
def test_the_brief_says_what_a_device_needs_to_know_of_the_run(name, flags):
    """Of the digits: 8 x 8, ten classes, and the figures by which every value is normalised."""
    brief = prepare(load_scenario("quickstart", values={"strategy.name": name})).strategy.brief
    assert (brief.input_shape, brief.num_classes) == ((1, 8, 8), 10)
    assert brief.normalisation == Normalisation((0.3054,), (0.3760,))
    assert (brief.methods, brief.budgeted) == (PRUNING if flags else (), flags)


class Own(MaskIntersection):
    """A user's strategy."""
