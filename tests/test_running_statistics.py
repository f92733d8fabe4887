"""The global model's running statistics: they are those of the network that is there, whoever cut it."""

import logging

import numpy as np
import pytest
import torch
from factories import MemoryGrid, altered, reply, stamped, trained
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from small_models import random_shard
from torch import nn

import fedhp
from fedhp.data import client_shard
from fedhp.errors import BudgetError, WireError
from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.architecture import Architecture
from fedhp.model.building import initial_state, to_module
from fedhp.model.state import ModelState
from fedhp.records.rows import ClientReport
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario
from fedhp.simulation.identity import acting_as
from fedhp.training.moments import ENOUGH, take_moments
from fedhp.training.update import Moments, RoundTask
from strategies import FleetStrategy

NAMES = ("running_mean", "running_square")
# A single late cut, with steps so small that nothing else changes the network.
CUT = {"prune.start": 0.0, "prune.end": 1.0, "prune.cuts": 1, "prune.target_compression": 3}
STILL = {**CUT, "rounds": 1, "train.learning_rate": 1e-9, "train.clip_norm": 0, "simulation.num_workers": 0}
OWN = {"model.target": "test_running_statistics:network", "data.max_train": 400, "fleet.num_clients": 4}


ARRAYS = ArrayRecord()  # what Flower hands from one phase of a round to the next


def network(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two normalised layers: the second's statistics depend on what the first has left."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(int(np.prod(input_shape)), 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(20, num_classes),
    )


def scenario(**values) -> Scenario:
    return load_scenario("quickstart", values={**STILL, **OWN, **values})


# A client's own


def task(arch: Architecture, budget: int | None = None, number: int = 1) -> RoundTask:
    return RoundTask(number, 3, DeviceProfile("phone", budget, 60), initial_state(arch, 0))


def test_moments_are_the_plain_mean_and_mean_square_over_the_samples():
    """One batch holds all samples: torch's own normalisation, told to keep all of it, finds the same."""
    recipe = recipe_of(load_scenario("quickstart", values={**OWN, "train.batch_size": 60}), (1, 4, 4), 3)
    shard, arch = random_shard((1, 4, 4), 3, 60), recipe.architecture
    found = take_moments(recipe, task(arch), shard)
    module = to_module(arch, task(arch).state).train()
    for layer in (module[2], module[5]):
        layer.momentum = 1.0
    with torch.no_grad():
        module(shard.batch(np.arange(60))[0])
    assert set(found.weights) == {f"{layer}.{name}" for layer in (2, 5) for name in NAMES}
    for layer in (2, 5):
        mean, variance = module[layer].running_mean.numpy(), module[layer].running_var.numpy()
        np.testing.assert_allclose(found.weights[f"{layer}.running_mean"], mean, atol=1e-5)
        np.testing.assert_allclose(found.weights[f"{layer}.running_square"], variance + mean**2, rtol=1e-4)


@pytest.mark.parametrize("size", [34, 66, 70])
def test_a_short_batch_counts_by_its_samples(size):
    """The first layer's mean is that of all samples, however they fall into batches."""
    recipe = recipe_of(load_scenario("quickstart", values={**OWN, "train.batch_size": 32}), (1, 4, 4), 3)
    shard, arch = random_shard((1, 4, 4), 3, size), recipe.architecture
    found = take_moments(recipe, task(arch), shard).weights["2.running_mean"]
    module = to_module(arch, task(arch).state)
    with torch.no_grad():
        seen = module[1](shard.batch(np.arange(size))[0].flatten(1))
    np.testing.assert_allclose(found, seen.mean(0), atol=1e-5)


