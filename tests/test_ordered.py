"""Ordered dropout against training the narrow network by itself."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_shard, small_recipe, small_task
from torch import nn

from fedhp.aggregation.submodels import first
from fedhp.errors import ScenarioError
from fedhp.model.building import initial_state, to_module
from fedhp.model.gradients import gradients
from fedhp.model.modules import thin_before_convolutions
from fedhp.model.shrinking import at_level
from fedhp.training.alone import training_step
from fedhp.training.batches import MemoryConfig
from fedhp.training.methods import OrderedDropout, methods_for
from fedhp.training.methods.fedprox import keep_received, pull_back
from fedhp.training.optimizers import allocate_state, unallocated
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally
from fedhp.training.widths import Widths

ARCH = {case: ARCHITECTURES[case] for case in ("mlp-whole-inputs", "cnn-2-convs", "resnet20-group")}


def batches(arch, number: int = 3):
    stream = torch.Generator().manual_seed(3)
    for _ in range(number):
        images = torch.randn(6, *arch.input_shape, generator=stream)
        yield images, torch.randint(arch.num_classes, (6,), generator=stream)


def trainer_of(arch, state, config):
    module = to_module(arch, state)
    optimizer = unallocated(module.parameters(), config)
    allocate_state(optimizer, config)
    return module, optimizer


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("arch", ARCH.values(), ids=ARCH)
def test_a_narrow_step_is_that_of_the_narrow_network_and_touches_nothing_else(arch, momentum, weight_decay):
    """The part, trained inside the whole, against the same part cut out and trained alone by torch's SGD."""
    config = TrainConfig(momentum=momentum, weight_decay=weight_decay, learning_rate=0.1)
    whole, counts = initial_state(arch, 1), at_level(arch.layout, 0.5)
    module, optimizer = trainer_of(arch, whole, config)
    before = copy.deepcopy(module.state_dict())
    part = first(arch.layout.widths, counts)
    alone = to_module(arch, whole.cut(arch.layout, part))
    thin_before_convolutions(alone, arch.layout)
    sgd = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    ordered = Widths(arch, module, optimizer, arch.layout.widths, [0.5], np.random.default_rng(0))
    narrow = ordered._parts[0]
    for images, labels in batches(arch):
        training_step(gradients, *narrow, images, labels)
        sgd.zero_grad()
        nn.functional.cross_entropy(alone(images), labels).backward()
        sgd.step()
    for name, trained in alone.named_parameters():
        parameter = module.get_parameter(name)
        inside = tuple(slice(size) for size in trained.shape)
        torch.testing.assert_close(parameter[inside], trained, rtol=1e-4, atol=1e-6)
        untouched = parameter.detach().clone()
        untouched[inside] = before[name][inside]
        assert torch.equal(untouched, before[name])


def test_every_level_up_to_the_devices_own_is_drawn_and_none_above():
    """Of the levels .2, .5, 1 a device at half the width draws .2 and .5."""
    arch = ARCH["mlp-whole-inputs"]
    half = at_level(arch.layout, 0.5)
    state = initial_state(arch, 0).cut(arch.layout, first(arch.layout.widths, half))
    module, optimizer = trainer_of(arch, state, TrainConfig())
    ordered = Widths(arch, module, optimizer, half, [1.0, 0.2, 0.5], np.random.default_rng(0))
    drawn = [len(next(ordered.draw()[0].parameters())) for _ in range(200)]
    assert set(drawn) == {2, 4}
    assert 60 < drawn.count(2) < 140


def test_parts_follow_the_learning_rate_of_the_whole():
    arch = ARCH["mlp-whole-inputs"]
    module, optimizer = trainer_of(arch, initial_state(arch, 0), TrainConfig())
    ordered = Widths(arch, module, optimizer, arch.layout.widths, [0.5], np.random.default_rng(0))
    optimizer.param_groups[0]["lr"] = 0.123
    assert {ordered.draw()[1].param_groups[0]["lr"] for _ in range(20)} == {0.123}


@pytest.mark.parametrize("arch", ARCH.values(), ids=ARCH)
def test_a_client_that_trains_so_keeps_to_the_prediction(arch):
    plain = small_recipe(arch).without_pruning()
    shard = random_shard(arch.input_shape, arch.num_classes, 40)
    whole = train_locally(plain, small_task(plain, shard), shard)
    ordered = replace(plain, kinds=methods_for([OrderedDropout.name]), levels=(0.4, 0.7, 1.0))
    update = train_locally(ordered, small_task(ordered, shard), shard)
    assert update.statistics.memory_measured_bytes <= update.statistics.memory_predicted_bytes
    assert update.statistics.memory_predicted_bytes == whole.statistics.memory_predicted_bytes
    assert update.state.structure == whole.state.structure
    assert any(
        (update.state.weights[name] != whole.state.weights[name]).any() for name in whole.state.weights
    )


def test_the_pull_of_fedprox_acts_on_the_part_that_a_step_trains():
    """Two away from the received weights, at a strength of a half, it is one."""
    arch, config = ARCH["mlp-whole-inputs"], TrainConfig(proximal_mu=0.5)
    module, optimizer = trainer_of(arch, initial_state(arch, 1), config)
    keep_received(optimizer)
    ordered = Widths(arch, module, optimizer, arch.layout.widths, [0.5], np.random.default_rng(0))
    part, sgd = ordered._parts[0]
    for parameter in part.parameters():
        parameter.data.add_(2.0)
        parameter.grad = torch.zeros_like(parameter)
    pull_back(sgd, config.proximal_mu)
    for parameter in part.parameters():
        torch.testing.assert_close(parameter.grad, torch.ones_like(parameter))


@pytest.mark.parametrize(
    ("case", "train", "match"),
    [
        ("vgg11", TrainConfig(), "model.norm = group"),
        ("mlp-whole-inputs", TrainConfig(optimizer="adam"), "train.optimizer = sgd, got adam"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(case, train, match):
    with pytest.raises(ScenarioError, match=match):
        OrderedDropout.check(replace(small_recipe(ARCHITECTURES[case]), train=train))


def test_fjord_trains_by_ordered_dropout():
    from strategies import Fjord

    assert Fjord.methods == (OrderedDropout.name,)


def test_fjord_refuses_a_batch_policy_that_watches_the_whole():
    recipe = small_recipe(ARCH["mlp-whole-inputs"], memory=MemoryConfig(batch_policy="noise"))
    with pytest.raises(ScenarioError, match="fixed or fill"):
        OrderedDropout.check(recipe)
