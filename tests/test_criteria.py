"""Scores by hand, and the Taylor score against the loss itself."""

import pytest
import torch
from small_models import ARCHITECTURES
from torch import nn

from fedhp.criteria import CRITERIA, magnitude, random, taylor
from fedhp.models import initial_state, to_module


def parameter(values, gradient=None) -> nn.Parameter:
    made = nn.Parameter(torch.tensor(values))
    made.grad = None if gradient is None else torch.tensor(gradient)
    return made


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_taylor_by_hand():
    """Unit 0: |1*.1 + 2*.2 + .5*2| = 1.5; unit 1: |3*0 - 1*1 + 0*5| = 1."""
    weight = parameter([[1.0, 2.0], [3.0, -1.0]], [[0.1, 0.2], [0.0, 1.0]])
    bias = parameter([0.5, 0.0], [2.0, 5.0])
    torch.testing.assert_close(taylor([weight, bias], source()), torch.tensor([1.5, 1.0]))


def test_taylor_sums_before_it_takes_the_absolute_value():
    """Opposite terms cancel, 1*1 - 1*1 = 0: the unit can go at no cost, to first order."""
    weight = parameter([[1.0, -1.0]], [[1.0, 1.0]])
    assert taylor([weight], source()).tolist() == [0.0]


def test_magnitude_by_hand():
    """Unit 0: sqrt(9 + 16 + 144) = 13; unit 1: sqrt(0 + 1 + 0) = 1."""
    scores = magnitude([parameter([[3.0, 4.0], [0.0, 1.0]]), parameter([12.0, 0.0])], source())
    torch.testing.assert_close(scores, torch.tensor([13.0, 1.0]))


def test_a_channel_counts_its_whole_kernel():
    """All ones: a 2x3x3 kernel has 18 entries, and its bias is 1 more: sqrt(19), and |19 * .5| = 9.5."""
    kernel, bias = nn.Parameter(torch.ones(4, 2, 3, 3)), nn.Parameter(torch.ones(4))
    kernel.grad, bias.grad = torch.full((4, 2, 3, 3), 0.5), torch.full((4,), 0.5)
    torch.testing.assert_close(magnitude([kernel, bias], source()), torch.full((4,), 19**0.5))
    torch.testing.assert_close(taylor([kernel, bias], source()), torch.full((4,), 9.5))


def test_random_depends_on_the_generator_alone():
    weight = parameter([[1.0], [2.0], [3.0]])
    first, again, other = (random([weight], source(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_each_unit_and_changes_nothing(name):
    weight, bias = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5))
    weight.grad, bias.grad = torch.randn(5, 3), torch.randn(5)
    before = [t.clone() for t in (weight.data, weight.grad, bias.data, bias.grad)]
    scores = CRITERIA[name].score([weight, bias], source())
    assert scores.shape == (5,)
    assert not scores.requires_grad
    assert (scores >= 0).all()
    after = [weight.data, weight.grad, bias.data, bias.grad]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_taylor_is_the_slope_of_the_loss(case):
    """Scaling a unit's incoming weights and bias by 1 - e changes the loss by -e * sum w dL/dw.

    The slope is taken by a central difference, in float64, where it is good to about 1e-8.
    """
    arch = ARCHITECTURES[case]
    module = to_module(arch, initial_state(arch, 2)).double()
    generator = source(4)
    images = torch.randn(6, *arch.input_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, arch.num_classes, (6,), generator=generator)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(module(images), labels)

    loss().backward()
    for group, width in arch.layout.widths.items():
        layer = module.get_submodule(group)
        scores = taylor([layer.weight, layer.bias], source())
        slopes = torch.tensor([_slope(layer, unit, loss) for unit in range(width)])
        torch.testing.assert_close(scores, slopes.abs().float(), atol=1e-6, rtol=1e-4)


def _slope(layer: nn.Module, unit: int, loss, step: float = 1e-5) -> float:
    losses = []
    for factor in (1 - step, 1 + step):
        kept = layer.weight.data[unit].clone(), layer.bias.data[unit].clone()
        with torch.no_grad():
            layer.weight[unit] *= factor
            layer.bias[unit] *= factor
            losses.append(float(loss()))
            layer.weight[unit], layer.bias[unit] = kept
    return (losses[0] - losses[1]) / (2 * step)
