"""Penalties' gradients against autograd, and what they keep against a plain optimiser and the budget."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import (
    ARCHITECTURES,
    CHAINS,
    normalised_net,
    random_shard,
    random_structure,
    small_recipe,
    small_task,
)
from torch import nn

from fedhp.costs.live_tensors import LiveTensors
from fedhp.errors import BudgetError, ScenarioError
from fedhp.model.building import initial_state, to_module
from fedhp.model.layout import Layout
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.pruning.contributions import Contributions
from fedhp.pruning.cutting import cut
from fedhp.pruning.evidence import evidence
from fedhp.pruning.options import PruneConfig
from fedhp.pruning.regularizers import REGULARIZERS, allocate, check_regularizer
from fedhp.training.optimizers import state_tensors
from fedhp.training.options import TrainConfig
from fedhp.training.stack import Stack
from fedhp.training.trainer import train_locally


def gradients(module: nn.Module, layout: Layout, name: str, strength: float) -> dict[str, torch.Tensor]:
    """Returns what a regulariser adds to gradients that were zero."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    allocate(name, optimizer)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    parameters = dict(module.named_parameters())
    seen = evidence(layout, parameters, layout.widths, np.random.default_rng())
    REGULARIZERS[name].push(seen.values(), optimizer, strength)
    return {key: parameter.grad.clone() for key, parameter in parameters.items()}


def by_autograd(module: nn.Module, penalty: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    penalty.backward()
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    return {name: zeros[name] if p.grad is None else p.grad for name, p in module.named_parameters()}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CHAINS)
def test_group_lasso(case):
    """Of layers in a row, a unit is a row of its layer's weight with the bias; an input, a column of fc1."""
    arch = ARCHITECTURES[case]
    module = to_module(arch, initial_state(arch, 2))
    layers = dict(module.named_children())
    penalty = torch.zeros(())
    for group, width in arch.layout.widths.items():
        if group == "inputs":
            units = layers["fc1"].weight.T
        else:
            units = torch.cat([p.reshape(width, -1) for p in layers[group].parameters()], dim=1)
        penalty = penalty + units.shape[1] ** 0.5 * units.norm(dim=1).sum()
    assert_equal(gradients(module, arch.layout, "group_lasso", 0.3), by_autograd(module, 0.3 * penalty))


def test_group_lasso_leaves_a_unit_of_zeros_alone():
    module, layout = normalised_net()
    for name in ("conv", "norm"):
        for parameter in module.get_submodule(name).parameters():
            parameter.data[2] = 0
    found = gradients(module, layout, "group_lasso", 1.0)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert not any(found[name][2].any() for name in ("conv.weight", "conv.bias", "norm.weight"))


def test_slimming_presses_on_the_scales_alone():
    module, layout = normalised_net()
    module.get_parameter("norm.weight").data = torch.tensor([2.0, -1.0, 0.0, 0.5, -0.1, 1.0])
    found = gradients(module, layout, "slimming", 0.25)
    assert found.pop("norm.weight").tolist() == [0.25, -0.25, 0.0, 0.25, -0.25, 0.25]
    assert not any(gradient.any() for gradient in found.values())


def test_halo_presses_less_on_what_it_learnt_to_leave_alone():
    """Against autograd through the penalty and a plain SGD on the lambdas, over three steps."""
    module, layout = normalised_net()
    weights = {name: p for name, p in module.named_parameters() if p.dim() > 1}
    lambdas = {name: nn.Parameter(torch.ones_like(p)) for name, p in weights.items()}
    options = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01}
    plain = torch.optim.SGD(lambdas.values(), **options)
    optimizer = torch.optim.SGD(module.parameters(), **options)
    allocate("halo", optimizer)
    seen = evidence(layout, dict(module.named_parameters()), layout.widths, np.random.default_rng())
    for _ in range(3):
        plain.zero_grad()
        penalty = sum((w.abs() / lambdas[n] ** 2 + lambdas[n].abs()).sum() for n, w in weights.items())
        wanted = by_autograd(module, 0.3 * penalty)
        wanted = {name: gradient.clone() for name, gradient in wanted.items()}
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        REGULARIZERS["halo"].push(seen.values(), optimizer, 0.3)
        assert_equal({n: p.grad for n, p in module.named_parameters()}, wanted)
        plain.step()
        for name, weight in weights.items():
            torch.testing.assert_close(optimizer.state[weight]["halo_lambda"], lambdas[name].detach())
    assert all((values > 0.1).all() for values in lambdas.values())


def test_halos_penalties_stay_above_a_tenth():
    module, layout = normalised_net()
    nn.init.zeros_(module.get_parameter("head.weight"))
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0)
    allocate("halo", optimizer)
    seen = evidence(layout, dict(module.named_parameters()), layout.widths, np.random.default_rng())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    REGULARIZERS["halo"].push(seen.values(), optimizer, 1.0)
    assert optimizer.state[module.get_parameter("head.weight")]["halo_lambda"].unique() == torch.tensor(0.1)


# --- in training -----------------------------------------------------------------------------

