"""Layers that hold a part of their weights: against dense layers whose other weights are 0; ERK by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.densities import DENSITIES, Densities, erk
from fedhp.model.options import ModelConfig
from fedhp.model.sparse_layers import can_be_sparse, make_sparse, placed_weights, sparse_layers
from fedhp.model.sparse_network import filled, sparse_layout, sparse_network
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture

LAYERS = {
    "dense": (lambda: nn.Linear(20, 30), (7, 20)),
    "in blocks": (lambda: nn.Linear(3000, 50), (4, 3000)),  # of 10 rows each
    "a row is more than a block": (lambda: nn.Linear(40_000, 2), (3, 40_000)),
    "of sequences": (lambda: nn.Linear(6, 4, bias=False), (3, 5, 6)),
    "images": (lambda: nn.Conv2d(3, 5, 3, padding=1), (4, 3, 8, 8)),
    "strided groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (2, 4, 9, 9)),
    "dilated windows": (lambda: nn.Conv1d(3, 5, 4, dilation=2), (4, 3, 11)),
}


def masked_and_sparse(
    layer: nn.Module, share: float = 0.3
) -> tuple[nn.Sequential, nn.Sequential, torch.Tensor]:
    """A network of a layer with some weights made 0, the same without those, and which are left."""
    masked = nn.Sequential(layer)
    weight = layer.weight.detach().view(-1)
    mask = torch.rand(len(weight), generator=torch.Generator().manual_seed(1)) < share
    sparse = copy.deepcopy(masked)
    make_sparse(sparse, {"0.weight": int(mask.sum())})
    sparse[0].weight.data.copy_(weight[mask])
    sparse[0].place(mask.nonzero().view(-1).int())
    weight.mul_(mask)
    return masked, sparse, mask


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_computes_as_a_dense_one_whose_other_weights_are_0(make, shape):
    torch.manual_seed(0)
    masked, sparse, mask = masked_and_sparse(make())
    samples = torch.randn(shape)
    ones, others = samples.clone().requires_grad_(), samples.clone().requires_grad_()
    expected, got = masked(ones), sparse(others)
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(expected)
    expected.backward(direction)
    got.backward(direction)
    torch.testing.assert_close(others.grad, ones.grad)
    torch.testing.assert_close(sparse[0].weight.grad, masked[0].weight.grad.view(-1)[mask])
    assert sparse[0].weight.shape == (int(mask.sum()),)
    if masked[0].bias is not None:
        torch.testing.assert_close(sparse[0].bias.grad, masked[0].bias.grad)


@pytest.mark.parametrize("name", ["dense", "in blocks", "images"])
def test_a_layer_tells_where_its_weights_stand(name):
    _, sparse, mask = masked_and_sparse(LAYERS[name][0]())
    (found,) = placed_weights(sparse, Structure({"0.weight": np.zeros(len(mask), bool)})).masks.values()
    np.testing.assert_array_equal(found, mask.numpy())
    assert sparse[0].places().tolist() == mask.nonzero().view(-1).tolist()


def test_what_passes_by_is_the_gradient_of_the_dense_weight():
    class Seen:
        def __init__(self) -> None:
            self.blocks, self.ended = [], False

        def offer(self, gradient: torch.Tensor, taken: torch.Tensor, start: int) -> None:
            self.blocks.append((start, gradient.clone(), taken.clone()))

        def end(self) -> None:
            self.ended = True

    torch.manual_seed(0)
    masked, sparse, mask = masked_and_sparse(LAYERS["in blocks"][0]())
    sparse[0].search = seen = Seen()
    samples = torch.randn(4, 3000)
    masked(samples).square().sum().backward()
    sparse(samples).square().sum().backward()
    assert [start for start, *_ in seen.blocks] == [0, 30_000, 60_000, 90_000, 120_000]
    whole = torch.cat([gradient for _, gradient, _ in seen.blocks])
    torch.testing.assert_close(whole, masked[0].weight.grad.view(-1))
    taken = torch.cat([start + positions for start, _, positions in seen.blocks])
    assert taken.tolist() == mask.nonzero().view(-1).tolist()
    assert seen.ended
    assert sparse[0].search is None  # once


def test_of_which_layers_weights_can_be_left_out():
    shared = nn.Linear(3, 3)
    tied = nn.Linear(3, 3)
    tied.weight = shared.weight
    net = nn.Sequential(
        nn.Linear(4, 3), shared, tied, nn.Conv2d(2, 3, 3, padding="same"), nn.Conv1d(2, 3, 2), nn.LayerNorm(3)
    )
    assert can_be_sparse(net) == {"0.weight": (3, 4), "4.weight": (3, 2, 2)}


def test_erk_is_the_sum_of_sides_per_weight():
    """The sides of 8 x 4 channels and a kernel of 3 x 3 add up to 18, and multiply to 288; 15 and 50."""
    assert erk((8, 4, 3, 3)) == 18 / 288
    assert erk((10, 5)) == 15 / 50


def test_densities_by_hand():
    """Layers 20 x 30 and 4 x 5: epsilon times the eagerness of each is its density, dense at most.

    Eagerness 50 / 600 and 9 / 20, so that epsilon weights are in proportion 50 to 9. Of 118 in all epsilon is
    2: 100 and 18. Of 236 it would be 4, and the second layer would have 36 of its 20: it is dense, and the
    first has the other 216. Alike, of 62 each has a tenth: 60 and 2.
    """
    shapes = {"a": (20, 30), "b": (4, 5)}
    layout = sparse_layout(_layout(shapes), shapes)

    def family(by: str) -> Densities:
        return Densities(layout, {}, eagerness={name: DENSITIES[by](shape) for name, shape in shapes.items()})

    assert family("erk").of(118, layout.widths) == {"a": 100, "b": 18}
    assert family("erk").of(236, layout.widths) == {"a": 216, "b": 20}
    assert family("uniform").of(62, layout.widths) == {"a": 60, "b": 2}
    assert family("uniform").of(0, layout.widths) == {"a": 1, "b": 1}
    assert family("erk").largest(layout.widths, lambda counts: sum(counts.values()) <= 118) == {
        "a": 100,
        "b": 18,
    }
    assert family("erk").largest(layout.widths, lambda counts: False) is None
    assert family("erk").of(236, {"a": 150, "b": 20}) == {"a": 150, "b": 20}  # never beyond what there is


def _layout(shapes):
    from fedhp.model.layout import Layout

    axes = {name: (None,) * len(shape) for name, shape in shapes.items()}
    return Layout(widths={}, shapes=shapes, axes=axes, floors={})


MLP = architecture(ModelConfig("mlp", widths=[16, 8], floor=1), (1, 6, 6), 10)
CNN = architecture(ModelConfig("cnn", widths=[4, 6, 12], floor=1), (1, 8, 8), 10)


@pytest.mark.parametrize("arch", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("by", ["erk", "uniform"])
def test_a_network_has_as_many_parameters_as_the_target_leaves(arch, by):
    sparse = sparse_network(arch, 4, by)
    counts = sparse.start(3).counts
    full = arch.layout.num_parameters(arch.layout.widths)
    assert sparse.layout.num_parameters(sparse.layout.widths) == full
    left = sparse.layout.num_parameters(counts)
    assert full / 4 - len(counts) <= left <= full / 4
    module = sparse.build(counts)
    assert sum(p.numel() for p in module.parameters()) == left  # biases among them
    assert {name: layer.weight.numel() for name, layer in sparse_layers(module).items()} == dict(counts)


def test_a_target_that_leaves_a_layer_without_weights_is_refused():
    with pytest.raises(ScenarioError, match=r"fc1\.weight would have none .* lower prune.target_compression"):
        sparse_network(MLP, 40, "uniform")


def test_a_network_without_weights_to_leave_out_is_refused():
    layout = _layout({"a": (3, 2)})
    from dataclasses import replace

    arch = replace(MLP, layout=layout, build=lambda counts: nn.LayerNorm(3))
    with pytest.raises(ScenarioError, match="no weights that could be left out"):
        sparse_network(arch, 2, "erk")


def test_a_filled_state_is_that_of_the_dense_network_with_zeros():
    from fedhp.model.building import initial_state, to_module

    sparse = sparse_network(CNN, 5, "erk")
    state = initial_state(sparse, 3)
    plain, whole = filled(sparse, state)
    assert plain is CNN
    samples = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(to_module(sparse, state)(samples), to_module(CNN, whole)(samples))
    for name, counts in state.structure.counts.items():
        assert np.count_nonzero(whole.weights[name]) == counts
        where = np.flatnonzero(whole.weights[name])
        np.testing.assert_array_equal(where, state.structure.kept(name))


def test_fresh_weights_are_larger_by_the_root_of_what_a_layer_leaves_out():
    from fedhp.model.building import fresh_state, initial_state

    sparse = sparse_network(MLP, 4, "uniform")
    begun = initial_state(sparse, 3)
    fresh = fresh_state(sparse, begun.structure, 3)
    for name, count in begun.structure.counts.items():
        factor = math.sqrt(sparse.layout.widths[name] / count)
        np.testing.assert_allclose(fresh.weights[name], begun.weights[name] * factor, rtol=1e-6)
