"""Batch policies by hand, and the noise scale against gradients of single samples."""

import math
from dataclasses import replace

import pytest
import torch
from small_models import normalised_net, random_shard, small_recipe, small_task
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.axes import AxisRef
from fedhp.model.layout import Layout
from fedhp.model.noise import _STRIDE, NoiseScale, head_of
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.training import trainer
from fedhp.training.batches import BATCH_POLICIES, MemoryConfig
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import choose_batch
from fedhp.training.trainer import train_locally


@pytest.mark.parametrize(
    ("policy", "noise_scale", "batch"),
    [
        ("fixed", math.inf, 12),
        ("fill", 0.0, 100),
        ("noise", 0.0, 12),
        ("noise", 23.9, 12),
        ("noise", 24.0, 24),
        ("noise", 60.0, 48),  # 96 would be more noise than there is
        ("noise", math.inf, 96),  # 192 would be more than is allowed
    ],
)
def test_the_batch_of_a_policy(policy, noise_scale, batch):
    """Of 12 as configured and at most 100; noise doubles."""
    assert BATCH_POLICIES[policy](12, 100, noise_scale) == batch


# --- the noise scale -------------------------------------------------------------------------


def single_gradients(head: nn.Linear, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the flat gradient of every sample's own loss, by a pass for each."""
    rows = []
    for index in range(len(labels)):
        head.zero_grad()
        one = slice(index, index + 1)
        nn.functional.cross_entropy(head(inputs[one]), labels[one]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in head.parameters()]))
    head.zero_grad()
    return torch.stack(rows)


def look(noise: NoiseScale, head: nn.Linear, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Takes as many steps as one look is for."""
    for _ in range(_STRIDE):
        head.zero_grad()
        nn.functional.cross_entropy(head(inputs), labels).backward()
        noise.observe()


@pytest.mark.parametrize("bias", [True, False])
def test_the_noise_scale_is_the_variance_over_the_squared_mean_of_the_samples_gradients(bias):
    """Over two looks of 7 and 5 samples: variances with n - 1, and as the square of the mean the mean product
    of two different samples' gradients.
    """
    head = nn.Linear(6, 4, bias)
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.rand(n, 6, generator=generator), torch.arange(n) % 2) for n in (7, 5)]
    singles = [single_gradients(head, *batch) for batch in batches]
    variance = sum(float(g.var(dim=0).sum()) for g in singles) / 2
    products = [float(g.sum(0).square().sum() - g.square().sum()) / (len(g) * (len(g) - 1)) for g in singles]
    square = sum(products) / 2
    noise = NoiseScale(head)
    assert noise.value == 0
    for batch in batches:
        look(noise, head, *batch)
    assert square > 0
    assert noise.value == pytest.approx(variance / square, rel=1e-4)


def test_noise_alone_is_without_bound():
    """Two samples of opposite gradients: whatever the label, the logits are even, and they cancel."""
    head = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(head.weight)
    noise = NoiseScale(head)
    look(noise, head, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    assert noise.value == math.inf


def test_a_single_sample_says_nothing_of_noise():
    head = nn.Linear(2, 2)
    noise = NoiseScale(head)
    look(noise, head, torch.ones(1, 2), torch.tensor([0]))
    assert noise.value == 0


def test_nothing_is_left_on_the_head():
    head = nn.Linear(2, 2)
    noise = NoiseScale(head)
    noise.close()
    assert not head._forward_hooks


class HeadFirst(nn.Module):
    """Its layers are named in another order than they are used in."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)).relu())


def test_the_head_is_the_layer_that_makes_the_classes_wherever_it_stands():
    arch = architecture(ModelConfig(target=f"{__name__}:HeadFirst"), (1, 4, 4), 3)
    assert head_of(arch.layout) == "head"


def test_the_head_is_the_last_linear_layer():
    assert head_of(normalised_net()[1]) == "head"
    shapes = {"conv.weight": (4, 3, 1, 1), "conv.bias": (4,)}
    axes = {"conv.weight": (AxisRef("a"), None, None, None), "conv.bias": (AxisRef("a"),)}
    with pytest.raises(ScenarioError, match=r"batch_policy = noise measures .* last linear layer, .* none"):
        head_of(Layout({"a": 4}, shapes, axes, {"a": 1}))


# --- in training -----------------------------------------------------------------------------

ARCH = architecture(ModelConfig("mlp", [40, 20]), (1, 6, 6), 5)
SHARD = random_shard((1, 6, 6), 5, 200)
TRAIN = TrainConfig(local_epochs=3, batch_size=8, learning_rate=0.05, device="cpu")


def noisy(**train: float):
    return small_recipe(ARCH, replace(TRAIN, **train), None, MemoryConfig("noise", max_batch=64))


def test_the_batch_grows_with_the_noise_that_was_found(monkeypatch):
    """At the start of every epoch but the first, which knows of none; with the rate scaled by its root."""
    taken, rates = [], []
    step = trainer.step_alone

    def spied(session):
        taken.append(len(session.rows))
        rates.append(session.run.optimizer.param_groups[0]["lr"])
        return step(session)

    monkeypatch.setattr(trainer, "step_alone", spied)
    scales = iter([0.0, 17.0, 1000.0])
    monkeypatch.setattr(NoiseScale, "value", property(lambda noise: next(scales)))
    recipe = noisy(lr_schedule="constant")
    scales = iter([17.0, 1000.0])
    update = train_locally(recipe, small_task(recipe, SHARD, 10**9), SHARD)
    assert taken == [*[8] * 25, *[16] * 12, 8, *[64] * 3, 8]
    assert rates[0], rates[25] == pytest.approx((0.05, 0.05 * 2**0.5))
    assert rates[-1] == pytest.approx(0.05 * 8**0.5)
    assert (update.statistics.batch_size_first, update.statistics.batch_size_last) == (8, 64)


def test_noise_grows_only_within_what_fits():
    recipe = noisy()
    memory, full = recipe.memory_model(1), ARCH.layout.full()
    for batch, wanted in ((3, 3), (8, 8), (20, 16), (1000, 64)):
        budget = memory.training_bytes(full.counts, batch)
        assert choose_batch(recipe, memory, full, budget, math.inf) == wanted


def test_the_same_seed_gives_the_same_batches():
    recipe = noisy()
    first, again = (train_locally(recipe, small_task(recipe, SHARD, 10**9), SHARD) for _ in range(2))
    assert replace(first.statistics, seconds=0) == replace(again.statistics, seconds=0)
