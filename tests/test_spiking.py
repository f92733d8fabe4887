"""Spiking networks: neurons, normalisation and gradients by hand, memory over time, and what they refuse."""

import copy
import json
import math
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("snntorch")
from small_models import ARCHITECTURES, random_shard, small_recipe, small_task, unsettled
from snntorch import Leaky
from torch import nn
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.costs.rehearsal import memory_model
from fedhp.data import test_shard as held_out_of
from fedhp.errors import MissingExtraError, ScenarioError
from fedhp.exports.spikes import count_spikes, spikes_of
from fedhp.model.batch_norms import retake_statistics
from fedhp.model.building import to_module
from fedhp.model.modules import take_weights
from fedhp.model.networks.chain import Layer
from fedhp.model.networks.spiking import LEAK, ThroughTime, network
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.pruning.contributions import Contributions
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.options import PruneConfig
from fedhp.scenario.loading import load_scenario
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally

MLP = ARCHITECTURES["spiking_mlp"]  # 15 inputs, 9 and 7 units, 4 classes, 3 steps
STEPS = 3


def neurons(time_steps: int) -> ThroughTime:
    """Neurons alone, which take the current as it comes."""
    return ThroughTime({"neurons": Leaky(LEAK, reset_mechanism="zero")}, time_steps)


# Neurons


@pytest.mark.parametrize(
    ("current", "spikes"),
    [(0.04, [0, 0, 0, 0]), (0.6, [0, 1, 0, 1]), (0.4, [0, 0, 1, 0]), (1.5, [1, 1, 1, 1]), (-2.0, [0] * 4)],
)
def test_neurons_leak_fire_and_begin_anew(current, spikes):
    """A leak of 0.95, a threshold of 1, a reset to zero.

    0.6: potentials 0.6 and 0.95 * 0.6 + 0.6 = 1.17, a spike, then 0.6 and 1.17 again. 0.4: 0.4, 0.78, 1.141,
    a spike, then 0.4. 1.5 fires at every step. 0.04 never does: it gathers at most 0.04 / 0.05 = 0.8.
    """
    for number in range(1, 5):
        rate = neurons(number)(torch.tensor([[current]]))
        assert rate.item() == pytest.approx(sum(spikes[:number]) / number)
    assert neurons(200)(torch.tensor([[0.04]])).item() == 0


@pytest.mark.parametrize("current", [0.3, 0.7, 0.9, 1.2])
def test_gradients_pass_spikes_by_the_surrogate(current):
    """Of one step 1 / (1 + (pi (u - 1))^2), the arctangent's of Fang et al. 2021 with alpha = 2.

    Of two, the mean of both steps' spikes; the second potential is 0.95 (1 - s) u + x, of which the reset s
    takes no part in the gradient.
    """

    def surrogate(potential: float) -> float:
        return 1 / (1 + (math.pi * (potential - 1)) ** 2)

    def gradient(time_steps: int) -> float:
        taken = torch.tensor([[current]], requires_grad=True)
        neurons(time_steps)(taken).sum().backward()
        assert taken.grad is not None
        return taken.grad.item()

    fired = float(current > 1)
    second = 0.95 * (1 - fired) * current + current
    assert gradient(1) == pytest.approx(surrogate(current), rel=1e-5)
    both = surrogate(current) + surrogate(second) * (0.95 * (1 - fired) + 1)
    assert gradient(2) == pytest.approx(both / 2, rel=1e-5)


def test_nothing_of_a_step_outlives_it():
    """snnTorch's layers note their potentials, with all that the backward pass keeps."""
    module = to_module(MLP, unsettled(MLP)).train()
    seen = []
    for layer in module.modules():
        if isinstance(layer, Leaky):
            layer.register_forward_hook(lambda _layer, _taken, made: seen.append(weakref.ref(made[1])))
    before = sum(buffer.nbytes for buffer in module.buffers())
    module(torch.randn(5, 15)).sum().backward()
    assert len(seen) == 2 * STEPS
    assert not any(potential() is not None for potential in seen)
    assert sum(buffer.nbytes for buffer in module.buffers()) == before
    copy.deepcopy(module)  # which refuses what has a gradient's history


# The network


