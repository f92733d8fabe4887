"""Devices that train with NumPy: their rounds beside PyTorch's, in one federation, and what they decline."""

import inspect
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from factories import MemoryGrid, query_fleet
from flwr.app import Context, Message, MessageType, RecordDict
from small_models import random_shard, small_recipe, small_task

from clients.client_app import app
from fedhp.costs.live_arrays import LiveArrays
from fedhp.data import Normalisation
from fedhp.federation import wire
from fedhp.federation.rounds import close_round
from fedhp.model.building import initial_state
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.options import PruneConfig
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario
from fedhp.simulation.identity import RUN_ID, acting_as
from fedhp.training import trainer
from fedhp.training.batches import MemoryConfig
from fedhp.training.method_names import PRUNING
from fedhp.training.moments import take_moments
from fedhp.training.options import TrainConfig
from fedhp.training.runtime import NUMPY, TORCH, Runtime, runtime_of
from fedhp.training.trainer import train_locally

ARCH = architecture(ModelConfig("mlp", [40, 20]), (1, 6, 6), 5)
SHARD = random_shard((1, 6, 6), 5, 120)
TRAIN = TrainConfig(local_epochs=2, batch_size=8, learning_rate=0.05, device="cpu")
PRUNE = PruneConfig(target_compression=4, start=0.1, end=0.7, cuts=5)


def furthest(one: ModelState, other: ModelState) -> float:
    assert one.structure == other.structure
    return max(float(np.abs(one.weights[name] - other.weights[name]).max()) for name in one.weights)


# A round

HOW = {
    "dynhp": {},
    "plain": {"momentum": 0.0},
    "decayed": {"weight_decay": 0.01},
    "pulled": {"proximal_mu": 0.5},
    "clipped": {"clip_norm": 0.2},
    "masked": {"masked_loss": True},
    "smoothed": {"label_smoothing": 0.1},
}


WINDOWS = {
    norm: architecture(ModelConfig("conv1d", [12, 16], norm=norm), (1, 6, 24), 5)
    for norm in ("batch", "group")
}
CASES = [*((ARCH, how) for how in HOW), *((arch, "dynhp") for arch in WINDOWS.values())]


@pytest.mark.parametrize(("arch", "how"), CASES, ids=[*HOW, *WINDOWS])
def test_a_round_ends_as_pytorchs(arch, how):
    """From equal weights: the same units, and the same weights but for rounding. No sample is of class 4."""
    shard = random_shard(arch.input_shape, 4, 120)
    recipe = small_recipe(arch, replace(TRAIN, **HOW[how]), PRUNE)
    recipe = replace(recipe, shares=tuple(recipe.shape.shares.values()))  # as a server says them
    updates = {}
    for name in ("torch", "numpy"):
        own = replace(recipe, runtime_name=name)
        updates[name] = train_locally(own, small_task(own, shard), shard, held_out=shard.part(np.arange(30)))
    ours, theirs = updates["numpy"], updates["torch"]
    assert ours.state.structure.counts == recipe.schedule.counts(1.0)
    assert furthest(ours.state, theirs.state) < 1e-5
    for group, scores in theirs.state.scores.items():
        np.testing.assert_allclose(ours.state.scores[group], scores, rtol=1e-3)
    for figure in ("train_loss", "accuracy", "gradient_norm", "local_accuracy_personal", "batch_size_last"):
        assert getattr(ours.statistics, figure) == pytest.approx(getattr(theirs.statistics, figure), rel=1e-5)


def test_running_statistics_of_a_model_that_stands_still_are_pytorchs():
    recipe = small_recipe(WINDOWS["batch"], TRAIN, PRUNE)
    shard = random_shard((1, 6, 24), 4, 50)
    ours, theirs = (
        take_moments(own, small_task(own, shard), shard)
        for own in (replace(recipe, runtime_name=name) for name in ("numpy", "torch"))
    )
    for name, values in theirs.weights.items():
        np.testing.assert_allclose(ours.weights[name], values, atol=1e-6, err_msg=name)


def test_running_statistics_of_an_overflow_are_gone_after_a_restart():
    arch, shard = WINDOWS["batch"], random_shard((1, 6, 24), 4, 20)
    recipe = replace(small_recipe(arch, TRAIN, PRUNE), runtime_name="numpy")
    network = recipe.runtime.network(arch, small_task(recipe, shard).state, recipe.device())
    samples = shard.batch(np.arange(20))[0]
    with np.errstate(all="ignore"):
        recipe.runtime.retake_statistics(network, iter([np.full_like(samples, 1e30)]))
        weights = recipe.runtime.weights(network)
    assert not all(np.isfinite(values).all() for values in weights.values())
    recipe.runtime.retake_statistics(network, iter([samples]))
    assert all(np.isfinite(values).all() for values in recipe.runtime.weights(network).values())


