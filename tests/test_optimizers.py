"""Optimisers against PyTorch's plain ones, and the learning-rate schedules."""

import copy
import math

import pytest
import torch

from fedhp.errors import ScenarioError
from fedhp.optimizers import LR_SCHEDULES, OPTIMIZERS, TrainConfig, allocate_state, state_tensors

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


@pytest.mark.parametrize("name", PLAIN)
def test_steps_are_those_of_the_plain_optimiser(name):
    """Zeros allocated ahead are what PyTorch starts from, so that the first step is the same too."""
    config = config_of(name)
    ours = torch.nn.Linear(4, 3)
    theirs = copy.deepcopy(ours)
    optimizer = OPTIMIZERS[config.optimizer].make(ours.parameters(), config)
    allocate_state(optimizer, config)
    plain = PLAIN[name](theirs.parameters())
    for seed in range(4):
        inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        for module, stepper in ((ours, optimizer), (theirs, plain)):
            stepper.zero_grad()
            module(inputs).square().sum().backward()
            stepper.step()
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize(("name", "slots"), [("sgd", 0), ("sgd-momentum", 1), ("adam", 2), ("adamw", 2)])
def test_state_is_allocated_once_and_counted(name, slots):
    config = config_of(name)
    assert config.state_slots == slots
    module = torch.nn.Linear(4, 3)
    optimizer = OPTIMIZERS[config.optimizer].make(module.parameters(), config)
    allocate_state(optimizer, config)
    shaped = [tensor for tensor in state_tensors(optimizer) if tensor.dim()]
    assert sorted(tuple(t.shape) for t in shaped) == sorted([(3, 4), (3,)] * slots)
    before = {id(tensor) for tensor in shaped}
    module(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert {id(tensor) for tensor in state_tensors(optimizer) if tensor.dim()} == before


@pytest.mark.parametrize("progress", [0, 0.25, 0.5, 1])
def test_learning_rates_over_the_training(progress):
    """The cosine halves at half time: (1 + cos(pi/2)) / 2; at a quarter it is (1 + sqrt(1/2)) / 2."""
    cosine = {0: 1, 0.25: (1 + math.sqrt(0.5)) / 2, 0.5: 0.5, 1: 0}
    assert LR_SCHEDULES["cosine"](progress) == pytest.approx(cosine[progress])
    assert LR_SCHEDULES["constant"](progress) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer": "lion"}, "train.optimizer must be one of sgd, adam, adamw, got 'lion'"),
        ({"lr_schedule": "step"}, "train.lr_schedule"),
        ({"device": "tpu"}, "train.device"),
        ({"batch_size": 0}, "train.batch_size"),
        ({"local_epochs": 0}, "train.local_epochs"),
        ({"learning_rate": 0.0}, "train.learning_rate"),
        ({"learning_rate": float("nan")}, "train.learning_rate"),
        ({"momentum": 1.0}, "train.momentum"),
        ({"weight_decay": -1.0}, "train.weight_decay"),
    ],
)
def test_impossible_settings_are_refused(values, said):
    with pytest.raises(ScenarioError, match=said):
        TrainConfig(**values)
