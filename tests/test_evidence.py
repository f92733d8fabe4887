"""What criteria see of a group: its parameters unit by unit, and activations where layers take them in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, normalised_net, random_structure
from torch import nn

from fedhp.model.axes import AxisRef
from fedhp.model.building import initial_state, to_module
from fedhp.model.layout import Layout, Place
from fedhp.model.wiring.tracing import trace
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.cutting import cut
from fedhp.pruning.evidence import (
    Evidence,
    Rows,
    evidence,
    groups_without_scales,
    groups_without_takers,
)
from fedhp.pruning.taps import Taps


def shapes(seen: tuple[Rows, ...]) -> list[tuple[int, ...]]:
    return [tuple(rows.weights.shape) for rows in seen]


def names(seen: tuple[Rows, ...], module: nn.Module) -> list[str]:
    return [name for rows in seen for name, p in module.named_parameters() if p is rows.parameter]


def seen_of(module: nn.Module, layout: Layout) -> dict[str, Evidence]:
    return evidence(layout, dict(module.named_parameters()), layout.widths, np.random.default_rng())


# --- parameters ------------------------------------------------------------------------------


def test_a_normalised_channel():
    """A kernel of 2x3x3 and three scalars enter it, its four places in each of three classes leave it."""
    module, layout = normalised_net()
    seen = seen_of(module, layout)["c"]
    assert names(seen.entering, module) == ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]
    assert shapes(seen.entering) == [(6, 18), (6, 1), (6, 1), (6, 1)]
    assert (names(seen.leaving, module), shapes(seen.leaving)) == (["head.weight"], [(6, 12)])
    assert names(seen.scales, module) == ["norm.weight"]
    assert seen.own == seen.entering
    assert groups_without_scales(layout) == groups_without_takers(layout) == []


def test_inputs_have_what_leaves_them_only():
    arch = ARCHITECTURES["mlp-1-hidden"]
    seen = seen_of(to_module(arch, initial_state(arch, 0)), arch.layout)
    assert seen["inputs"].entering == ()
    assert seen["inputs"].own == seen["inputs"].leaving
    assert shapes(seen["inputs"].own) == [(15, 11)]
    assert groups_without_scales(arch.layout) == ["inputs", "fc1"]


@pytest.mark.parametrize(
    ("place", "axis", "taken"),
    [(Place(0, "g", 1, 3, 2), 0, slice(1, 7)), (Place(1, "g", 2, 2, 3), 1, slice(2, 8))],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_pull_reaches_the_gradients_of_its_units_only(place, axis, taken, memory_format):
    """Units of several entries, within a longer axis, of a tensor that need not be contiguous."""
    parameter = nn.Parameter(torch.randn(8, 9, 2, 2).to(memory_format=memory_format))
    before = torch.randn_like(parameter)
    parameter.grad = before.clone()
    factors = torch.arange(1.0, place.num_units + 1)
    Rows(parameter, place).pull(factors)
    added = torch.zeros(8, 9, 2, 2)
    by_entry = factors.repeat_interleave(place.span)
    index = (taken,) if axis == 0 else (slice(None), taken)
    shape = (-1, 1, 1, 1) if axis == 0 else (1, -1, 1, 1)
    added[index] = parameter.detach()[index] * by_entry.reshape(shape)
    torch.testing.assert_close(parameter.grad, before + added)


# --- activations -----------------------------------------------------------------------------


def test_taps_show_what_a_layer_takes_in_and_follow_cuts():
    """After the normalisation, ReLU and pooling: what the layers before the head make of the images."""
    module, layout = normalised_net()
    shown: dict[str, torch.Tensor] = {}
    taps = Taps(module, layout, layout.widths, shown.__setitem__)
    images = torch.randn(5, 2, 4, 4)
    module(images)
    torch.testing.assert_close(shown["c"], module[:4](images).flatten(2))
    assert not shown["c"].requires_grad
    taps.close()
    shown.clear()
    module(images)
    assert shown == {}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_taps_follow_cuts(case):
    arch = ARCHITECTURES[case]
    layout, sub = arch.layout, random_structure(arch.layout, 1)
    module = to_module(arch, initial_state(arch, 0))
    shown: dict[str, torch.Tensor] = {}
    taps = Taps(module, layout, layout.widths, shown.__setitem__)
    cut(module, torch.optim.SGD(module.parameters()), layout, layout.full(), sub)
    taps.recount(sub.counts)
    images = torch.randn(5, *arch.input_shape)
    inputs = arch.kept_inputs(sub)
    module(images if inputs is None else images.flatten(1)[:, inputs])
    assert {group: tuple(said.shape[:2]) for group, said in shown.items()} == {
        group: (5, count) for group, count in sub.counts.items()
    }


def test_a_layer_that_takes_in_several_groups_shows_each():
    """Three units of two places, a fixed entry, then two units: columns 0-5 and 7-8."""
    module = nn.Sequential(nn.Linear(9, 2))
    layout = Layout(
        {"a": 3, "b": 2},
        {"0.weight": (2, 9), "0.bias": (2,)},
        {"0.weight": (None, (AxisRef("a", 2), AxisRef(None), AxisRef("b"))), "0.bias": (None,)},
        {"a": 1, "b": 1},
    )
    shown: dict[str, torch.Tensor] = {}
    Taps(module, layout, layout.widths, shown.__setitem__)
    taken = torch.arange(18.0).reshape(2, 9)
    module(taken)
    torch.testing.assert_close(shown["a"], taken[:, :6].reshape(2, 3, 2))
    torch.testing.assert_close(shown["b"], taken[:, 7:].reshape(2, 2, 1))


def test_a_linear_layer_over_maps_shows_their_last_axis():
    """Five places of three units, units last: what is shown has them on the second axis."""
    layout = Layout(
        {"a": 3},
        {"0.weight": (2, 3), "0.bias": (2,)},
        {"0.weight": (None, AxisRef("a")), "0.bias": (None,)},
        {"a": 1},
    )
    module, shown = nn.Sequential(nn.Linear(3, 2)), {}
    Taps(module, layout, layout.widths, shown.__setitem__)
    taken = torch.arange(30.0).reshape(2, 5, 3)
    module(taken)
    torch.testing.assert_close(shown["a"], taken.transpose(1, 2))


def grouped_net() -> tuple[nn.Module, Layout]:
    """A convolution of 4 channels, one in two groups of two and two, each with ReLU, and a pointwise one.

    What a group of the second takes in and makes is one unit: of two there are two. Images have two places.
    """

    def build() -> nn.Sequential:
        first, grouped = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        head = [nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(6, 2)]
        return nn.Sequential(first, nn.ReLU(), grouped, nn.ReLU(), *head)

    layout, module = trace(build(), (1, 1, 2), 2, 1, "a network"), build()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([1.0, -1, 2, 0]).view(4, 1, 1, 1))
        module[0].bias.copy_(torch.tensor([0.0, 0, 0, 1]))
        module[2].weight.copy_(torch.tensor([[1.0, -1], [1, 1], [1, -3], [0, 1]]).view(4, 2, 1, 1))
        module[2].bias.zero_()
    return module, layout


# Of the images (1, 2) and (-1, 3) the first convolution makes x, -x, 2x and 1, rectified; the second their
# difference and sum, and 2x - 3 and 1, rectified.
IMAGES = torch.tensor([[[[1.0, 2.0]]], [[[-1.0, 3.0]]]])
UNIT_0 = [[1, 2, 1, 2], [0, 3, 1, 3]]
UNIT_1 = [[0, 1, 1, 1], [0, 3, 1, 1]]


def test_a_grouped_convolution_lies_within_its_units():
    """They enter by both convolutions, biases included, and leave by the pointwise one."""
    module, layout = grouped_net()
    seen = seen_of(module, layout)["0"]
    assert names(seen.entering, module) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert shapes(seen.entering) == [(2, 2), (2, 2), (2, 4), (2, 2)]
    assert (names(seen.leaving, module), shapes(seen.leaving)) == (["4.weight"], [(2, 6)])


@pytest.mark.parametrize(
    ("criterion", "wanted"),
    [("activation", [13 / 8, 8 / 8]), ("apoz", [7 / 8, 6 / 8]), ("correlation", [1, 1 - 5 / 47.25**0.5])],
)
def test_units_of_a_grouped_convolution_are_judged_by_what_leaves_it(criterion, wanted):
    """Sums 13 and 8 of 8 entries, of which 7 and 6 are not zero; squares less the mean's 29 - 21.125 and
    14 - 8, products 18 - 13: the first varies more, and the second's correlation is 5 / sqrt(7.875 * 6).
    """
    module, layout = grouped_net()
    shown: dict[str, torch.Tensor] = {}
    taps = Taps(module, layout, layout.widths, shown.__setitem__)
    module(IMAGES)
    assert shown["0"].transpose(0, 1).tolist() == [UNIT_0, UNIT_1]
    said = replace(seen_of(module, layout)["0"], activations=shown["0"])
    assert CRITERIA[criterion].score(said).tolist() == pytest.approx(wanted)

    sub = layout.full().without("0", [0])
    cut(module, torch.optim.SGD(module.parameters()), layout, layout.full(), sub)
    taps.recount(sub.counts)
    module(IMAGES)
    assert shown["0"].transpose(0, 1).tolist() == [UNIT_1]
