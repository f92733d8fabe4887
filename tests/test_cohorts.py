"""Clients trained together: who with whom, what they come to, and that whoever fails fails alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from factories import conv_layout, query_fleet, random_state, same_bits, structure
from fleets import build, device
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st
from test_docs import blocks

import clients.cohort_app
from fedhp.errors import DataError, TrainingError
from fedhp.federation import wire
from fedhp.federation.asking import Payloads, by_work
from fedhp.federation.cohorts import cohorts, divided, stack_of
from fedhp.federation.rounds import close_round
from fedhp.model.state import ModelState
from fedhp.records.rows import ClientReport
from fedhp.references import CLIENT_APP, COHORT_APP
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.simulation.opening import open_grid
from fedhp.training.cohort import train_cohort
from strategies import STRATEGIES, FleetStrategy

NUM_CLIENTS = 20

# Who is with whom


def test_a_stack_is_as_large_as_the_caches_or_the_user_will_have_it():
    """8 MiB hold the 4 bytes of 2,097,152 parameters: of 6 networks of 300,000; of half with momentum."""
    assert [stack_of("auto", n, 0) for n in (10**9, 300_000, 26_710, 100)] == [1, 6, 64, 64]
    assert [stack_of("auto", n, 1) for n in (10**9, 300_000, 26_710, 100)] == [1, 3, 39, 64]
    assert [stack_of(asked, 26_710, 1) for asked in ("1", "7", "64", "1000")] == [1, 7, 64, 64]


@pytest.mark.parametrize(
    ("number", "stack", "of", "sizes"),
    [
        (50, 19, 50, [12, 13, 12, 13]),  # too few for eight pieces of eight
        (50, 2, 50, [4, 2, 4, 2, 4, 2, 4, 2, 4, 4, 2, 4, 2, 4, 2, 4]),  # 25 pairs in 16 pieces
        (10, 19, 10, [2, 3, 2, 3]),
        (5, 19, 20, [5]),
        (1, 1, 1, [1]),
        (1, 19, 50, [1]),
    ],
)
def test_clients_are_divided_into_whole_stacks(number, stack, of, sizes):
    assert sorted(divided(number, stack, of, number / of)) == sorted(sizes)


@given(st.integers(1, 3000), st.integers(0, 3000), st.integers(1, 64), st.floats(0, 1))
def test_every_client_is_in_one_cohort_of_64_at_most(number, others, stack, share):
    sizes = divided(number, stack, number + others, share)
    assert sum(sizes) == number
    assert all(1 <= size <= 64 for size in sizes)
    assert len(sizes) <= max(17, number / 30)


def test_cohorts_are_of_one_structure_the_largest_first():
    """Device n has 10 n + 10 samples, and 3 and 9 a smaller structure: a sixth of the work, and one cohort.

    The other ten, of 640 samples, are three pieces' work, in pairs: of two, four and four.
    """
    strategy = build(**{"simulation.stack": "2", "fleet.num_clients": 12})
    small = strategy.state.structure.without("fc1", [0])
    devices = [device(n, 10**6 if n % 2 == 0 else None, 10 * n + 10) for n in range(12)]
    parts = [(one, small if one.client in (3, 9) else strategy.state.structure) for one in devices]
    payloads = Payloads(strategy.brief, strategy.layout, strategy.state, 1)
    found = cohorts(strategy, payloads, by_work(strategy.layout, parts))
    members = [[one.device.client for one in sent] for _, sent in found]
    assert members == [[11, 10], [8, 7, 6, 5], [4, 2, 1, 0], [9, 3]]
    assert [cohort.nodes for cohort, _ in found] == [tuple(1000 - n for n in own) for own in members]
    assert len({id(cohort.content) for cohort, _ in found}) == 2
    again = cohorts(strategy, payloads, by_work(strategy.layout, parts[::-1]))
    assert [cohort for cohort, _ in again] == [cohort for cohort, _ in found]


# What they come to


def scenario(**values) -> Scenario:
    """A fleet of four memory classes whose clients prune from the first round on."""
    small = {
        "rounds": 4,
        "data.max_train": 600,
        "prune.start": 0.0,
        "prune.target_compression": 3,
        "server.clients_per_round": 12,
        "train.local_epochs": 1,
        "simulation.num_workers": 0,
    }
    return load_scenario("quickstart", values={**small, **values})


Rows = Sequence[Sequence[ClientReport]]


def hold(grid: Grid, chosen: Scenario, kind: type[FleetStrategy] | None = None) -> tuple[FleetStrategy, Rows]:
    setup = prepare(chosen)
    strategy, rows = setup.strategy, []
    if kind is not None:
        strategy = kind(chosen, setup.recipe, setup.memory, strategy.state, strategy.brief)
    strategy.enlist(query_fleet(grid, strategy.brief, NUM_CLIENTS, 600.0)[0])
    for _ in range(chosen.rounds):
        _, parts = strategy.exchange(grid, 600.0)
        strategy.server, strategy.outcome = close_round(strategy, strategy.server, parts)
        rows.append([without_time(row) for row in strategy.outcome.rows])
    return strategy, rows


def without_time(row: ClientReport) -> ClientReport:
    return row if row.statistics is None else replace(row, statistics=replace(row.statistics, seconds=0.0))


def run(chosen: Scenario, kind: type[FleetStrategy] | None = None, app: str = COHORT_APP):
    with open_grid(chosen.simulation, CLIENT_APP, NUM_CLIENTS, 600.0, cohort_app=app) as grid:
        return hold(grid, chosen, kind)


def close(one: ModelState, other: ModelState) -> bool:
    return one.structure == other.structure and all(
        np.allclose(one.weights[name], other.weights[name], rtol=0, atol=1e-6) for name in one.weights
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_sums_and_updates_come_to_the_same_model_and_rows(name):
    """One round, so that what differs in the last bits does not train on."""
    chosen = scenario(**{"strategy.name": name, "rounds": 1})
    (together, rows), (apart, one_by_one) = run(chosen), run(chosen, app="")
    assert close(together.state, apart.state)
    assert rows == one_by_one
    assert together.outcome.votes.keys() == apart.outcome.votes.keys()
    for group, votes in together.outcome.votes.items():
        assert np.array_equal(votes, apart.outcome.votes[group], equal_nan=True)


def test_clients_that_hold_samples_out_come_to_the_same():
    chosen = scenario(**{"data.local_test": 0.2, "rounds": 1})
    (together, rows), (apart, one_by_one) = run(chosen), run(chosen, app="")
    assert close(together.state, apart.state)
    assert rows == one_by_one
    assert rows[0][0].statistics is not None
    assert rows[0][0].statistics.num_local_test > 0


def test_a_network_with_running_statistics_comes_to_the_same():
    values = {"model.target": "test_running_statistics:network", "rounds": 1, "data.partition.name": "iid"}
    chosen = scenario(**values)
    (together, rows), (apart, one_by_one) = run(chosen), run(chosen, app="")
    assert close(together.state, apart.state)
    assert rows == one_by_one


def test_what_a_reply_would_weigh_is_what_its_message_does():
    layout = conv_layout()
    kept = structure(layout, c=(0, 2), f=(1,))
    packed = wire.pack_state(random_state(layout, kept))
    assert wire.state_bytes(layout, kept) == wire.record_bytes(packed)


# Whoever fails fails alone

LOST = 5  # who fails in the tests below


class Without(STRATEGIES["mask_intersection"]):
    """Never asks the one who fails."""

    def sample(self, server_round):
        return [one for one in super().sample(server_round) if one.client != LOST]


class With(STRATEGIES["mask_intersection"]):
    """Always asks it, and those that it would ask besides."""

    def sample(self, server_round):
        others = [one for one in super().sample(server_round) if one.client != LOST]
        return sorted([*others, self.devices[LOST]], key=lambda one: one.client)


def raising(error: BaseException, recipe, members, stack):
    outcomes = train_cohort(recipe, members, stack)
    return [error if one.task.client == LOST else what for one, what in zip(members, outcomes, strict=True)]


def changed(change: Callable, recipe, members, stack):
    outcomes = train_cohort(recipe, members, stack)
    return [
        change(what) if one.task.client == LOST else what for one, what in zip(members, outcomes, strict=True)
    ]


def ended(error: BaseException, recipe, members, stack):
    if any(one.task.client == LOST for one in members):
        raise error
    return train_cohort(recipe, members, stack)


def with_weights(factor: float, update):
    weights = {name: (factor * array).astype(np.float32) for name, array in update.state.weights.items()}
    return replace(update, state=ModelState(weights, update.state.structure, update.state.scores))


def late(update):
    return replace(update, statistics=replace(update.statistics, seconds=700.0))


def late_together(recipe, members, stack):
    """Of what one client takes, those beside it are counted an even part."""
    outcomes = train_cohort(recipe, members, stack)
    lost = any(one.task.client == LOST for one in members)
    return [late(one) for one in outcomes] if lost else outcomes


@pytest.mark.parametrize(
    ("fails", "failure"),
    [
        (partial(raising, TrainingError("the loss is nan")), "client: TrainingError: the loss is nan"),
        (partial(raising, ZeroDivisionError("7 / 0")), "client: ZeroDivisionError: 7 / 0"),
        (partial(changed, partial(with_weights, np.nan)), "reply: fc1.weight: holds NaN"),
        (partial(changed, late), "timeout: client took longer than 600 s"),
        (late_together, "timeout: client took longer than 600 s"),
        (partial(changed, partial(with_weights, 40.0)), "reply: the change of its weights has norm"),
        (partial(ended, SystemExit("enough")), "client: SystemExit: enough"),
        (partial(ended, MemoryError("no room")), "client: MemoryError: no room"),
    ],
)
def test_whoever_fails_fails_alone_and_the_others_come_to_what_they_would_without_it(
    monkeypatch, fails, failure
):
    chosen = scenario(**{"rounds": 2, "strategy.quorum": 0.5})
    monkeypatch.setattr(clients.cohort_app, "train_cohort", fails)
    strategy, rows = run(chosen, With)
    monkeypatch.undo()
    alone, others = run(chosen, Without)
    for mine, theirs in zip(rows, others, strict=True):
        (lost,) = [row for row in mine if row.client == LOST]
        assert lost.status == "failed"
        assert lost.failure.startswith(failure)
        assert [row for row in mine if row.client != LOST] == theirs
    assert same_bits(strategy.state, alone.state)


def test_who_has_answered_must_answer_when_asked_once_more(monkeypatch):
    """Or a row would count an update that the sums lack."""
    asked = set()

    def once(recipe, members, stack):
        own = {one.task.client for one in members}
        if own & asked:
            return [TimeoutError("too slow")] * len(members)
        asked.update(own)
        return changed(partial(with_weights, 40.0), recipe, members, stack)

    monkeypatch.setattr(clients.cohort_app, "train_cohort", once)
    with pytest.raises(TrainingError, match="asked once more: client: TimeoutError: too slow"):
        run(scenario(rounds=1), With)


def test_a_client_whose_data_cannot_be_opened_fails_alone(monkeypatch):
    def broken(brief, node):
        if node["partition-id"] == LOST:
            raise DataError("its file is damaged")
        return opened(brief, node)

    opened = clients.cohort_app.open_device
    chosen = scenario(rounds=1)
    monkeypatch.setattr(clients.cohort_app, "open_device", broken)
    strategy, (rows,) = run(chosen, With)
    assert [row.failure for row in rows if row.client == LOST] == ["client: DataError: its file is damaged"]
    monkeypatch.undo()
    alone, (others,) = run(chosen, Without)
    assert [row for row in rows if row.client != LOST] == others
    assert same_bits(strategy.state, alone.state)


def test_a_round_in_which_all_fail_changes_nothing(monkeypatch):
    monkeypatch.setattr(
        clients.cohort_app, "train_cohort", lambda recipe, members, stack: [OSError("gone")] * len(members)
    )
    chosen = scenario(rounds=1)
    start = prepare(chosen).strategy.state
    strategy, (rows,) = run(chosen)
    assert {row.failure for row in rows} == {"client: OSError: gone"}
    assert len(rows) == 12
    assert strategy.server.in_vain == (strategy.outcome.rows,)
    assert same_bits(start.cut(strategy.layout, strategy.state.structure), strategy.state)


# Whatever the number of workers


@pytest.mark.integration
def test_the_number_of_workers_changes_no_bit():
    """Clients cut units of their own, have different numbers of samples, and one goes too far."""
    values = {
        "rounds": 2,
        "data.partition.min_samples": 1,
        "data.partition.alpha": 0.2,
        "train.learning_rate": 8.0,
        "server.max_times_median": 3,
        "train.clip_norm": 0,
    }
    results = [run(scenario(**values, **{"simulation.num_workers": number})) for number in (0, 1, 2, 3)]
    first, rows = results[0]
    assert {row.status for some in rows for row in some} == {"ok", "failed"}
    assert len({row.units_pruned for row in rows[0]}) > 1
    for strategy, others in results[1:]:
        assert same_bits(strategy.state, first.state)
        assert others == rows


@pytest.mark.parametrize("stack", ["1", "5", "auto"])
def test_the_size_of_a_stack_changes_no_row(stack):
    """Nor the model, but for the order of its sums."""
    first, rows = run(scenario(rounds=1))
    other, again = run(scenario(**{"rounds": 1, "simulation.stack": stack}))
    assert close(first.state, other.state)
    assert again == rows


# Every update for itself


def test_the_pages_median_is_given_every_update_and_is_the_median():
    """Of twelve clients: the mean of the sixth and seventh value of a weight, as the clients send them."""
    (source,) = [block for block in blocks("docs/scenarios.md", "python") if "class Median" in block]
    found = {}
    exec(compile(source, "median.py", "exec"), found)

    class Watched(found["Median"]):
        def average(self, reconciliation):
            self.seen = reconciliation.weights
            return super().average(reconciliation)

    chosen = scenario(**{"strategy.name": "dense", "rounds": 1})
    strategy, (rows,) = run(chosen, Watched)
    assert len(strategy.seen) == len(rows) == 12
    values = sorted(float(weights["fc1.bias"][3]) for weights in strategy.seen)
    assert strategy.state.weights["fc1.bias"][3] == pytest.approx((values[5] + values[6]) / 2)
    together, _ = run(chosen)
    assert not close(strategy.state, together.state)
