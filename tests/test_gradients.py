"""Gradients worked out layer by layer against autograd's."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fedhp.model.building import initial_state, to_module
from fedhp.model.dense import Loss
from fedhp.model.gradients import dense_chain, gradients
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.training.methods.masked_loss import class_mask

SHAPE = (1, 4, 5)


def mlp(*widths: int) -> nn.Module:
    arch = architecture(ModelConfig(widths=list(widths)), SHAPE, 3)
    return to_module(arch, initial_state(arch, seed=1)).train()


def by_autograd(
    module: nn.Module, images: torch.Tensor, aims: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    logits = module(images)
    loss = nn.functional.cross_entropy(logits if mask is None else logits + mask, aims)
    return loss.detach(), list(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2]])
@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("widths", [(6,), (6, 4), (9, 8, 7)])
def test_gradients_are_those_of_autograd(widths: tuple[int, ...], batch: int, present: list[int]) -> None:
    module, source = mlp(*widths), torch.Generator().manual_seed(batch)
    images = torch.randn(batch, *SHAPE, generator=source)
    labels = torch.tensor(present)[torch.randint(len(present), (batch,), generator=source)]
    absent = class_mask(np.array(present), 3)
    mask = None if absent is None else torch.from_numpy(absent)
    loss, theirs = by_autograd(module, images, labels, mask)

    ours, right = gradients(module, images, labels, Loss(mask))

    # Layer by layer they are batched products, which round otherwise than autograd's where layers are narrow.
    torch.testing.assert_close(ours, loss)
    for parameter, gradient in zip(module.parameters(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    with torch.no_grad():
        logits = module(images) if mask is None else module(images) + mask
    assert right == (logits.argmax(1) == labels).sum()


@pytest.mark.parametrize("make", [mlp, lambda *widths: nn.Sequential(mlp(*widths), nn.Identity())])
def test_smoothed_labels_are_those_of_autograd(make: Callable[..., nn.Module]) -> None:
    """Of two in ten, a third goes to each of three classes; worked out layer by layer, and by autograd."""
    module, images, labels = make(6, 4), torch.randn(5, *SHAPE), torch.tensor([0, 2, 1, 1, 0])
    aims = 0.8 * nn.functional.one_hot(labels, 3) + 0.2 / 3
    loss, theirs = by_autograd(module, images, aims, None)
    ours, _ = gradients(module, images, labels, Loss(smoothing=0.2))
    torch.testing.assert_close(ours, loss)
    for parameter, gradient in zip(module.parameters(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_network_is_left_as_autograd_leaves_it() -> None:
    module, images = mlp(6, 4), torch.randn(2, *SHAPE)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    kept = images.clone()

    gradients(module, images, torch.tensor([0, 1]))

    assert torch.equal(images, kept)
    assert all(
        torch.equal(p, b) and p.requires_grad for p, b in zip(module.parameters(), before, strict=True)
    )


def test_mlps_are_chains() -> None:
    layers = dense_chain(mlp(6, 4))
    assert layers is not None
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(20, 6), (6, 4), (4, 3)]
    head = nn.Linear(2, 3)
    assert dense_chain(nn.Sequential(head)) == [head]


class Doubled(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def hooked(hook: Callable[[nn.Sequential], object]) -> nn.Module:
    chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    hook(chain)
    return chain


SHARED = nn.Linear(4, 4)
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a single layer": lambda: nn.Linear(4, 3),
    "another activation": lambda: nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3)),
    "an activation at the end": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
    "nothing between": lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)),
    "no bias": lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)),
    "a layer of one's own": lambda: nn.Sequential(Doubled(4, 4), nn.ReLU(), nn.Linear(4, 3)),
    "one layer twice": lambda: nn.Sequential(SHARED, nn.ReLU(), SHARED),
    "a network within": lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 3))),
    "a hook on the whole": lambda: hooked(lambda whole: whole.register_forward_hook(lambda *a: a[2] * 0.1)),
    "a hook on what flattens": lambda: hooked(
        lambda whole: whole.insert(0, nn.Flatten()) and whole[0].register_forward_hook(lambda *a: a[2] * 3)
    ),
    "a hook on a weight": lambda: hooked(lambda whole: whole[2].weight.register_hook(lambda flow: flow * 2)),
    "a hook on the way back": lambda: hooked(
        lambda whole: whole[2].register_full_backward_hook(lambda *_: None)
    ),
    "a hook ahead of the way back": lambda: hooked(
        lambda whole: whole[2].register_full_backward_pre_hook(lambda _, flow: (flow[0] * 2,))
    ),
    "dropout": lambda: nn.Sequential(OrderedDict(d=nn.Dropout(), r=nn.ReLU(), h=nn.Linear(4, 3))),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_chain_is_left_to_autograd(kind: str) -> None:
    module, images, labels = OTHERS[kind](), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    assert dense_chain(module) is None
    torch.manual_seed(0)
    loss, theirs = by_autograd(module, images, labels, None)
    torch.manual_seed(0)

    ours, _ = gradients(module, images, labels)

    assert ours == loss
    for parameter, gradient in zip(module.parameters(), theirs, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_who_watches_a_layer_sees_it_run() -> None:
    """Criteria of activations and the noise scale look in through hooks."""
    module, seen = mlp(6, 4), []
    handle = module.get_submodule("fc2").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    gradients(module, torch.randn(2, *SHAPE), torch.tensor([0, 1]))
    assert [tuple(entries.shape) for entries in seen] == [(2, 6)]

    handle.remove()
    assert dense_chain(module) is not None


def test_parts_of_a_network_are_chains_too() -> None:
    """FjORD's parts are views of the whole's weights, with gaps between their rows."""
    whole, images, labels = torch.randn(6, 20), torch.randn(3, 10), torch.tensor([0, 1, 2])
    module = nn.Sequential(nn.Linear(10, 3), nn.ReLU(), nn.Linear(3, 3))
    module[0].weight = nn.Parameter(whole[:3, :10])
    _, theirs = by_autograd(module, images, labels, None)
    assert dense_chain(module) is not None

    gradients(module, images, labels)

    for parameter, gradient in zip(module.parameters(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
