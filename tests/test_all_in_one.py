"""All-in-One: ratios against networks cut out by hand, orders undone, clocks, statistics of every ratio."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cut_short import outcome, snapshots
from fleets import device, enlisted
from small_models import ARCHITECTURES, begun, random_shard, small_recipe, small_task, unsettled
from torch import nn
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.data import client_shard
from fedhp.errors import RecordError, ScenarioError
from fedhp.fleet.devices import drawn_clock
from fedhp.latency.work import Work
from fedhp.model.building import to_module
from fedhp.model.gradients import gradients
from fedhp.model.reordering import inverse, reorder
from fedhp.model.shrinking import at_level
from fedhp.model.state import ModelState
from fedhp.pruning.options import PruneConfig
from fedhp.scenario.loading import load_scenario
from fedhp.training.methods import AllInOne, methods_for
from fedhp.training.optimizers import allocate_state, unallocated
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally
from strategies import AllInOne as Strategy

CASES = ("mlp-whole-inputs", "cnn-2-convs", "resnet20", "resnet20-group", "conv1d", "lenet5")
TRAIN = TrainConfig(batch_size=8, learning_rate=0.1, device="cpu")


def scored(arch, seed: int = 0) -> ModelState:
    """A model whose units are of different scores, in no order."""
    stream, state = np.random.default_rng(seed), unsettled(arch)
    scores = {g: stream.permutation(n).astype(np.float32) / n + 0.1 for g, n in arch.layout.widths.items()}
    return replace(state, scores=scores)


def recipe_of(arch, levels=(0.5, 1.0), train: TrainConfig = TRAIN, **prune: Any) -> Recipe:
    plain = small_recipe(arch, train, PruneConfig(**prune))
    return replace(plain, kinds=methods_for([AllInOne.name]), levels=levels)


def best(arch, state: ModelState, level: float):
    """The units of the highest scores of each group, found by sorting."""
    masks = {}
    for group, count in at_level(arch.layout, level).items():
        masks[group] = np.zeros(arch.layout.widths[group], bool)
        masks[group][sorted(range(len(masks[group])), key=lambda u: -state.scores[group][u])[:count]] = True
    return type(state.structure)(masks)


# Orders


@pytest.mark.parametrize("case", CASES)
def test_a_network_in_another_order_says_the_same_and_back_in_its_own_is_as_it_was(case):
    arch = ARCHITECTURES[case]
    module, stream = to_module(arch, unsettled(arch)), np.random.default_rng(1)
    optimizer = unallocated(module.parameters(), TRAIN)
    allocate_state(optimizer, TRAIN)
    for parameter in module.parameters():
        optimizer.state[parameter]["momentum_buffer"].copy_(parameter.detach() * 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    samples = torch.randn(3, *arch.input_shape)
    said = module.eval()(samples)
    orders = {group: stream.permutation(width) for group, width in arch.layout.widths.items()}
    reorder(module, optimizer, arch.layout, orders)
    assert any((module.state_dict()[name] != before[name]).any() for name in before)
    torch.testing.assert_close(module(samples), said, rtol=1e-4, atol=1e-5)
    for parameter in module.parameters():
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], parameter * 2)
    reorder(module, optimizer, arch.layout, inverse(orders))
    for name, tensor in module.state_dict().items():
        assert (tensor == before[name]).all(), name


# One client


@pytest.mark.parametrize("case", CASES)
def test_the_part_of_a_ratio_is_the_network_of_its_best_units(case):
    """By its outputs and its gradients' length, against the network that holds those units alone."""
    arch = ARCHITECTURES[case]
    state, shard = scored(arch), random_shard(arch.input_shape, arch.num_classes, 24)
    session = begun(recipe_of(arch), small_task(recipe_of(arch), shard, state=state), shard)
    (method,) = (one for one in session.run.methods if isinstance(one, AllInOne))
    (narrow, _), (whole, _) = method._widths._parts
    alone = to_module(arch, state.cut(arch.layout, best(arch, state, 0.5))).train()
    assert sum(p.numel() for p in narrow.parameters()) == sum(p.numel() for p in alone.parameters())
    assert whole is session.run.module
    images, labels = torch.randn(6, *arch.input_shape), torch.zeros(6, dtype=torch.int64)
    torch.testing.assert_close(narrow(images), alone(images), rtol=1e-3, atol=1e-4)
    for module in (narrow, alone):
        module.zero_grad()
        gradients(module, images, labels)
    norms = [torch.cat([p.grad.flatten() for p in m.parameters()]).norm() for m in (narrow, alone)]  # type: ignore[union-attr]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["mlp-whole-inputs", "cnn-2-convs", "resnet20"])
