"""Optimisers against PyTorch's plain ones, the learning-rate schedules, and FedProx's pull by autograd."""

import copy
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import begun, fancy, random_shard, small_recipe, small_task, stepped, watched
from torch import nn

from fedhp.errors import BudgetError, ScenarioError
from fedhp.model.building import to_module
from fedhp.model.noise import NoiseScale
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.pruning.contributions import Contributions
from fedhp.pruning.options import PruneConfig
from fedhp.seeds import generator
from fedhp.training.batches import MemoryConfig
from fedhp.training.methods import clipping, fedprox
from fedhp.training.methods.clipping import clip_gradients
from fedhp.training.methods.fedprox import keep_received, pull_back
from fedhp.training.optimizers import allocate_state, descend, state_tensors, unallocated
from fedhp.training.options import LR_SCHEDULES, OPTIMIZERS, TrainConfig
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally

PLAIN = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
}


def config_of(name: str) -> TrainConfig:
    momentum = 0.8 if name == "sgd-momentum" else 0.0
    optimizer = name.split("-")[0]
    return TrainConfig(learning_rate=0.1, optimizer=optimizer, momentum=momentum, weight_decay=0.01)


def test_every_optimiser_is_compared():
    assert {name.split("-")[0] for name in PLAIN} == set(OPTIMIZERS)


def twins(name: str, config: TrainConfig):
    """The same layer twice: with our optimiser, and with PyTorch's plain one."""
    ours = nn.Linear(4, 3)
    theirs = copy.deepcopy(ours)
    optimizer = unallocated(ours.parameters(), config)
    allocate_state(optimizer, config)
    return ours, optimizer, theirs, PLAIN[name](theirs.parameters())


@pytest.mark.parametrize("name", PLAIN)
def test_steps_are_those_of_the_plain_optimiser(name):
    """Zeros allocated ahead are what PyTorch starts from, so that the first step is the same too."""
    config = config_of(name)
    ours, optimizer, theirs, plain = twins(name, config)
    for seed in range(4):
        inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        for module, stepper in ((ours, optimizer), (theirs, plain)):
            module.zero_grad()
            module(inputs).square().sum().backward()
            stepper.step()
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("shape", [(58, 377), (66,), (6, 3, 5, 5)])
def test_rows_at_rates_of_their_own_move_as_each_does_alone(shape):
    """To the last bit: who has no neighbour at another rate takes another call."""
    stream = torch.Generator().manual_seed(0)
    rows, directions = torch.randn(3, *shape, generator=stream), torch.randn(3, *shape, generator=stream)
    alone = rows.clone()
    rates = [0.05, 0.0497, 0.012]
    descend([rows], [directions], rates)
    for row, direction, rate in zip(alone, directions, rates, strict=True):
        descend([row[None]], [direction[None]], [rate])
    assert torch.equal(rows, alone)