def by_numpy(weights: dict[str, np.ndarray], samples: np.ndarray) -> np.ndarray:
    """A spiking MLP of two hidden layers in evaluation, whose last potentials are gathered step by step."""
    potentials, total = {"fc1": 0.0, "fc2": 0.0}, 0.0
    for step in range(STEPS):
        signal = samples
        for layer, path in (("fc1", "fc1"), ("fc2", "spikes.fc2")):
            norm = f"spikes.norm_{layer}.{step}"
            mean, square = weights[f"{norm}.running_mean"], weights[f"{norm}.running_square"]
            current = signal @ weights[f"{path}.weight"].T
            current = (current - mean) / np.sqrt(square - mean**2 + 1e-5) * weights[f"{norm}.weight"]
            potentials[layer] = LEAK * potentials[layer] + current
            signal = (potentials[layer] > 1).astype(float)
            potentials[layer] = np.where(signal > 0, 0, potentials[layer])
        total = total + signal @ weights["head.weight"].T + weights["head.bias"]
    return total / STEPS


def test_scores_are_the_potentials_that_the_last_layer_has_gathered_over_the_steps():
    """Against a network of our own, which multiplies spikes by the head's weights at every step."""
    state = unsettled(MLP)
    scales = {name: 2 * a for name, a in state.weights.items() if "norm" in name and name.endswith("weight")}
    state = ModelState({**state.weights, **scales}, state.structure)
    samples = torch.randn(50, 15, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = to_module(MLP, state).eval()(samples).numpy()
    wide = {name: array.astype(np.float64) for name, array in state.weights.items()}
    wanted = by_numpy(wide, samples.numpy().astype(np.float64))
    assert len(np.unique(wanted)) > 50  # there are spikes, and not all alike
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_each_step_is_normalised_by_statistics_and_a_scale_of_its_own():
    """As three layers of torch's, each given what comes at its step; over batches of unequal sizes."""
    module = to_module(MLP, unsettled(MLP)).train()
    norms = module.get_submodule("spikes.norm_fc2")
    assert isinstance(norms, nn.ModuleList)
    taken: list[list[torch.Tensor]] = [[] for _ in norms]
    for step, norm in enumerate(norms):
        assert norm.bias is None
        norm.register_forward_hook(lambda _norm, given, made, step=step: taken[step].append((given[0], made)))
    samples = torch.randn(50, 15, generator=torch.Generator().manual_seed(0))
    retake_statistics(module, iter([samples[:40].clone(), samples[40:].clone()]))
    weights = take_weights(module)
    means = []
    for step, norm in enumerate(norms):
        (first, made), (second, _) = taken[step]
        own = nn.BatchNorm1d(7)
        own.weight = norm.weight
        torch.testing.assert_close(made, own(first))
        mean = torch.cat([first, second]).mean(0).numpy()
        np.testing.assert_allclose(weights[f"spikes.norm_fc2.{step}.running_mean"], mean, atol=1e-6)
        means.append(mean)
    assert not np.allclose(means[0], means[1])


def test_a_sample_is_shown_as_often_as_the_scenario_says():
    for given, steps in ((0, 4), (5, 5)):
        arch = architecture(ModelConfig("spiking_cnn", [4, 8], time_steps=given), (1, 4, 4), 3)
        norms = arch.build(arch.layout.widths).get_submodule("spikes.norm_conv1")
        assert isinstance(norms, nn.ModuleList)
        assert len(norms) == steps


def test_the_size_of_the_usual_spiking_mlp():
    """784*300 + 300*100 + 100*10 + 10 weights, and of each of 400 neurons a scale for each of 4 steps."""
    arch = architecture(ModelConfig("spiking_mlp"), (1, 28, 28), 10)
    assert arch.layout.num_parameters(arch.layout.widths) == 266_210 + 400 * 4
    assert arch.layout.widths == {"inputs": 784, "fc1": 300, "spikes.fc2": 100}
    assert (
        "inputs"
        not in architecture(ModelConfig("spiking_mlp", prune_inputs=False), (1, 4, 4), 2).layout.widths
    )


# Pruning, and memory


@pytest.mark.parametrize("name", ["activation", "apoz", "correlation"])
def test_criteria_look_at_every_step(name):
    """The score of the first layer's units is the mean of what the criterion says of each step's spikes."""
    module = to_module(MLP, unsettled(MLP)).train()
    full = MLP.layout.full()
    known = {group: np.ones(count, np.float32) for group, count in full.counts.items()}
    watch = Contributions(MLP.layout, CRITERIA[name], module, known, 0.0, np.random.default_rng(0))
    spikes = []
    module.get_submodule("spikes.fc2").register_forward_pre_hook(
        lambda _, taken: spikes.append(taken[0].detach())
    )
    torch.nn.functional.cross_entropy(module(torch.randn(40, 15)), torch.arange(40) % 4).backward()
    watch.observe()
    seen = watch.evidence["fc1"]
    each = [CRITERIA[name].score(replace(seen, activations=step[:, :, None])) for step in spikes]
    wanted = torch.stack(each).mean(0).numpy()
    assert len(each) == STEPS
    assert wanted.std() > 0
    np.testing.assert_allclose(watch.own()["fc1"], wanted / wanted.mean(), rtol=1e-5)


@pytest.mark.parametrize("criterion", ["taylor", "bn_scale", "apoz", "correlation"])
@pytest.mark.parametrize("case", ["spiking_mlp", "spiking_cnn"])
def test_training_cuts_units_and_never_takes_more_than_was_said(case, criterion):
    arch = ARCHITECTURES[case]
    if criterion == "bn_scale" and case == "spiking_mlp":  # inputs are scaled by nothing
        arch = architecture(ModelConfig("spiking_mlp", [9, 7], 1, prune_inputs=False), (1, 3, 5), 4)
    shard = random_shard(arch.input_shape, arch.num_classes, 120)
    prune = PruneConfig(target_compression=2, criterion=criterion, start=0.1, end=0.8)
    recipe = small_recipe(arch, TrainConfig(batch_size=8, local_epochs=3, device="cpu"), prune)
    update = train_locally(recipe, small_task(recipe, shard, 10**7), shard)
    said, seen = update.statistics.memory_predicted_bytes, update.statistics.memory_measured_bytes
    assert seen <= said <= 1.1 * seen
    assert update.state.structure != arch.layout.full()
    assert all(np.isfinite(array).all() for array in update.state.weights.values())


def test_memory_grows_by_as_much_with_every_time_step():
    """What one step more takes: its activations, kept until the backward pass, and statistics and scales."""

    def taken(time_steps: int, batch: int) -> int:
        arch = architecture(ModelConfig("spiking_cnn", [8, 16], time_steps=time_steps), (1, 16, 16), 10)
        return memory_model(arch, 1, 1).training_bytes(arch.layout.widths, batch)

    for batch in (8, 32):
        more = np.diff([taken(steps, batch) for steps in range(3, 7)])
        assert len(set(more)) == 1
        # Its potentials and its spikes before pooling, and these after it, are kept at least.
        assert more[0] > batch * 4 * 8 * (2 * 16 * 16 + 8 * 8)


LITTLE = {"rounds": 2, "fleet.num_clients": 8, "simulation.num_workers": 0, "prune.target_compression": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two rounds of a fleet on the digits."""
    spiking = {"model.name": "spiking_mlp", "model.widths": [48, 32], "model.time_steps": 4}
    return fedhp.simulate(
        "quickstart", tmp_path_factory.mktemp("runs") / "run", show=False, **LITTLE, **spiking
    )


def test_a_fleet_prunes_a_spiking_network_within_its_budgets(run):
    assert run.summary["compression"] > 3
    clients = run.clients
    assert (clients.memory_measured_bytes <= clients.memory_predicted_bytes).all()
    assert (clients.memory_predicted_bytes <= clients.memory_budget_bytes).all()
    model, held_out = fedhp.load_model(run.folder), held_out_of(run.config.data)
    samples, labels = held_out.batch(np.arange(len(held_out)))
    right = (model(samples).argmax(1) == labels).float().mean().item()
    assert right == pytest.approx(run.summary["final_accuracy"], abs=1e-6)


# Energy


def test_spikes_and_their_energy_by_hand():
    """Currents 1.5 and 0.6 for two neurons, two steps: the first fires twice, the second at the second step.

    The first's spikes alone, times 1.2, fire a third neuron twice: 5 spikes. The first layer has 4 products,
    at each of two steps: 8 at 4.6 pJ are 36.8. Of the third neuron's 4 inputs in all steps 3 spike, and each
    is added once: 2.7 pJ. Its own 2 spikes are added for two classes each: 3.6 pJ. Without spikes 4, 2 and 2
    products, 36.8 pJ.
    """
    layers = [
        Layer("fc1", None, 1, 2, "fc1", 2),
        Layer("fc2", "fc1", 1, 2, "fc2", 1),
        Layer("head", "fc2", 1, 1, None, 2),
    ]
    module = network(layers, 2)
    with torch.no_grad():
        module.get_parameter("fc1.weight").copy_(torch.eye(2))
        module.get_parameter("spikes.fc2.weight").copy_(torch.tensor([[1.2, 0.0]]))
    found = spikes_of(module, [torch.tensor([[1.5, 0.6]]).expand(3, 2), torch.tensor([[1.5, 0.6]])])
    assert (found.time_steps, found.num_samples, found.spikes) == (2, 4, 5)
    assert [(one.products, one.rate, one.operations) for one in found.layers] == [
        (4, None, 8),
        (2, 0.75, 3),
        (2, 1, 4),
    ]
    assert [one.picojoules for one in found.layers] == pytest.approx([36.8, 2.7, 3.6])
    assert found.picojoules == pytest.approx(43.1)
    assert found.picojoules_kept == pytest.approx(43.1 - 18.4)
    assert found.picojoules_without == pytest.approx(36.8)


def test_convolutions_have_products_at_every_place():
    """9 * 2 * 16 on maps of 4x4, 9 * 2 * 3 * 4 on those of 2x2; then 3 * 4 and 4 * 3."""
    arch = architecture(ModelConfig("spiking_cnn", [2, 3, 4], 1), (1, 4, 4), 3)
    module = to_module(arch, unsettled(arch))
    found = spikes_of(module, [torch.randn(6, 1, 4, 4)])
    assert [one.products for one in found.layers] == [288, 216, 12, 12]
    assert all(one.rate is None or 0 <= one.rate <= 1 for one in found.layers)


def test_the_command_counts_the_spikes_of_a_run(run, tmp_path):
    told = CliRunner().invoke(app, ["spikes", str(run.folder), "--json"])
    assert told.exit_code == 0
    found = count_spikes(run.folder)
    assert json.loads(told.output) == json.loads(json.dumps(found.to_dict()))
    assert found.num_samples == len(held_out_of(run.config.data))
    shown = CliRunner().invoke(app, ["spikes", str(run.folder)]).output
    assert f"{found.picojoules / 1000:.2f} nJ" in shown
    plain = fedhp.simulate("quickstart", tmp_path / "mlp", show=False, **{**LITTLE, "rounds": 1})
    refused = CliRunner().invoke(app, ["spikes", str(plain.folder)])
    assert refused.exit_code == 2
    assert "mlp 128-64, which has no spikes to count" in " ".join(refused.output.split())


# What is refused


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.name=spiking_mlp", "train.masked_loss=true"], "train.masked_loss = true takes no spiking"),
        (["model.time_steps=4"], "model.time_steps = 4 has no effect with mlp, which is shown a sample once"),
        (["model.target=nets:build", "model.time_steps=4"], "has no effect with nets:build"),
        (["model.name=spiking_mlp", "model.time_steps=101"], "model.time_steps must be"),
    ],
)
def test_what_does_not_suit_is_refused_before_training(overrides, said):
    with pytest.raises(ScenarioError, match=said) as caught:
        load_scenario("quickstart", overrides)
    assert "\n" not in str(caught.value)


def test_another_network_does_not_inherit_time_steps(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: quickstart\nmodel: {name: spiking_mlp, time_steps: 4}\n", encoding="utf-8")
    assert load_scenario(own).model.time_steps == 4
    assert load_scenario(own, ["model.name=mlp"]).model.time_steps == 0


def test_features_without_height_are_refused_by_the_networks_name():
    with pytest.raises(ScenarioError, match=r"model 'spiking_cnn' takes images .* model.name=mlp"):
        architecture(ModelConfig("spiking_cnn", [4, 8]), (1, 1, 30), 3)


def test_a_network_that_is_too_large_is_refused_before_it_is_built():
    with pytest.raises(ScenarioError, match="the most that fedhp takes"):
        architecture(ModelConfig("spiking_mlp", [100_000, 100_000]), (1, 8, 8), 3)


def test_what_spiking_networks_need_is_said_where_it_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "fedhp.model.networks.spiking")
    monkeypatch.delattr("fedhp.model.networks.spiking")
    monkeypatch.setitem(sys.modules, "snntorch", None)
    with pytest.raises(
        MissingExtraError, match=r"model 'spiking_mlp' needs .* pip install 'fedhp\[spiking\]'"
    ):
        architecture(ModelConfig("spiking_mlp", [4]), (1, 4, 4), 3)