def test_of_a_single_ratio_it_is_plain_training(case):
    """The order of units makes no difference to what they learn, nor is any left in another place."""
    arch = ARCHITECTURES[case]
    state, shard = scored(arch), random_shard(arch.input_shape, arch.num_classes, 24)
    recipe = recipe_of(arch, levels=(1.0,))
    task = small_task(recipe, shard, state=state)
    ours = train_locally(recipe, task, shard)
    plain = train_locally(replace(recipe, kinds=()), task, shard)
    for name, weights in plain.state.weights.items():
        np.testing.assert_allclose(ours.state.weights[name], weights, rtol=1e-3, atol=1e-4, err_msg=name)


def test_own_scores_are_blended_with_those_that_were_sent():
    """By magnitude: a unit's share of the mean of squared weights, times the mean of what was sent."""
    arch = ARCHITECTURES["mlp-whole-inputs"]
    state, shard = scored(arch), random_shard(arch.input_shape, arch.num_classes, 8)
    still = replace(TRAIN, learning_rate=1e-12)
    recipe = recipe_of(arch, (1.0,), still, criterion="magnitude", blend=0.25)
    found = train_locally(recipe, small_task(recipe, shard, state=state), shard).state.scores
    early = PruneConfig(criterion="magnitude", blend=0.0, start=0.5)
    plain = small_recipe(arch, still, early, rounds=10)
    own = train_locally(plain, small_task(plain, shard, state=state), shard).state.scores
    for group, sent in state.scores.items():
        share = own[group] / own[group].mean()
        np.testing.assert_allclose(found[group], 0.25 * sent + 0.75 * sent.mean() * share, rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "change", "match"),
    [
        ("mlp-1-hidden", {}, r"takes samples whole; set model\.prune_inputs=false"),
        ("cnn-2-convs", {"optimizer": "adam"}, r"all_in_one takes train\.optimizer = sgd, got adam"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(case, change, match):
    with pytest.raises(ScenarioError, match=match):
        AllInOne.check(recipe_of(ARCHITECTURES[case], train=replace(TRAIN, **change)))


# Clocks


def strategy(**values: Any) -> Strategy:
    """A perceptron of 4 inputs, 8 and 6 hidden units and 3 classes: 4*8 + 8*6 + 6*3 = 98 multiplications."""
    ratios = {"model.prune_inputs": False, "strategy.levels": [0.25, 0.5, 1.0]}
    chosen = enlisted(Strategy, **ratios, **values)
    assert isinstance(chosen, Strategy)
    return chosen


@pytest.mark.usefixtures("as_the_server")
@pytest.mark.parametrize(
    ("clock", "units"),
    [
        (1.0, {"fc1": 8, "fc2": 6}),
        (0.99, {"fc1": 4, "fc2": 3}),  # 4*4 + 4*3 + 3*3 = 37 of 98
        (0.38, {"fc1": 4, "fc2": 3}),
        (0.37, {"fc1": 2, "fc2": 2}),  # 4*2 + 2*2 + 2*3 = 18 of 98
        (0.01, {"fc1": 2, "fc2": 2}),  # the narrowest that there is
    ],
)
def test_a_slow_device_is_sent_what_it_does_in_the_time_of_a_quick_one(clock, units):
    chosen = strategy(**{"fleet.classes": [{"name": "phone", "clock": [clock]}]})
    assert chosen.assign(device(0), 1).counts == units


def test_multiplications_are_counted_by_hand():
    """12 pixels, 7 and 6 units, 3 classes; 9x7 pixels, two 3x3 convolutions at 63 and at 4x3 places."""
    dense, images = (ARCHITECTURES[case] for case in ("mlp-whole-inputs", "cnn-2-convs"))
    assert Work(dense).products(dense.layout.widths) == 12 * 7 + 7 * 6 + 6 * 3
    assert Work(images).products(images.layout.widths) == (
        9 * 7 * 9 * 5 + 4 * 3 * 9 * 5 * 6 + 2 * 1 * 6 * 7 + 7 * 4
    )


@pytest.mark.usefixtures("as_the_server")
def test_a_clock_is_drawn_for_each_device_and_round_and_stands_in_the_record(tmp_path):
    classes = [{"name": "a", "clock": [1.0, 0.3]}, {"name": "b"}]
    chosen = strategy(**{"fleet.classes": classes})
    one = replace(device(0).profile, device_class="a")
    drawn = [
        drawn_clock(chosen.scenario.fleet, one, client, 0, number)
        for client in range(8)
        for number in range(8)
    ]
    assert set(drawn) == {1.0, 0.3}
    assert 16 < drawn.count(0.3) < 48
    other = replace(one, device_class="elsewhere")
    assert drawn_clock(chosen.scenario.fleet, other, 0, 0, 1) is None


@pytest.mark.parametrize(
    ("clock", "match"),
    [
        ("[0]", r"clock\[0\] must be above 0 and at most 1, got 0"),
        ("[1,1.5]", r"clock\[1\] must be above 0 and at most 1, got 1\.5"),
        ("[x]", r"'x' .* \(at 'clock\[0\]'\)"),
    ],
)
def test_a_clock_that_is_none_is_refused(clock, match):
    with pytest.raises(ScenarioError, match=match):
        load_scenario("quickstart", [f"fleet.classes=[{{name: a, clock: {clock}}}]"])


# A fleet

CLASSES = [
    {"name": "steady", "memory": "1MiB"},
    {"name": "throttled", "memory": "1MiB", "clock": [1.0, 0.2]},
]
SMALL: dict[str, Any] = {
    "rounds": 3,
    "strategy.name": "all_in_one",
    "strategy.levels": [0.5, 1.0],
    "model.target": "test_all_in_one:network",
    "data.max_train": 400,
    "fleet.num_clients": 4,
    "fleet.classes": CLASSES,
}


def network(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A normalised layer, whose statistics depend on the pixels alone, and one behind it."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(int(np.prod(input_shape)), 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Linear(20, num_classes),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all_in_one") / "run"
    return fedhp.simulate("quickstart", folder, show=False, **SMALL, **{"simulation.num_workers": 2})


def test_each_ratio_has_running_statistics_of_its_own(run):
    """Those of all samples of all clients, as plain torch finds them in the network of that ratio."""
    narrow = fedhp.load_model(run.folder, trust_target=True, level=0.5)
    whole = fedhp.load_model(run.folder, trust_target=True)
    shards = [client_shard(run.config.data, 4, run.config.seed, client) for client in range(4)]
    pixels = torch.cat([shard.batch(np.arange(len(shard)))[0].flatten(1) for shard in shards])
    for model in (narrow, whole):
        first, norm, second, other = (model[place] for place in (1, 2, 4, 5))  # type: ignore[index]
        with torch.no_grad():
            seen = first(pixels)
            normal = (seen - seen.mean(0)) / torch.sqrt(seen.var(0) + norm.eps) * norm.weight + norm.bias
            behind = second(torch.relu(normal))
        np.testing.assert_allclose(norm.running_mean, seen.mean(0), atol=0.05)
        scale = float(behind.mean(0).abs().max())
        assert float((other.running_mean - behind.mean(0)).abs().max()) < 0.15 * scale
    rows = {tuple(row): place for place, row in enumerate(whole[1].weight.tolist())}  # type: ignore[index]
    assert len(narrow[1].weight) == 12  # type: ignore[index]
    assert all(tuple(row) in rows for row in narrow[1].weight.tolist())  # type: ignore[index]


def test_the_record_has_the_accuracy_of_each_ratio_and_every_clock(run):
    told = json.loads(run.rounds["levels"].iloc[-1])
    assert set(told) == {"1", "0.5"}
    assert told["1"]["accuracy"] == run.rounds["accuracy"].iloc[-1]
    narrow = fedhp.load_model(run.folder, trust_target=True, level=0.5)
    assert told["0.5"]["params"] == sum(p.numel() for p in narrow.parameters())
    assert run.accuracy_of(0.5) == told["0.5"]["accuracy"]
    rows = run.clients
    assert set(rows["clock"][rows["device_class"] == "throttled"]) == {1.0, 0.2}
    assert rows["clock"][rows["device_class"] == "steady"].isna().all()
    slow, params = rows["clock"] == 0.2, rows["params_received"]
    assert params[slow].max() < params[~slow].min()


def test_a_level_that_is_not_there_is_refused_with_those_that_are(run, tmp_path):
    with pytest.raises(RecordError, match=r"has no level 0\.7; it has 0\.5, 1$"):
        fedhp.load_model(run.folder, trust_target=True, level=0.7)
    plain = fedhp.simulate("quickstart", tmp_path / "plain", show=False, rounds=1)
    with pytest.raises(RecordError, match="only runs of strategy all_in_one have levels"):
        fedhp.load_model(plain.folder, level=0.5)


def test_a_level_is_exported_to_a_folder_of_its_own(run):
    words = ["export", str(run.folder), "--to", "torch", "--level", "0.5", "--trust-target"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    facts = json.loads((run.folder / "export-level-0.5" / "export.json").read_text())
    statistics = 2 * (12 + 10)  # means and mean squares
    params = json.loads(run.rounds["levels"].iloc[-1])["0.5"]["params"]
    assert facts["network"]["parameters"] == params + statistics
    assert facts["network"]["accuracy"] == run.accuracy_of(0.5)


def test_it_does_not_depend_on_workers_and_goes_on_where_it_was_cut_short(run, tmp_path):
    expected = outcome(run.folder)
    expected["files"] = [name for name in expected["files"] if not name.startswith("export")]
    narrow = (run.folder / "level-0.5.safetensors").read_bytes()
    alone = {**SMALL, "simulation.num_workers": 0}
    with snapshots(tmp_path / "alone", tmp_path) as taken:
        fedhp.simulate("quickstart", tmp_path / "alone", show=False, **alone)
    assert outcome(tmp_path / "alone") == expected
    midway = [one for one in taken if list(one.glob("checkpoint-*"))]
    folder = midway[len(midway) // 2]
    fedhp.resume(folder, show=False)
    assert outcome(folder) == expected
    assert (folder / "level-0.5.safetensors").read_bytes() == narrow