@pytest.mark.parametrize("name", [name for name in vars(Runtime) if not name.startswith("_")])
def test_both_runtimes_have_all_that_a_runtime_has(name):
    """Called as the protocol says, by place: with all, and without what may be left out."""
    asked = list(inspect.signature(getattr(Runtime, name)).parameters.values())[1:]
    needed = [one for one in asked if one.default is one.empty]
    for runtime in (TORCH, NUMPY):
        has = inspect.signature(getattr(runtime_of(runtime), name))
        assert has.bind(*asked)
        assert has.bind(*needed)


WEIGHED = [name for name, one in CRITERIA.items() if not (one.activations or one.scales)]


@pytest.mark.parametrize("criterion", WEIGHED)
def test_the_budget_holds_with_every_criterion(criterion, monkeypatch):
    """To the byte in the first steps and after cuts, on a budget of just what the dense model needs."""
    monkeypatch.setattr("fedhp.training.meter.PEAKS", {})
    prune, memory = replace(PRUNE, criterion=criterion), MemoryConfig("fill", max_batch=64)
    recipe = replace(small_recipe(ARCH, TRAIN, prune, memory), runtime_name="numpy")
    need = recipe.memory_model(1).training_bytes(ARCH.layout.widths, 8)
    peaks, alone = [], trainer.step_alone

    def measured(session):
        with LiveArrays(session.run.held()) as live:
            judged = alone(session)
        peaks.append(live.peak)
        return judged

    monkeypatch.setattr(trainer, "step_alone", measured)
    update = train_locally(recipe, small_task(recipe, SHARD, need), SHARD)
    assert update.state.structure.counts == recipe.schedule.counts(1.0)
    assert max(peaks) <= need
    assert update.statistics.memory_predicted_bytes <= need
    assert update.statistics.memory_measured_bytes <= need
    assert update.statistics.batch_size_last > 8


# In a federation


def scenario(**values) -> Scenario:
    small = {
        "rounds": 3,
        "data.max_train": 600,
        "fleet.num_clients": 6,
        "server.clients_per_round": 6,
        "prune.start": 0.0,
        "prune.target_compression": 3,
        "train.local_epochs": 1,
    }
    return load_scenario("quickstart", values={**small, **values})


def answer(message: Message, runtime: str) -> Message:
    node = message.metadata.dst_node_id
    config = {"partition-id": node - 1, "runtime": runtime, "fedhp-simulation": True}
    with acting_as(node):
        return app(message, Context(RUN_ID, node, config, RecordDict(), {}))


def run(chosen: Scenario, runtime_of: Callable[[int], str]):
    strategy, rows = prepare(chosen).strategy, []
    nodes = range(1, chosen.fleet.num_clients + 1)
    grid = MemoryGrid(lambda message: answer(message, runtime_of(message.metadata.dst_node_id)), [nodes])
    with acting_as(0):
        strategy.enlist(query_fleet(grid, strategy.brief, len(nodes), 600.0)[0])
        for _ in range(chosen.rounds):
            _, parts = strategy.exchange(grid, 600.0)
            strategy.server, strategy.outcome = close_round(strategy, strategy.server, parts)
            rows += strategy.outcome.rows
    return strategy.state, rows


def test_devices_of_both_kinds_train_one_model():
    chosen = scenario()
    mixed, rows = run(chosen, lambda node: "numpy" if node % 2 else "torch")
    assert len(rows) == 18
    assert not [row for row in rows if row.statistics is None]
    for row in rows:
        assert row.statistics.memory_measured_bytes <= row.statistics.memory_predicted_bytes
    alike, _ = run(chosen, lambda node: "torch")
    assert furthest(mixed, alike) < 1e-3  # after three rounds of rounding


DECLINED = {
    "train.optimizer": ("adam", "train.optimizer = adam"),
    "prune.criterion": ("apoz", "prune.criterion = apoz"),
    "prune.regularizer": ("halo", "prune.regularizer = halo"),
    "prune.pattern.name": ("nm:2:4", "prune.pattern.name = nm:2:4"),
    "memory.batch_policy": ("noise", "memory.batch_policy = noise"),
    "model.name": ("cnn", "the model cnn 8-8 needs PyTorch"),
}


@pytest.mark.parametrize("key", DECLINED)
def test_what_is_pytorchs_alone_is_declined_by_name(key):
    value, said = DECLINED[key]
    chosen = scenario(**{key: value, "model.widths": [8, 8]})
    scale = Normalisation((0.3,), (0.4,))
    brief = wire.Brief(chosen.to_json(), (1, 8, 8), 10, scale, methods=PRUNING, budgeted=True)
    state = initial_state(recipe_of(chosen, (1, 8, 8), 10).architecture, 0)
    with acting_as(0):
        message = Message(wire.pack_task(wire.pack_state(state), brief, 1), 1, MessageType.TRAIN)
    reason = answer(message, "numpy").error.reason or ""
    assert said in reason
    assert "needs PyTorch: pip install 'fedhp[torch]'" in reason


def test_a_runtime_that_there_is_not_is_refused():
    strategy = prepare(scenario()).strategy
    with acting_as(0):
        task = wire.pack_task(wire.pack_state(strategy.state), strategy.brief, 1)
        message = Message(task, 1, MessageType.TRAIN)
    assert "runtime must be one of torch, numpy, got 'jax'" in str(answer(message, "jax").error)