@pytest.mark.parametrize(("name", "slots"), [("sgd", 0), ("sgd-momentum", 1), ("adam", 2), ("adamw", 2)])
def test_state_is_allocated_once_and_counted(name, slots):
    config = config_of(name)
    assert config.state_slots == slots
    module = torch.nn.Linear(4, 3)
    optimizer = unallocated(module.parameters(), config)
    allocate_state(optimizer, config)
    shaped = [tensor for tensor in state_tensors(optimizer) if tensor.dim()]
    assert sorted(tuple(t.shape) for t in shaped) == sorted([(3, 4), (3,)] * slots)
    before = {id(tensor) for tensor in shaped}
    module(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert {id(tensor) for tensor in state_tensors(optimizer) if tensor.dim()} == before


@pytest.mark.parametrize("progress", [0, 0.25, 0.5, 1])
def test_learning_rates_over_the_training(progress):
    """The cosine halves at half time: (1 + cos(pi/2)) / 2; at a quarter it is (1 + sqrt(1/2)) / 2.

    The step comes with the first round of the second half, as a milestone at round 100 of 200 does.
    """
    cosine = {0: 1, 0.25: (1 + math.sqrt(0.5)) / 2, 0.5: 0.5, 1: 0}
    assert LR_SCHEDULES["cosine"](progress) == pytest.approx(cosine[progress])
    assert LR_SCHEDULES["constant"](progress) == 1
    assert LR_SCHEDULES["step"](progress) == (1 if progress < 0.5 else 0.1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer": "lion"}, "train.optimizer must be one of sgd, adam, adamw, got 'lion'"),
        ({"lr_schedule": "stairs"}, "train.lr_schedule"),
        ({"device": "tpu"}, "train.device"),
        ({"batch_size": 0}, "train.batch_size"),
        ({"local_epochs": 0}, "train.local_epochs"),
        ({"learning_rate": 0.0}, "train.learning_rate"),
        ({"learning_rate": float("nan")}, "train.learning_rate"),
        ({"momentum": 1.0}, "train.momentum"),
        ({"weight_decay": -1.0}, "train.weight_decay"),
        ({"proximal_mu": -1.0}, "train.proximal_mu must be finite and 0 or more, got -1.0"),
        ({"proximal_mu": math.inf}, "train.proximal_mu"),
        ({"proximal_mu": math.nan}, "train.proximal_mu"),
        ({"clip_norm": -0.5}, "train.clip_norm must be finite and 0 or more, got -0.5; 0 does not clip"),
        ({"clip_norm": math.inf}, "train.clip_norm"),
        ({"clip_norm": math.nan}, "train.clip_norm"),
    ],
)
def test_impossible_settings_are_refused(values, said):
    with pytest.raises(ScenarioError, match=said):
        TrainConfig(**values)


# --- the proximal term -----------------------------------------------------------------------

ARCH = architecture(ModelConfig("mlp", [40, 20]), (1, 6, 6), 5)
SHARD = random_shard((1, 6, 6), 5, 120)
PRUNE = PruneConfig(target_compression=4, start=0.1, end=0.7, cuts=5)
MU = 0.3


def proximal(name: str = "sgd-momentum", mu: float = MU, prune: PruneConfig | None = None) -> Recipe:
    train = replace(config_of(name), learning_rate=0.02, local_epochs=2, batch_size=8, device="cpu")
    return small_recipe(ARCH, replace(train, lr_schedule="constant", proximal_mu=mu), prune)


def pulled(module: nn.Module, received: list[torch.Tensor]) -> torch.Tensor:
    """The proximal term as the paper writes it."""
    pairs = zip(module.parameters(), received, strict=True)
    return MU / 2 * torch.stack([(now - then).square().sum() for now, then in pairs]).sum()


@pytest.mark.parametrize("name", PLAIN)
def test_the_pull_is_the_gradient_of_the_proximal_term(name):
    """Steps of the plain optimiser on the loss with the penalty in it, by autograd."""
    config = replace(config_of(name), proximal_mu=MU)
    ours, optimizer, theirs, plain = twins(name, config)
    keep_received(optimizer)
    received = [parameter.detach().clone() for parameter in ours.parameters()]
    for seed in range(4):
        inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        for module in (ours, theirs):
            module.zero_grad()
            loss = module(inputs).square().sum()
            (loss + pulled(module, received) if module is theirs else loss).backward()
        pull_back(optimizer, MU)
        for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(our.grad, their.grad)
        optimizer.step()
        plain.step()
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their)


def plainly_trained(name, recipe, task, clip) -> nn.Module:
    """Returns the module that a plain loop trains, with the penalty in its loss; clips before each update."""
    module = to_module(ARCH, task.state)
    received = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = PLAIN[name](module.parameters())
    optimizer.param_groups[0]["lr"] = 0.02
    order = generator(recipe.seed, "batches", 1, 5)
    for rows in (part for _ in range(2) for part in np.split(order.permutation(120), 15)):
        images, labels = SHARD.batch(rows)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(module(images), labels) + pulled(module, received)).backward()
        clip(module)
        optimizer.step()
    return module


