"""The masked loss against a softmax over the present classes, computed by hand and by a smaller network."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import random_shard, small_recipe, small_task
from torch import nn

from fedhp.data import Shard
from fedhp.errors import BudgetError
from fedhp.model.building import to_module
from fedhp.model.dense import Loss
from fedhp.model.gradients import gradients
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.seeds import generator
from fedhp.training.methods.masked_loss import class_mask
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally


def test_the_mask_takes_absent_classes_out():
    mask = class_mask(np.array([0, 3]), 5)
    assert mask is not None
    assert mask.tolist() == [0, -math.inf, -math.inf, 0, -math.inf]
    assert class_mask(np.arange(5), 5) is None


def test_the_softmax_is_over_the_present_classes_by_hand():
    """One sample of label 0; logits ln 1, ln 8, ln 3, of which the second class is absent.

    Over the other two the probabilities are 1/4 and 3/4. The loss is ln 4, its gradients by the logits are
    1/4 - 1, 0 and 3/4; with the input 2, those by the weights are twice as large. Without the absent class,
    the prediction is the third.
    """
    head = nn.Linear(1, 3)
    head.weight.data = torch.zeros(3, 1)
    head.bias.data = torch.tensor([1.0, 8.0, 3.0]).log()
    mask = torch.tensor([0, -math.inf, 0])
    loss, right = gradients(head, torch.tensor([[2.0]]), torch.tensor([0]), Loss(mask))
    assert loss.item() == pytest.approx(math.log(4))
    assert right.item() == 0
    assert head.bias.grad is not None
    assert head.weight.grad is not None
    assert head.bias.grad.tolist() == pytest.approx([-0.75, 0, 0.75])
    assert head.weight.grad.flatten().tolist() == pytest.approx([-1.5, 0, 1.5])
    assert head.bias.grad[1] == head.weight.grad[1] == 0, "exactly"
    _, right = gradients(head, torch.tensor([[2.0]]), torch.tensor([2]), Loss(mask))
    assert right.item() == 1


def test_a_last_layer_that_needs_its_output_for_the_backward_pass_can_be_masked():
    """Through a sigmoid s, the gradient by its input is (p - y) * s * (1 - s)."""
    module = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid())
    said = module(torch.ones(1, 2)).detach().flatten()
    gradients(module, torch.ones(1, 2), torch.tensor([2]), Loss(torch.tensor([0, -math.inf, 0])))
    first = said[0].exp() / (said[0].exp() + said[2].exp())
    wanted = torch.tensor([1.0, 0.0, -1.0]) * first * said * (1 - said)
    torch.testing.assert_close(module.get_parameter("0.bias").grad, wanted)


# --- in training -----------------------------------------------------------------------------

ARCH = architecture(ModelConfig("mlp", [40, 20]), (1, 6, 6), 5)
PLAIN_SGD = TrainConfig(
    local_epochs=2,
    batch_size=8,
    learning_rate=0.05,
    momentum=0.0,
    lr_schedule="constant",
    masked_loss=True,
    device="cpu",
)
PRESENT, ABSENT = [1, 4], [0, 2, 3]


def shard_of(classes: list[int], size: int = 120) -> Shard:
    shard = random_shard((1, 6, 6), 5, size)
    shard._labels = np.array(classes)[shard._labels % len(classes)]
    return shard


SHARD = shard_of(PRESENT)


def masked(train: TrainConfig = PLAIN_SGD, prune: PruneConfig | None = None) -> Recipe:
    return small_recipe(ARCH, train, prune)


def test_weights_of_absent_classes_stay_as_they_are_to_the_bit():
    task = small_task(masked(), SHARD)
    updates = [train_locally(masked(replace(PLAIN_SGD, masked_loss=on)), task, SHARD) for on in (True, False)]
    kept, pushed = (update.state.weights for update in updates)
    for name in ("head.weight", "head.bias"):
        before = task.state.weights[name]
        assert kept[name][ABSENT].tobytes() == before[ABSENT].tobytes()
        assert (kept[name][PRESENT] != before[PRESENT]).any()
        assert (pushed[name][ABSENT] != before[ABSENT]).any()


def test_training_is_that_of_a_network_without_the_absent_classes():
    """Its head has two rows, and the labels 1 and 4 are 0 and 1 to it."""
    task = small_task(masked(), SHARD)
    update = train_locally(masked(), task, SHARD)
    small = architecture(ModelConfig("mlp", [40, 20]), (1, 6, 6), 2)
    heads = {name: w[PRESENT] for name, w in task.state.weights.items() if name.startswith("head")}
    module = to_module(small, ModelState({**task.state.weights, **heads}, task.state.structure))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    order = generator(3, "batches", 1, 5)
    for rows in (part for _ in range(2) for part in np.split(order.permutation(120), 15)):
        images, labels = SHARD.batch(rows)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), (labels == 4).long()).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        found = update.state.weights[name]
        found = found[PRESENT] if name.startswith("head") else found
        np.testing.assert_allclose(found, parameter.detach(), atol=1e-5)


def test_a_client_that_has_all_classes_trains_as_without_a_mask():
    shard = shard_of([0, 1, 2, 3, 4])
    one, other = (masked(replace(PLAIN_SGD, masked_loss=on)) for on in (True, False))
    states = [train_locally(recipe, small_task(recipe, shard), shard).state for recipe in (one, other)]
    for name, weights in states[0].weights.items():
        assert weights.tobytes() == states[1].weights[name].tobytes()


def test_a_client_of_one_class_learns_nothing():
    shard = shard_of([3])
    update = train_locally(masked(), (task := small_task(masked(), shard)), shard)
    assert (update.statistics.train_loss, update.statistics.accuracy) == (0, 1)
    assert all(np.array_equal(w, task.state.weights[name]) for name, w in update.state.weights.items())


@pytest.mark.parametrize("regularizer", ["none", "halo"])
@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_the_budget_holds_with_a_mask(regularizer, mu, monkeypatch):
    """To the byte: 4 bytes per class more than without. And a device just too small for them is refused."""
    monkeypatch.setattr("fedhp.training.meter.PEAKS", {})
    prune = PruneConfig(target_compression=4, start=0.1, end=0.7, cuts=5, regularizer=regularizer)
    train = replace(PLAIN_SGD, proximal_mu=mu)
    recipe, without = (masked(replace(train, masked_loss=on), prune) for on in (True, False))
    said, plain = (r.memory_model(1).training_bytes(ARCH.layout.widths, 8) for r in (recipe, without))
    assert said - plain == 4 * 5
    update = train_locally(recipe, small_task(recipe, SHARD, said), SHARD)
    assert update.statistics.batch_size_first == 8
    assert update.state.structure != update.assigned
    assert 0.95 * said <= update.statistics.memory_measured_bytes <= said
    least = without.memory_model(1).training_bytes(ARCH.layout.widths, 1)
    with pytest.raises(BudgetError, match=f"the budget is {least:,} bytes"):
        train_locally(recipe, small_task(recipe, SHARD, least), SHARD)
