"""Dropped elements of filters: against sums of dropped terms, and gradients through those that stay."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cut_short import outcome
from small_models import ARCHITECTURES, begun, random_shard, small_recipe, small_task, stepped
from torch import nn

import fedhp
from fedhp.costs.live_tensors import LiveTensors
from fedhp.errors import ScenarioError
from fedhp.model.building import initial_state, to_module
from fedhp.model.gradients import gradients
from fedhp.model.position_noise import PositionNoise
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.training.methods import methods_for
from fedhp.training.options import DropFilterConfig, TrainConfig
from fedhp.training.trainer import train_locally

ARCH = ARCHITECTURES["cnn-2-convs"]
SGD = TrainConfig(batch_size=8, learning_rate=0.1, momentum=0.0, device="cpu")


def recipe_of(arch=ARCH, rate: float = 0.3, plus: bool = False, train: TrainConfig = SGD):
    train = replace(train, dropfilter=DropFilterConfig(rate, plus))
    return replace(small_recipe(arch, train), kinds=methods_for([]))


def begun_on(arch=ARCH, **how: Any):
    recipe, shard = recipe_of(arch, **how), random_shard(arch.input_shape, arch.num_classes, 24)
    return begun(recipe, small_task(recipe, shard), shard)


def test_the_noise_has_the_mean_and_the_variance_of_sums_of_dropped_terms():
    """Against 20,000 draws of other elements at each position, each dropped with probability 0.3."""
    torch.manual_seed(0)
    layer, image, rate, number = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 4, 4), 0.3, 20_000
    patches = nn.functional.unfold(image, 3, padding=1)[0].T  # (positions, 2 * 9)
    terms = patches[:, None] * layer.weight.detach().flatten(1)  # (positions, outputs, 2 * 9)
    sums = torch.stack(
        [(terms * torch.empty_like(terms).bernoulli_(1 - rate) / (1 - rate)).sum(2) for _ in range(number)]
    )
    sums = (sums + layer.bias.detach()).mT.reshape(number, 3, 4, 4)
    source = torch.Generator().manual_seed(1)
    PositionNoise(layer, rate, lambda like: torch.empty_like(like).normal_(generator=source))
    with torch.no_grad():
        ours = layer.train()(image.expand(number, 2, 4, 4))
        whole = layer.eval()(image)[0]
    error = sums.std(0) / number**0.5
    assert ((sums.mean(0) - whole).abs() < 5 * error).all()
    assert ((ours.mean(0) - whole).abs() < 5 * error).all()
    torch.testing.assert_close(ours.std(0), sums.std(0), rtol=0.05, atol=1e-3)


def test_a_step_goes_through_the_elements_that_stay_alone():
    """Elements are multiplied by 0 or 1 / 0.7, and so are their gradients; the whole filter moves."""
    session = begun_on()
    before = {name: p.detach().clone() for name, p in session.run.module.named_parameters()}
    rate = session.before_step()
    during = {name: p.detach().clone() for name, p in session.run.module.named_parameters()}
    factors = {name: during[name] / before[name] for name in before if name.startswith("conv")}
    for name in ("conv1.weight", "conv2.weight"):
        assert ((factors[name] == 0) | ((factors[name] - 1 / 0.7).abs() < 1e-5)).all()
        assert 0 < (factors[name] == 0).sum() < factors[name].numel()
    assert (during["fc1.weight"] == before["fc1.weight"]).all()
    assert (during["conv1.bias"] == before["conv1.bias"]).all()
    module = to_module(ARCH, initial_state(ARCH, 3)).train()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(during[name])
    gradients(module, *session.run.batch(session.rows))
    session.run.methods[0]._num_steps = 0  # the same elements again
    for name, parameter in session.run.module.named_parameters():
        parameter.data.copy_(before[name])
    session.run.methods[0]._whole.clear()
    stepped(session)
    for name, parameter in session.run.module.named_parameters():
        grad = module.get_parameter(name).grad
        assert grad is not None
        if name in ("conv1.weight", "conv2.weight"):
            grad = grad * factors[name]
        torch.testing.assert_close(parameter.detach(), before[name] - rate * grad)


@pytest.mark.parametrize("plus", [False, True])
def test_elements_are_drawn_by_seed_client_and_step(plus):
    shard = random_shard(ARCH.input_shape, ARCH.num_classes, 24)
    recipe = recipe_of(plus=plus)

    def trained(recipe, client: int = 5) -> bytes:
        task = replace(small_task(recipe, shard), client=client)
        return train_locally(recipe, task, shard).state.weights["conv1.weight"].tobytes()

    torch.manual_seed(1)
    first = trained(recipe)
    torch.manual_seed(2)
    assert trained(recipe) == first
    plain = replace(recipe, train=SGD)
    assert trained(plain) != first
    assert trained(replace(recipe, seed=4)) != trained(replace(plain, seed=4))


def test_the_noise_is_taken_off_the_network_again():
    session = begun_on(plus=True)
    assert session.run.module.get_submodule("conv1")._forward_hooks
    for method in session.run.methods:
        method.end(session.run)
    assert not session.run.module.get_submodule("conv1")._forward_hooks


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("case", ["cnn-1-conv", "cnn-2-convs", "resnet20", "conv1d", "lenet5"])
@pytest.mark.parametrize("batch", [4, 32])
def test_memory_is_counted(case, plus, batch):
    arch = ARCHITECTURES[case]
    train = replace(SGD, batch_size=batch, momentum=0.9)
    recipe = recipe_of(arch, plus=plus, train=train)
    shard = random_shard(arch.input_shape, arch.num_classes, batch)
    session = begun(recipe, small_task(recipe, shard), shard)
    stepped(session)
    session.epoch.done = 0
    with LiveTensors(session.run.held()) as live:
        stepped(session)
    said = session.run.memory.training_bytes(session.run.structure.counts, batch)
    averages = 2 * 4 * session.run.structure.num_units()  # counted for every training; here there are none
    assert 0.99 * (live.peak + averages) <= said
    assert said <= 1.35 * (live.peak + averages)


SMALL: dict[str, Any] = {
    "model": {"name": "cnn", "widths": [8, 12, 16]},
    "data.max_train": 300,
    "fleet.num_clients": 4,
    "fleet.classes": [{"name": "any", "memory": "1MiB"}],
    "train.dropfilter.rate": 0.2,
}


@pytest.mark.parametrize("plus", [False, True])
def test_a_fleet_does_not_depend_on_workers_and_keeps_to_its_memory(tmp_path, plus):
    values = {**SMALL, "rounds": 2, "train.dropfilter.plus": plus}
    runs = [
        fedhp.simulate("quickstart", tmp_path / str(n), show=False, **values, **{"simulation.num_workers": n})
        for n in (0, 2)
    ]
    assert outcome(runs[0].folder) == outcome(runs[1].folder)
    rows = runs[0].clients
    assert (rows["memory_measured_bytes"] <= rows["memory_predicted_bytes"]).all()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (
            {"train.dropfilter.rate": 0.1},
            r"train\.dropfilter\.rate = 0\.1 drops elements .* has no convolution",
        ),
        ({"train.dropfilter.rate": 1.0}, r"train\.dropfilter\.rate must be .*below 1"),
        ({"train.dropfilter.plus": True}, r"has no effect without train\.dropfilter\.rate"),
    ],
)
def test_what_does_not_fit_is_refused(values, match):
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", values=values), simulated=True)


def test_the_part_that_a_step_trains_is_dropped_too():
    """Ordered dropout's parts are views of the filters."""
    recipe = replace(recipe_of(), kinds=methods_for(["ordered_dropout"]), levels=(0.5, 1.0))
    shard = random_shard(ARCH.input_shape, ARCH.num_classes, 24)
    update = train_locally(recipe, small_task(recipe, shard), shard)
    assert np.isfinite(update.state.weights["conv1.weight"]).all()