@pytest.mark.parametrize("name", PLAIN)
def test_a_client_trains_as_a_plain_loop_with_the_penalty_does(name):
    recipe = proximal(name)
    task = small_task(recipe, SHARD)
    update = train_locally(recipe, task, SHARD)
    module = plainly_trained(name, recipe, task, lambda module: None)
    for key, parameter in module.named_parameters():
        np.testing.assert_allclose(update.state.weights[key], parameter.detach(), atol=1e-4)
    assert set(update.state.weights) == set(ARCH.layout.shapes)


def test_a_stronger_pull_stays_nearer_to_what_was_received():
    def moved(mu: float) -> float:
        recipe = proximal(mu=mu)
        task = small_task(recipe, SHARD)
        update = train_locally(recipe, task, SHARD)
        squares = [np.square(w - task.state.weights[name]).sum() for name, w in update.state.weights.items()]
        return float(sum(squares))

    assert moved(3.0) < moved(0.3) < moved(0.0)


def test_after_a_cut_the_pull_is_towards_what_is_left_of_the_received_weights():
    recipe = proximal(prune=PRUNE)
    task = small_task(recipe, SHARD)
    _, run = watched(recipe, task, SHARD)
    assert run.structure != task.state.structure
    kept = {group: run.structure.kept(group) for group in ARCH.layout.widths}
    wanted = fancy(dict(task.state.weights), kept)
    for name, parameter in run.module.named_parameters():
        received = run.optimizer.state[parameter]["received"]
        np.testing.assert_allclose(received, wanted[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", PLAIN)
def test_what_has_not_moved_is_not_pulled(name):
    """To the bit: Adam would make a whole step of a gradient that is nothing but rounding."""
    config = replace(config_of(name), proximal_mu=MU, weight_decay=0.0)
    module = nn.Linear(40, 30)
    before = copy.deepcopy(module)
    optimizer = unallocated(module.parameters(), config)
    allocate_state(optimizer, config)
    keep_received(optimizer)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pull_back(optimizer, MU)
    optimizer.step()
    for now, then in zip(module.parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)


def test_units_and_noise_are_judged_by_the_loss_alone(monkeypatch):
    calls = []
    for kind in (Contributions, NoiseScale):
        monkeypatch.setattr(kind, "observe", lambda self, kind=kind: calls.append(kind.__name__))
    monkeypatch.setattr(fedprox, "pull_back", lambda optimizer, mu: calls.append("pull"))
    monkeypatch.setattr(clipping, "clip_gradients", lambda optimizer, norm: calls.append("clip"))
    recipe = replace(proximal(prune=replace(PRUNE, start=0.9, end=1.0)), memory=MemoryConfig("noise"))
    recipe = replace(recipe, train=replace(recipe.train, clip_norm=1.0))
    session = begun(recipe, small_task(recipe, SHARD), SHARD)
    stepped(session)
    assert calls == ["NoiseScale", "Contributions", "pull", "clip"]


@pytest.mark.parametrize("name", PLAIN)
def test_the_budget_counts_the_received_weights(name, monkeypatch):
    """One more tensor per parameter, in steps and in cuts; nothing where nothing pulls."""
    recipe, without = proximal(name, prune=PRUNE), proximal(name, mu=0.0, prune=PRUNE)
    said, plain = (r.memory_model(1).training_bytes(ARCH.layout.widths, 8) for r in (recipe, without))
    assert said - plain == 4 * ARCH.layout.num_parameters(ARCH.layout.widths)
    monkeypatch.setattr("fedhp.training.meter.PEAKS", {})
    for one, budget in ((recipe, said), (without, plain)):
        update, run = watched(one, small_task(one, SHARD, budget), SHARD)
        assert update.state.structure != update.assigned
        assert update.statistics.memory_predicted_bytes == budget
        assert 0.95 * budget <= update.statistics.memory_measured_bytes <= budget
        assert ("received" in run.optimizer.state[run.module.get_parameter("head.bias")]) == (one is recipe)
    least = without.memory_model(1).training_bytes(ARCH.layout.widths, 1)
    train_locally(without, small_task(without, SHARD, least), SHARD)
    with pytest.raises(BudgetError, match=f"the budget is {least:,} bytes"):
        train_locally(recipe, small_task(recipe, SHARD, least), SHARD)


# --- clipped gradients -----------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "factor"), [(6.5, 0.5), (13.5, 1.0)])
def test_gradients_are_scaled_by_the_norm_of_all_of_them_by_hand(largest, factor):
    """3, 4 and 12 over two parameters are of norm 13: twice 6.5, below 13.5. One without is left alone."""
    first, second, idle = (nn.Parameter(torch.zeros(n)) for n in (2, 1, 1))
    first.grad, second.grad = torch.tensor([3.0, -4.0]), torch.tensor([12.0])
    clip_gradients(torch.optim.SGD([first, second, idle], lr=0.1), largest)
    assert first.grad.tolist() == pytest.approx([3 * factor, -4 * factor])
    assert second.grad.tolist() == pytest.approx([12 * factor])
    assert idle.grad is None


@pytest.mark.parametrize("name", PLAIN)
def test_a_client_clips_as_a_plain_loop_with_the_penalty_does(name):
    """The pull is part of what is clipped, weight decay is not; a tenth is below all norms here."""
    recipe = proximal(name)
    recipe = replace(recipe, train=replace(recipe.train, clip_norm=0.1))
    task = small_task(recipe, SHARD)
    update = train_locally(recipe, task, SHARD)

    def clip(module: nn.Module) -> None:
        length = math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters()))
        assert length > 0.1
        for parameter in module.parameters():
            parameter.grad *= 0.1 / length

    module = plainly_trained(name, recipe, task, clip)
    for key, parameter in module.named_parameters():
        np.testing.assert_allclose(update.state.weights[key], parameter.detach(), atol=1e-4)


