"""Sparse training: drop and growth against a few lines on dense arrays; its memory; what it refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import random_shard, small_task, watched
from torch import nn

from fedhp.costs.live_tensors import LiveTensors
from fedhp.errors import NeedsTorchError, ScenarioError
from fedhp.model.building import initial_state, to_module
from fedhp.model.gradients import gradients
from fedhp.model.sparse_layers import make_sparse, sparse_layers
from fedhp.model.sparse_network import filled
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.training.methods.sparse import Places, rewire
from fedhp.training.options import MOMENTUM, SparseConfig
from fedhp.training.trainer import train_locally

SHAPE = (1, 8, 8)
SHARD = random_shard(SHAPE, 10, 60)
NETS: dict[str, dict[str, Any]] = {
    "mlp": {"model.name": "mlp", "model.widths": [24, 16]},
    "blocks": {"model.name": "mlp", "model.widths": [700, 60]},  # of fc1 in two
    "cnn": {"model.name": "cnn", "model.widths": [4, 6, 12]},
    "resnet20": {"model.name": "resnet20", "model.widths": [4, 4, 8], "model.norm": "batch"},
}


def recipe(method: str = "rigl", net: str = "mlp", **values: Any):
    said = {**NETS[net], "train.method": method, "prune.target_compression": 4, "train.batch_size": 10}
    return recipe_of(load_scenario("quickstart", values={**said, "model.floor": 1, **values}), SHAPE, 10)


def test_the_share_falls_along_a_cosine_to_the_end():
    """drop / 2 (1 + cos(pi t / end)): 0.3 at first, half of it half-way, 0 from the end on."""
    config = SparseConfig(drop=0.3, end=0.8)
    shares = [config.share(progress) for progress in (0, 0.4, 0.6, 0.8, 0.9)]
    np.testing.assert_allclose(shares, [0.3, 0.15, 0.15 * (1 - np.sqrt(0.5)), 0, 0], atol=1e-12)


@pytest.mark.parametrize("size", [(6, 5), (90, 1000)], ids=["one block", "three blocks"])
def test_drop_and_growth_are_those_of_a_few_lines_on_dense_arrays(size):
    """The smallest by magnitude go, and the steepest that are not there come, at 0 and without momentum."""
    rng = np.random.default_rng(0)
    number, mask = 7, rng.random(size) < 0.3
    weight, momentum, gradient = (rng.standard_normal(size).astype(np.float32) for _ in range(3))

    dense, moved = np.where(mask, weight, 0), np.where(mask, momentum, 0)
    active = np.flatnonzero(mask)
    gone = active[np.argsort(np.abs(weight.flat[active]))[:number]]
    away = np.flatnonzero(~mask)
    come = away[np.argsort(-np.abs(gradient.flat[away]))[:number]]
    expected = mask.copy()
    expected.flat[gone], expected.flat[come] = False, True
    dense.flat[gone] = moved.flat[gone] = 0

    net = nn.Sequential(nn.Linear(size[1], size[0]))
    make_sparse(net, {"0.weight": int(mask.sum())})
    layer: Any = net[0]
    layer.weight.data.copy_(torch.from_numpy(weight[mask]))
    layer.place(torch.from_numpy(active.astype(np.int32)))
    state = {MOMENTUM: torch.from_numpy(momentum[mask]), "step": torch.zeros(())}
    places = Places(number, lambda gradient: gradient.abs_())
    for block in layer.blocks():
        shown = torch.from_numpy(gradient[block.rows].ravel().copy())
        places.offer(shown, layer.weight_positions[block.values], block.start)
    places.end()
    rewire(layer, places.found, state)

    assert layer.places().tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_array_equal(layer.weight.detach().numpy(), dense[expected])
    np.testing.assert_array_equal(state[MOMENTUM].numpy(), moved[expected])
    assert (dense[expected] == 0).sum() == number


def test_a_step_of_rigl_is_a_dense_one_that_is_masked_and_then_rewired():
    """One step of plain SGD: as it is the only one, each layer drops 30 % of its weights after it."""
    plain_sgd = {"train.momentum": 0.0, "train.learning_rate": 0.1, "train.clip_norm": 0.0}
    made = recipe(rounds=4, **{"train.batch_size": 60, "train.local_epochs": 1, **plain_sgd})
    begun = initial_state(made.architecture, made.seed)
    update, _ = watched(made, small_task(made, SHARD, round_=1), SHARD)
    plain, state = filled(made.architecture, begun)
    module = to_module(plain, state)
    order = np.random.default_rng(0).permutation(60)  # of one batch's samples, which changes no mean
    gradients(module, *SHARD.batch(order))
    _, got = filled(made.architecture, update.state)
    for name, parameter in module.named_parameters():
        weight, gradient = parameter.detach().numpy(), parameter.grad.numpy()
        stepped = weight - np.float32(0.1) * gradient
        if name in begun.structure.masks:
            mask = begun.structure.masks[name]
            number = min(int(0.3 * mask.sum()), int((~mask).sum()))
            stepped = np.where(mask.reshape(weight.shape), stepped, 0)
            active, away = np.flatnonzero(mask), np.flatnonzero(~mask)
            gone = active[np.argsort(np.abs(stepped.flat[active]))[:number]]
            come = away[np.argsort(-np.abs(gradient.flat[away]))[:number]]
            stepped.flat[gone] = 0
            held = mask.copy()
            held[gone], held[come] = False, True
            np.testing.assert_array_equal(update.state.structure.masks[name], held)
        np.testing.assert_allclose(got.weights[name], stepped, atol=1e-5)


def test_set_grows_elsewhere_and_a_static_mask_stays():
    begun, ends = None, {}
    for method in ("rigl", "set", "static"):
        made = recipe(method, **{"train.local_epochs": 2})
        begun = initial_state(made.architecture, made.seed).structure
        ends[method] = train_locally(made, small_task(made, SHARD), SHARD).state.structure
        assert ends[method].counts == begun.counts
    assert ends["static"] == begun
    assert begun.distance(ends["set"]) > 0.1
    assert ends["set"].distance(ends["rigl"]) > 0.1


def test_weights_stay_where_they_are_from_the_end_on():
    made = recipe(rounds=4, **{"train.sparse.end": 0.5})
    moved = [
        train_locally(made, small_task(made, SHARD, round_=number), SHARD).state.structure
        != initial_state(made.architecture, made.seed).structure
        for number in (1, 2, 3, 4)
    ]
    assert moved == [True, True, False, False]


@pytest.mark.parametrize(("epochs", "every", "times"), [(1, 100, 1), (2, 100, 1), (4, 4, 6), (4, 3, 8)])
def test_it_is_time_every_so_many_steps_and_once_at_least(epochs, every, times):
    """Six steps an epoch. Of 24, every fourth is six times; of six or twelve, one comes half-way."""
    values = {"train.local_epochs": epochs, "train.sparse.every": every, "train.sparse.end": 1.0}
    made = recipe(**values, rounds=50)
    _, run = watched(made, small_task(made, SHARD), SHARD)
    (method,) = (one for one in run.methods if one.name == "rigl")
    assert method.kept()["number"] == times


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", ["rigl", "set", "static"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_predicted_peak_is_the_measured_one_or_a_little_more(method, net, optimizer):
    made = recipe(method, net, **{"train.optimizer": optimizer})
    said = train_locally(made, small_task(made, SHARD), SHARD).statistics
    assert said.memory_measured_bytes <= said.memory_predicted_bytes
    assert said.memory_predicted_bytes <= 1.12 * said.memory_measured_bytes
    if method == "static":
        assert said.memory_predicted_bytes == said.memory_measured_bytes


def test_between_steps_nothing_dense_is_held():
    """Of 90,864 weights a quarter is left. A value, its momentum and its place take 12 bytes each."""
    made = recipe(net="blocks")
    state = initial_state(made.architecture, made.seed)
    module = to_module(made.architecture, state)
    optimizer = made.runtime.optimizer(module, made.train)
    with LiveTensors(made.runtime.kept(module, optimizer)) as live:
        pass
    counts = state.structure.counts
    weights, others = sum(counts.values()), made.architecture.layout.num_parameters(counts)
    assert live.peak == 12 * weights + 8 * (others - weights)
    assert others == (64 * 700 + 700 * 60 + 60 * 10 + 700 + 60 + 10) // 4


def test_a_budget_decides_the_density():
    made = recipe(net="blocks")
    memory = made.memory_model(1)
    whole = initial_state(made.architecture, made.seed)
    from fedhp.aggregation.assignment import fit_structure

    needed = memory.training_bytes(whole.structure.counts, 10)
    assert fit_structure(memory, made.shape, whole, needed, 10) == whole.structure
    budget = needed - 100_000
    part = fit_structure(memory, made.shape, whole, budget, 10)
    assert memory.training_bytes(part.counts, 10) <= budget
    counts = made.shape.of(sum(part.counts.values()) + len(part.counts) + 1, whole.structure.counts)
    assert memory.training_bytes(counts, 10) > budget  # there is no denser one
    for name, mask in part.masks.items():  # the largest of the global model's, and no other
        assert not (mask & ~whole.structure.masks[name]).any()
        size = np.abs(whole.weights[name])
        kept = mask[whole.structure.kept(name)]
        assert size[kept].min() >= size[~kept].max(initial=0)
    said = train_locally(made, small_task(made, SHARD, budget, state=whole.cut(memory.layout, part)), SHARD)
    assert said.statistics.memory_measured_bytes <= budget


def test_layers_move_with_what_the_optimiser_knows_of_them():
    made = recipe(**{"train.local_epochs": 3, "train.sparse.every": 2})
    _, run = watched(made, small_task(made, SHARD), SHARD)
    for name, layer in sparse_layers(run.module).items():
        places = layer.places()
        assert (places.diff() > 0).all(), name
        assert run.optimizer.state[layer.weight][MOMENTUM].shape == layer.weight.shape


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"prune.criterion": "fisher"}, "prune.criterion = fisher has no effect with train.method = rigl"),
        ({"prune.widths": [3, 3, 3]}, r"prune.widths = \[3, 3, 3\] has no effect with train.method = rigl"),
        ({"prune.marginal": 0.2}, "prune.marginal = 0.2 has no effect"),
        ({"prune.regularizer": "halo"}, "choose train.method = dynhp"),
        ({"prune.pattern.name": "nm:2:4"}, "prune.pattern.name = nm:2:4 has no effect"),
        ({"train.method": "dynhp", "train.sparse.drop": 0.5}, "choose train.method = rigl or set"),
        ({"train.method": "static", "train.sparse.every": 5}, "choose train.method = rigl or set"),
        ({"train.method": "dynhp", "train.sparse.densities": "uniform"}, "rigl or set or static"),
        ({"train.sparse.densities": "er"}, "must be one of erk, uniform"),
        ({"model.name": "spiking_mlp"}, r"train\.method = rigl takes no spiking network"),
    ],
)
def test_options_of_another_method_are_refused(values, match):
    with pytest.raises(ScenarioError, match=match):
        load_scenario("quickstart", values={"train.method": "rigl", **values})


def test_another_method_leaves_the_options_behind_that_a_file_has_for_its_own():
    chosen = load_scenario("fashion_mnist_fleet", ["train.method=rigl"])
    assert load_scenario("fashion_mnist_fleet").prune.criterion == "magnitude"
    assert chosen.prune.criterion == "taylor"
    assert chosen.prune.target_compression == 10


def test_a_file_with_both_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {method: set}\nprune: {start: 0.2}\n")
    with pytest.raises(ScenarioError, match=r"prune\.start = 0\.2 has no effect with train\.method = set"):
        load_scenario(file)


def test_a_device_without_pytorch_declines():
    made = replace(recipe(), runtime_name="numpy")
    with pytest.raises(NeedsTorchError, match=r"train\.method = rigl"):
        made.runtime.check(made, "mlp")


def test_no_target_leaves_the_network_dense():
    made = recipe(**{"prune.target_compression": 1})
    assert made.architecture.plain is None
    assert not [kind for kind in made.methods if kind.name == "rigl"]