ARCH = architecture(ModelConfig("mlp", [40, 20]), (1, 6, 6), 5)
SHARD = random_shard((1, 6, 6), 5, 120)
TRAIN = TrainConfig(local_epochs=2, batch_size=8, learning_rate=0.05, device="cpu")
PRUNE = PruneConfig(target_compression=4, start=0.1, end=0.7, cuts=5)


def regularized(name: str, strength: float = 1e-3, **prune: float):
    return small_recipe(ARCH, TRAIN, replace(PRUNE, regularizer=name, regularizer_strength=strength, **prune))


@pytest.mark.parametrize("name", ["group_lasso", "halo"])
def test_a_penalty_shrinks_the_weights(name):
    def size(recipe) -> float:
        update = train_locally(recipe, small_task(recipe, SHARD), SHARD)
        return sum(float(np.abs(array).sum()) for array in update.state.weights.values())

    assert size(regularized(name, 0.01)) < 0.9 * size(regularized("none"))


def test_a_penalty_ends_with_the_cutting(monkeypatch):
    """At 30 steps of which the last cut follows the 21st: 21 pushes, and none where nothing is ever cut."""
    pushed = []
    spy = replace(REGULARIZERS["slimming"], push=lambda groups, optimizer, strength: pushed.append(strength))
    monkeypatch.setitem(REGULARIZERS, "slimming", spy)
    recipe = regularized("slimming", 0.5)
    train_locally(recipe, small_task(recipe, SHARD), SHARD)
    assert pushed == [0.5] * 21
    pushed.clear()
    dense = recipe.without_pruning()
    train_locally(dense, small_task(dense, SHARD), SHARD)
    assert pushed == []


def test_scores_are_of_the_loss_alone(monkeypatch):
    """A criterion takes its gradients before the regulariser adds to them."""
    calls = []
    observe = Contributions.observe
    monkeypatch.setattr(Contributions, "observe", lambda self: (calls.append("observe"), observe(self)))
    spy = replace(REGULARIZERS["halo"], push=lambda *args: calls.append("push"))
    monkeypatch.setitem(REGULARIZERS, "halo", spy)
    recipe = regularized("halo")
    train_locally(recipe, small_task(recipe, SHARD), SHARD)
    assert calls == ["observe", "push"] * 21


def test_what_halo_keeps_is_cut_with_the_units():
    arch = ARCHITECTURES["cnn-2-convs"]
    module = to_module(arch, initial_state(arch, 0))
    optimizer = torch.optim.SGD(module.parameters())
    allocate("halo", optimizer)
    layout, sub = arch.layout, random_structure(arch.layout, 2)
    cut(module, optimizer, layout, layout.full(), sub)
    for name, parameter in module.named_parameters():
        assert parameter.shape == layout.shape(name, sub.counts)
        assert {tuple(kept.shape) for kept in optimizer.state[parameter].values()} == {parameter.shape}


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_budget_counts_what_a_regulariser_keeps(name, monkeypatch):
    """Three more tensors per parameter for HALO, none for others; and the steps take what the model says."""
    recipe = regularized(name)
    said = recipe.memory_model(1).training_bytes(ARCH.layout.widths, 8)
    without = regularized("none").memory_model(1).training_bytes(ARCH.layout.widths, 8)
    slots = 3 if name == "halo" else 0
    assert said - without == slots * 4 * ARCH.layout.num_parameters(ARCH.layout.widths)
    peaks = []
    step = Stack.step

    def measured(stack, members, rates):
        (run,) = (member.run for member in members)
        with LiveTensors([*run.module.parameters(), *state_tensors(run.optimizer)]) as meter:
            result = step(stack, members, rates)
        peaks.append(meter.peak)
        return result

    monkeypatch.setattr(Stack, "step", measured)
    monkeypatch.setattr("fedhp.training.meter.PEAKS", {})
    update = train_locally(recipe, small_task(recipe, SHARD, said), SHARD)
    assert 0.95 * said <= max(peaks) <= said
    assert 0.95 * said <= update.statistics.memory_measured_bytes <= said


def test_a_budget_that_halos_memory_breaks_is_refused_by_the_device():
    budget = regularized("none").memory_model(1).training_bytes(ARCH.layout.widths, 8)
    plain, recipe = regularized("none"), regularized("halo")
    train_locally(plain, small_task(plain, SHARD, budget), SHARD)
    with pytest.raises(BudgetError, match=f"the budget is {budget:,} bytes"):
        train_locally(recipe, small_task(recipe, SHARD, budget), SHARD)


# --- refusals --------------------------------------------------------------------------------


def test_slimming_is_refused_where_nothing_is_normalised():
    check_regularizer("slimming", normalised_net()[1])
    with pytest.raises(ScenarioError, match=r"slimming presses on .* none in its groups inputs, fc1, fc2;"):
        check_regularizer("slimming", ARCH.layout)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("inf"), float("nan")])
def test_a_strength_that_is_none_is_refused(strength):
    with pytest.raises(ScenarioError, match=r"prune.regularizer_strength must be finite and above 0"):
        PruneConfig(regularizer="halo", regularizer_strength=strength)