def test_a_rate_that_diverges_learns_with_clipped_gradients():
    """Without a limit the loss ends above that of guessing, ln 5."""

    def loss(limit: float) -> float:
        train = TrainConfig(learning_rate=2.0, local_epochs=4, batch_size=8, clip_norm=limit, device="cpu")
        recipe = small_recipe(ARCH, train)
        return train_locally(recipe, small_task(recipe, SHARD), SHARD).statistics.train_loss

    assert loss(0.1) < math.log(5) < loss(0.0)


@pytest.mark.parametrize("name", PLAIN)
def test_the_budget_holds_with_clipped_gradients(name, monkeypatch):
    """Eleven layers of one unit, so that the norms of their gradients weigh; to the byte."""
    monkeypatch.setattr("fedhp.training.meter.PEAKS", {})
    arch = architecture(ModelConfig("mlp", [2] * 11, 1, prune_inputs=False), (1, 1, 1), 2)
    train = replace(config_of(name), clip_norm=0.5, local_epochs=2, batch_size=2, device="cpu")
    recipe, shard = small_recipe(arch, train), random_shard((1, 1, 1), 2, 8)
    need = recipe.memory_model(1).training_bytes(arch.layout.widths, 1)
    assert (
        train_locally(recipe, small_task(recipe, shard, need), shard).statistics.memory_measured_bytes <= need
    )


def test_training_by_sgd_loads_no_compiler():
    """A device's process would take a second and 65 MiB for what it never uses (torch 2.13)."""
    code = (
        "import sys; from small_models import ARCHITECTURES, random_shard, small_recipe, small_task; "
        "from fedhp.pruning.schedule import PruneConfig; from fedhp.training.trainer import train_locally; "
        "arch = ARCHITECTURES['resnet20']; shard = random_shard(arch.input_shape, arch.num_classes, 24); "
        "recipe = small_recipe(arch, prune=PruneConfig(target_compression=2, start=0, end=0.5)); "
        "train_locally(recipe, small_task(recipe, shard), shard); "
        "assert not {'torch._dynamo', 'sympy'} & {*sys.modules}"
    )
    folder = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=folder)