def narrow(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """What a step takes is its input, next to which weights are nothing."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, num_classes)
    )


@pytest.mark.parametrize("size", [16, 80])
def test_of_several_batches_one_is_held_at_a_time(size):
    """At a budget that a training step of 16 samples fills, whatever was measured before."""
    own = {"model.target": f"{__name__}:narrow", "train.momentum": 0.0, "train.batch_size": 16}
    recipe = recipe_of(load_scenario("quickstart", values=own), (1, 8, 8), 10)
    shard, arch = random_shard((1, 8, 8), 10, size), recipe.architecture
    budget = recipe.memory_model(shard.raw_itemsize).training_bytes(arch.layout.widths, 16)
    assert 0.5 * budget < take_moments(recipe, task(arch, budget), shard).memory_measured_bytes <= budget


def test_moments_hang_on_seed_round_and_client_alone():
    recipe = recipe_of(load_scenario("quickstart", values={**OWN, "train.batch_size": 8}), (1, 4, 4), 3)
    shard, arch = random_shard((1, 4, 4), 3, 60), recipe.architecture
    one, again, later = (take_moments(recipe, task(arch, number=n), shard).weights for n in (1, 1, 2))
    assert all((one[name] == again[name]).all() for name in one)
    assert any((one[name] != later[name]).any() for name in one)


def test_moments_are_taken_on_enough_samples_within_the_budget():
    recipe = recipe_of(load_scenario("quickstart", values=OWN), (1, 4, 4), 3)
    arch, seen = recipe.architecture, []
    shard = random_shard((1, 4, 4), 3, 3000)
    memory = recipe.memory_model(shard.raw_itemsize)
    budget = memory.training_bytes(arch.layout.widths, 5)

    class Watched:
        def __getattr__(self, name):
            return getattr(shard, name)

        def __len__(self):
            return len(shard)

        def batch(self, rows, inputs=None):
            seen.append(rows)
            return shard.batch(rows, inputs)

    found = take_moments(recipe, task(arch, budget), Watched())  # type: ignore[arg-type]
    assert 0 < found.memory_measured_bytes <= budget
    rows = np.concatenate(seen)
    assert max(map(len, seen)) == 5
    assert ENOUGH - 2 < len(rows) == len(set(rows.tolist())) <= ENOUGH
    with pytest.raises(BudgetError, match=r"takes .* bytes; the budget is"):
        take_moments(recipe, task(arch, budget // 4), shard)


# A federation's


@pytest.fixture
def cut_late(tmp_path):
    """A run whose only round cuts in its last step; two clients train parts, and hold what is left."""
    classes = [{"name": "large", "memory": "1MiB"}, {"name": "small", "memory": "28KiB"}]
    chosen = scenario(**{"fleet.classes": classes})
    return chosen, fedhp.simulate(chosen, tmp_path / "run", show=False)


def test_after_a_cut_they_are_those_of_the_network_that_is_there(cut_late):
    """By the run's own model on the clients' samples, without fedhp's reconciliation."""
    chosen, run = cut_late
    assert run.rounds["compression"].iloc[-1] > 2
    model = fedhp.load_model(run.folder, trust_target=True)
    shards = [client_shard(chosen.data, 4, chosen.seed, client) for client in run.clients["client"]]
    layers = list(model)
    first, norm, second, other = layers[1], layers[2], layers[4], layers[5]
    total = sum(map(len, shards))
    mean_before, mean_behind = 0.0, 0.0
    with torch.no_grad():
        for shard in shards:
            x = shard.batch(np.arange(len(shard)))[0].flatten(1)
            seen = first(x)
            behind = second(torch.relu((seen - seen.mean(0)) / torch.sqrt(seen.var(0) + norm.eps)))
            mean_before += seen.mean(0) * len(shard) / total
            mean_behind += behind.mean(0) * len(shard) / total
    np.testing.assert_allclose(norm.running_mean, mean_before, atol=0.02)
    scale = float(mean_behind.abs().max())
    assert float((other.running_mean - mean_behind).abs().max()) < 0.1 * scale


def test_taking_them_keeps_to_the_budget(cut_late):
    _, run = cut_late
    rows = run.clients
    assert rows["params_received"].nunique() == 2
    assert (rows["memory_measured_bytes"] <= rows["memory_predicted_bytes"]).all()
    assert (rows["memory_predicted_bytes"] <= rows["memory_budget_bytes"]).all()


def test_results_do_not_depend_on_who_takes_them(tmp_path):
    runs = [
        fedhp.simulate(scenario(**{"simulation.num_workers": n}), tmp_path / str(n), show=False)
        for n in (0, 2)
    ]
    files = [(run.folder / "model.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1]


# Asking and taking, message by message


@pytest.fixture(autouse=True)
def _as_the_server():
    with acting_as(0):
        yield


def fleet(budgets=(None, None, None), **values) -> FleetStrategy:
    strategy = prepare(scenario(**values), simulated=False).strategy
    strategy.enlist([Device(10 + n, n, DeviceProfile("phone", b, 50)) for n, b in enumerate(budgets)])
    return strategy


def train(strategy: FleetStrategy, num_cut: int = 2) -> list[Message]:
    """Lets clients 0, 1, .. train on 10, 20, .. samples, and returns what the server asks next."""
    grid = MemoryGrid(lambda message: None)
    messages = stamped(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
    replies = [reply(m, made(strategy, m, 10 * (n + 1), num_cut)) for n, m in enumerate(messages)]
    arrays, _ = strategy.aggregate_train(1, replies)
    ARRAYS.clear()
    ARRAYS.update(arrays or {})
    return stamped(strategy.configure_evaluate(1, ARRAYS, ConfigRecord(), grid))


def made(strategy: FleetStrategy, message: Message, num_examples: int, num_cut: int):
    update = trained(strategy.layout, message, num_examples, num_cut)
    weights = dict(update.state.weights)
    for name in strategy.layout.buffers:  # as the server takes them: no square below that of the mean
        if name.endswith("square"):
            weights[name] = weights[name.replace("square", "mean")] ** 2 + 1
    state = ModelState(weights, update.state.structure, update.state.scores)
    return type(update)(update.client, update.assigned, state, num_examples, update.statistics)


def statistics(strategy: FleetStrategy, value: float, peak: int = 77) -> RecordDict:
    """All means are the value, and all variances 1."""
    weights = {}
    for name in strategy.layout.buffers:
        shape = strategy.layout.shape(name, strategy.state.structure.counts)
        weights[name] = np.full(shape, value if name.endswith("mean") else value**2 + 1, np.float32)
    return wire.pack_moments(Moments(weights, peak))


def test_nobody_is_asked_where_the_networks_are_the_servers_own():
    assert train(fleet(), num_cut=0) == []


def test_networks_without_statistics_ask_nobody():
    plain = {"model.target": "", "model.name": "mlp", "model.widths": [24, 20]}
    assert train(fleet(**plain)) == []


def test_a_round_with_too_few_replies_changes_no_statistics():
    assert train(fleet(**{"server.min_replies": 3}), num_cut=2) != []
    strategy = fleet(**{"server.min_replies": 3})
    grid = MemoryGrid(lambda message: None)
    messages = stamped(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
    strategy.aggregate_train(1, [reply(messages[0], made(strategy, messages[0], 10, 2))])
    assert strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid) == []


def test_the_new_model_is_sent_and_the_mean_over_examples_comes_in():
    """(10 * 1 + 20 * 4 + 30 * 3) / 60 = 3; mean squares (10 * 2 + 20 * 17 + 30 * 10) / 60 = 11."""
    strategy = fleet()
    messages = train(strategy)
    assert [m.metadata.dst_node_id for m in messages] == [10, 11, 12]
    assert {m.metadata.message_type for m in messages} == {MessageType.EVALUATE}
    _, sent = wire.unpack_task(messages[0].content, strategy.layout)
    assert sent.structure == strategy.state.structure
    before = strategy.state
    answers = [reply(m, statistics(strategy, v)) for m, v in zip(messages, (1, 4, 3), strict=True)]
    strategy.aggregate_evaluate(1, reversed(answers))
    for name, values in strategy.state.weights.items():
        if name in strategy.layout.buffers:
            assert set(values.tolist()) == {3.0 if name.endswith("mean") else 11.0}
        else:
            assert (values == before.weights[name]).all()


def answered(strategy: FleetStrategy, values) -> set[float]:
    """Lets clients answer so, and returns the new means' values and those of the squares."""
    messages = train(strategy)
    answers = [reply(m, statistics(strategy, v)) for m, v in zip(messages, values, strict=True)]
    strategy.aggregate_evaluate(1, answers)
    found = strategy.state.weights
    return {float(value) for name in strategy.layout.buffers for value in found[name].ravel()}


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_by_a_robust_rule_they_are_those_of_the_client_in_the_middle(rule):
    """Of means 1, 4 and 3, and mean squares 2, 17 and 10, each client counting once."""
    trim = {"strategy.robust.trim": 0.4} if rule == "trimmed_mean" else {}
    assert answered(fleet(**{"strategy.robust.rule": rule, **trim}), (1, 4, 3)) == {3.0, 10.0}


def test_by_a_robust_rule_the_others_old_ones_count_too():
    """Two of three answer: the median of theirs and of what there was."""
    strategy = fleet(**{"strategy.robust.rule": "median"})
    messages = train(strategy)
    before = strategy.state.weights
    answers = [reply(m, statistics(strategy, v)) for m, v in zip(messages[:2], (0, 1.5), strict=True)]
    strategy.aggregate_evaluate(1, answers)
    for name in strategy.layout.buffers:
        one, other = (0, 1.5) if name.endswith("mean") else (1, 3.25)
        expected = np.clip(before[name], one, other)
        np.testing.assert_array_equal(strategy.state.weights[name], expected)


def test_an_answer_that_is_far_off_is_scaled_down_and_the_row_says_so():
    """The usual distance is the middle one of three: what is further off is brought to it."""
    strategy = fleet(**{"strategy.robust.clip": 1.0})
    messages = train(strategy)
    before, buffers = strategy.state.weights, sorted(strategy.layout.buffers)
    told = [statistics(strategy, value) for value in (1, 2, 5)]
    taken = [wire.unpack_moments(one, strategy.layout, strategy.state.structure).weights for one in told]
    off = [np.sqrt(sum(((one[n] - before[n]) ** 2).sum() for n in buffers)) for one in taken]
    shares = np.minimum(1, sorted(off)[1] / np.array(off))
    strategy.aggregate_evaluate(1, [reply(*pair) for pair in zip(messages, told, strict=True)])
    found = [row.statistics_share for row in strategy.outcome.rows]
    np.testing.assert_allclose(found, shares, rtol=1e-5)
    assert shares[2] < 0.5
    for name in buffers:
        moved = [share * (one[name] - before[name]) for share, one in zip(shares, taken, strict=True)]
        expected = before[name] + np.average(moved, 0, [10, 20, 30])
        np.testing.assert_allclose(strategy.state.weights[name], expected, rtol=1e-5)


def test_only_devices_that_have_room_for_the_whole_model_are_asked():
    strategy = fleet()
    room = strategy.memory.training_bytes(strategy.layout.widths, 2)
    strategy = fleet((None, room // 3, room))
    assert [m.metadata.dst_node_id for m in train(strategy, num_cut=0)] == [10, 12]


def test_where_nobody_has_room_a_note_says_so_once(caplog):
    strategy = fleet()
    room = strategy.memory.training_bytes(strategy.layout.widths, 2)
    strategy = fleet((room // 3, room // 3, room // 3), **{"strategy.name": "fedrolex"})
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        for _ in range(2):
            assert train(strategy, num_cut=0) == []
    (said,) = [text for text in caplog.messages if "running statistics" in text]
    assert said.startswith("round 1: none of its devices has room for the global model")


@pytest.mark.parametrize("fault", ["silent", "error", "stranger", "absurd", "weights", "empty"])
def test_what_is_no_right_answer_is_left_out_and_named(fault, caplog):
    """Client 0 fails in some way: (20 * 1 + 30 * 2.25) / 60, and a sixth of what there was before."""
    strategy = fleet()
    messages = train(strategy)
    before = strategy.state.weights["2.running_mean"]
    answers = [reply(m, statistics(strategy, v)) for m, v in zip(messages, (2, 1, 2.25), strict=True)]
    bad = {
        "silent": [],
        "error": [reply(messages[0], "client: out of samples")],
        "stranger": [altered(answers[0], src_node_id=99)],
        "absurd": [reply(messages[0], statistics(strategy, 9000.0))],
        "weights": [reply(messages[0], wire.pack_update(made(strategy, messages[0], 10, 0)))],
        "empty": [reply(messages[0], RecordDict())],
    }
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        strategy.aggregate_evaluate(1, [*bad[fault], *answers[1:]])
    found = strategy.state.weights["2.running_mean"]
    np.testing.assert_allclose(found, (20 * 1 + 30 * 2.25 + 10 * before) / 60, rtol=1e-6)
    (said,) = [text for text in caplog.messages if "running statistics of the new model" in text]
    assert "from 1 of the devices asked; client 0: " in said


def test_without_any_answer_the_means_of_the_round_stay():
    strategy = fleet()
    messages = train(strategy)
    before = strategy.state
    strategy.aggregate_evaluate(1, [reply(m, "client: no") for m in messages])
    assert all((strategy.state.weights[name] == before.weights[name]).all() for name in before.weights)


def test_the_rows_tell_what_the_answer_took():
    strategy = fleet((None, 1 << 20, None))
    messages = train(strategy)
    before: tuple[ClientReport, ...] = strategy.outcome.rows
    strategy.aggregate_evaluate(1, [reply(m, statistics(strategy, 1.0)) for m in messages[:2]])
    sizes = [sum(len(a.data) for a in m.content["model"].values()) for m in messages]
    assert [a.bytes_down - b.bytes_down for a, b in zip(strategy.outcome.rows, before, strict=True)] == sizes
    gained = [a.bytes_up - b.bytes_up for a, b in zip(strategy.outcome.rows, before, strict=True)]
    assert gained[0] == gained[1] > gained[2] == 0


def test_the_rows_hold_the_larger_of_both_peaks_and_none_of_a_refused_answer():
    """The updates say that their training took 900 bytes."""
    strategy = fleet()
    messages = train(strategy)
    peaks = (77, 5_000, 2**50)
    answers = [reply(m, statistics(strategy, 1.0, peak)) for m, peak in zip(messages, peaks, strict=True)]
    answers[2].content.array_records["model"]["2.running_mean"] = wire.write_array(np.zeros(3, np.float32))
    strategy.aggregate_evaluate(1, answers)
    assert [row.value("memory_measured_bytes") for row in strategy.outcome.rows] == [900, 5_000, 900]


def test_flowers_own_result_holds_the_statistics_that_were_taken():
    strategy = fleet()
    messages = train(strategy)
    strategy.aggregate_evaluate(1, [reply(m, statistics(strategy, 2.0)) for m in messages])
    handed = wire.unpack_state(ARRAYS, strategy.layout)
    assert all((handed.weights[name] == strategy.state.weights[name]).all() for name in handed.weights)


# The wire


def answer() -> RecordDict:
    return statistics(fleet(), 2.0)


def test_statistics_come_back_exactly():
    strategy = fleet()
    found = wire.unpack_moments(statistics(strategy, 2.0), strategy.layout, strategy.state.structure)
    assert found.memory_measured_bytes == 77
    assert {name: set(values.tolist()) for name, values in found.weights.items()} == {
        f"{layer}.{name}": {2.0 if name == NAMES[0] else 5.0} for layer in (2, 5) for name in NAMES
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"2.running_mean": None}, r"arrays missing \['2.running_mean'\]"),
        ({"1.weight": np.zeros(3, np.float32)}, r"unknown \['1.weight'\]"),
        ({"2.running_mean": np.zeros(23, np.float32)}, "2.running_mean: expected float32 of shape"),
        ({"2.running_mean": np.zeros(24, np.float64)}, "2.running_mean: expected float32 of shape"),
        ({"2.running_mean": np.full(24, np.nan, np.float32)}, "2.running_mean: holds NaN"),
        ({"2.running_square": np.zeros(24, np.float32)}, "2.running_square: is below the square"),
    ],
)
def test_statistics_that_cannot_be_are_refused_by_name(change, said):
    strategy, content = fleet(), answer()
    arrays = content.array_records["model"]
    for name, values in change.items():
        if values is None:
            del arrays[name]
        else:
            arrays[name] = wire.write_array(values)
    with pytest.raises(WireError, match=said):
        wire.unpack_moments(content, strategy.layout, strategy.state.structure)


@pytest.mark.parametrize("size", [None, -1, 2.5])
def test_a_size_that_is_none_is_refused(size):
    strategy, content = fleet(), answer()
    content["metrics"] = MetricRecord({} if size is None else {"memory-measured-bytes": size})
    with pytest.raises(WireError, match="memory-measured-bytes: expected"):
        wire.unpack_moments(content, strategy.layout, strategy.state.structure)
