"""Gradients of several networks in one computation, against those of each by autograd."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES
from torch import nn

from fedhp.model.building import initial_state, to_module
from fedhp.model.dense import Batch, Loss
from fedhp.model.grouped import grouped, grouping_pays
from fedhp.model.mapped import is_mappable, mapped
from fedhp.model.side_by_side import ByAutograd, Dense, form_of

SIZES, CLASSES = (5, 3, 5), 3


class Residual(nn.Module):
    """Attention over rows, added to them: a small network of a kind of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(6, 8), nn.Linear(8, 24)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        rows = self.embed(samples.flatten(1, 2))
        asked, keys, values = self.attend(self.norm(rows)).chunk(3, 2)
        rows = rows + (asked @ keys.transpose(1, 2) / 8**0.5).softmax(2) @ values
        return self.head(rows.mean(1))


def shipped(case: str) -> Callable[[], nn.Module]:
    arch = ARCHITECTURES[case]
    return lambda: to_module(arch, initial_state(arch, 1))


def as_on_a_gpu(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Channels lie innermost on a CPU alone."""
    return lambda: make().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def images(channels: int = 2) -> nn.Module:
    """With all that has a grouped form."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, stride=2, padding="valid", bias=False),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding="same", dilation=2),
        nn.GroupNorm(2, 4, affine=False),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 7, bias=False),
        nn.ReLU(),
        nn.Linear(7, CLASSES),
    )


def windows() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(1, 2),
        nn.Conv1d(4, 6, 5, stride=2, padding=2),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.MaxPool1d(3, stride=2, padding=1),
        nn.Conv1d(6, 8, 3, padding="same", bias=False),
        nn.AvgPool1d(2),
        nn.Conv1d(8, 4, 2),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def lone_gradients(module: nn.Module, batch: Batch, place: int) -> tuple[float, list[torch.Tensor]]:
    size = batch.sizes[place]
    logits = module(batch.samples[place, :size].clone())
    mask, spread = batch.loss
    if mask is not None:
        logits = logits + mask[place]
    aims = batch.labels[place, :size]
    if spread:  # the probability of each class
        aims = (1 - spread) * nn.functional.one_hot(aims, logits.shape[1]) + spread / logits.shape[1]
    loss = nn.functional.cross_entropy(logits, aims)
    return loss.item(), list(torch.autograd.grad(loss, list(module.parameters())))


MAPPED = {
    "resnet20-group": (as_on_a_gpu(shipped("resnet20-group")), (1, 8, 8)),
    "attention": (Residual, (1, 4, 6)),
    "images": (images, (2, 16, 16)),
}
GROUPED = {
    "cnn": (shipped("cnn-2-convs"), (1, 9, 7)),
    "images": (images, (2, 16, 16)),
    "windows": (windows, (1, 4, 24)),
    "pooled first": (lambda: nn.Sequential(nn.AvgPool1d(1), nn.MaxPool1d(1), *windows()[1:]), (4, 24)),  # type: ignore[index]
    "conv1d without a flattened axis": (lambda: windows()[1:], (4, 24)),  # type: ignore[index]
    "one channel": (lambda: images(1), (1, 16, 16)),
    "innermost": (lambda: images().to(memory_format=torch.channels_last), (2, 16, 16)),  # type: ignore[call-overload]
}
CASES = [(mapped, *case) for case in MAPPED.values()] + [(grouped, *case) for case in GROUPED.values()]


@pytest.mark.parametrize(
    ("way", "make", "shape"), CASES, ids=[*MAPPED, *(f"grouped {name}" for name in GROUPED)]
)
@pytest.mark.parametrize(("is_masked", "spread"), [(False, 0.0), (True, 0.0), (False, 0.2)])
def test_gradients_side_by_side_are_those_of_each(way, make, shape, is_masked, spread):
    torch.manual_seed(0)
    modules = [make() for _ in SIZES]
    samples, labels = (
        torch.randn(len(SIZES), max(SIZES), *shape),
        torch.randint(0, 2, (len(SIZES), max(SIZES))),
    )
    num_classes = len(modules[0](samples[0]).T)
    mask = torch.zeros(len(SIZES), 1, num_classes)
    mask[1, :, 2:] = -torch.inf
    batch = Batch(samples, labels, SIZES, Loss(mask if is_masked else None, spread))
    tensors = [
        torch.stack([p.detach() for p in rows])
        for rows in zip(*(m.parameters() for m in modules), strict=True)
    ]
    losses, right, grads = ByAutograd(way(modules[0])).gradients(tensors, batch)
    assert all(int(number) <= size for number, size in zip(right, SIZES, strict=True))
    for place, module in enumerate(modules):
        loss, theirs = lone_gradients(module, batch, place)
        assert losses[place].item() == pytest.approx(loss, rel=1e-5)
        for grad, their, tensor in zip(grads, theirs, tensors, strict=True):
            torch.testing.assert_close(grad[place], their, rtol=1e-4, atol=1e-5)
            assert grad.stride() == tensor.stride()


class DrawsWithPython(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.flatten(1)) * (1 + 0 * random.random())


class Decides(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(input.flatten(1))
        return outputs if outputs.sum() > 0 else -outputs


class LeavesOut(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.other = nn.Parameter(torch.zeros(2))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.flatten(1))


def test_what_cannot_be_mapped_is_told_by_trying():
    samples = torch.randn(2, 1, 2, 3)
    assert is_mappable(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), samples)
    for module in (
        nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Dropout()),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3)),
        nn.Sequential(nn.Flatten(), nn.Linear(7, 3)),
        DrawsWithPython(6, 3),
        Decides(6, 3),
        LeavesOut(6, 3),
    ):
        assert not is_mappable(module, samples), module


def changed(place: int, layer: nn.Module) -> nn.Module:
    module = images()
    module[place] = layer  # type: ignore[index]
    return module


@pytest.mark.parametrize(
    "module",
    [
        images()[:9],  # type: ignore[index]
        changed(0, nn.Conv2d(2, 6, 3, groups=2)),
        changed(4, nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
        changed(7, nn.Dropout()),
        changed(7, nn.BatchNorm2d(4)),
        changed(6, nn.MaxPool2d(2, return_indices=True)),
        changed(9, nn.Flatten(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
        nn.Sequential(images()),
    ],
)
def test_what_is_no_plain_chain_has_no_grouped_form(module):
    assert grouped(module) is None


def test_a_layer_that_comes_twice_has_no_grouped_form():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    head = (nn.Flatten(), nn.Linear(4, 3))
    assert grouped(nn.Sequential(layer, nn.ReLU(), layer, nn.AdaptiveAvgPool2d(1), *head)) is None


def test_who_is_alone_or_watched_is_computed_by_itself():
    dense = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert isinstance(form_of(dense, is_alone=True), Dense)
    assert form_of(images(), is_alone=True) is None
    assert form_of(images()) is not None
    module = images()
    module[2].register_forward_hook(lambda *_: None)  # type: ignore[index]
    assert form_of(module) is None


def test_grouping_pays_where_channels_are_few():
    assert grouping_pays([(6, 1, 3, 3), (6,), (12, 6, 3, 3), (4000, 588)])
    assert not grouping_pays([(6, 1, 3, 3), (64, 6, 3, 3)])
    assert grouping_pays([(64, 64, 5)])
    assert not grouping_pays([(64, 96, 5)])


def test_draws_of_numpy_are_seen(monkeypatch):
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    module.register_forward_pre_hook(lambda *_: np.random.rand() and None)
    assert not is_mappable(module, torch.randn(2, 1, 2, 3))
