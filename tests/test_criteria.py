"""Scores by hand, and the Taylor score against the loss itself."""

import pytest
import torch
from small_models import CHAINS
from torch import nn

from fedhp.criteria import CRITERIA, Rows, magnitude, random, taylor
from fedhp.models import initial_state, to_module


def rows(values, gradient=None) -> Rows:
    return Rows(torch.tensor(values), None if gradient is None else torch.tensor(gradient))


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_taylor_by_hand():
    """Unit 0: |1*.1 + 2*.2 + .5*2| = 1.5; unit 1: |3*0 - 1*1 + 0*5| = 1."""
    weight = rows([[1.0, 2.0], [3.0, -1.0]], [[0.1, 0.2], [0.0, 1.0]])
    bias = rows([[0.5], [0.0]], [[2.0], [5.0]])
    torch.testing.assert_close(taylor([weight, bias], source()), torch.tensor([1.5, 1.0]))


def test_taylor_sums_before_it_takes_the_absolute_value():
    """Opposite terms cancel, 1*1 - 1*1 = 0: the unit can go at no cost, to first order."""
    weight = rows([[1.0, -1.0]], [[1.0, 1.0]])
    assert taylor([weight], source()).tolist() == [0.0]


def test_magnitude_by_hand():
    """Unit 0: sqrt(9 + 16 + 144) = 13; unit 1: sqrt(0 + 1 + 0) = 1."""
    scores = magnitude([rows([[3.0, 4.0], [0.0, 1.0]]), rows([[12.0], [0.0]])], source())
    torch.testing.assert_close(scores, torch.tensor([13.0, 1.0]))


def test_columns_are_scored_as_the_rows_that_they_are():
    """Of a 2x3 matrix seen by its columns: 1*.1 + 4*.4 = 1.7, 2*.2 + 5*.5 = 2.9, 3*.3 + 6*.6 = 4.5."""
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    columns = Rows(weight.T, weight.T / 10)
    torch.testing.assert_close(taylor([columns], source()), torch.tensor([1.7, 2.9, 4.5]))


def test_random_depends_on_the_generator_alone():
    weight = rows([[1.0], [2.0], [3.0]])
    first, again, other = (random([weight], source(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_each_unit_and_changes_nothing(name):
    weight, bias = (Rows(torch.randn(5, n), torch.randn(5, n)) for n in (3, 1))
    before = [t.clone() for t in (*weight, *bias)]
    scores = CRITERIA[name].score([weight, bias], source())
    assert scores.shape == (5,)
    assert not scores.requires_grad
    assert (scores >= 0).all()
    assert all(torch.equal(a, b) for a, b in zip(before, (*weight, *bias), strict=True))


@pytest.mark.parametrize("case", CHAINS)
def test_taylor_is_the_slope_of_the_loss(case):
    """Scaling a unit's incoming weights and bias by 1 - e changes the loss by -e * sum w dL/dw; so does
    scaling an input's outgoing weights.

    The slope is taken by a central difference, in float64, where it is good to about 1e-8.
    """
    arch = CHAINS[case]
    module = to_module(arch, initial_state(arch, 2)).double()
    generator = source(4)
    images = torch.randn(6, *arch.input_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, arch.num_classes, (6,), generator=generator)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(module(images), labels)

    loss().backward()
    for group, width in arch.layout.widths.items():
        views = units_first(module, group)
        scores = taylor([Rows(v.reshape(width, -1), g.reshape(width, -1)) for v, g in views], source())
        slopes = torch.tensor([slope([v for v, _ in views], unit, loss) for unit in range(width)])
        torch.testing.assert_close(scores, slopes.abs().to(scores), atol=1e-6, rtol=1e-4)


def units_first(module: nn.Module, group: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns views of the weights and gradients that a unit of the group is made of."""
    if group == "inputs":
        weight = module.get_parameter("fc1.weight")
        return [(weight.data.T, weight.grad.T)]
    return [(p.data, p.grad) for p in module.get_submodule(group).parameters()]


def slope(views: list[torch.Tensor], unit: int, loss, step: float = 1e-5) -> float:
    losses = []
    for factor in (1 - step, 1 + step):
        kept = [view[unit].clone() for view in views]
        for view, values in zip(views, kept, strict=True):
            view[unit] = values * factor
        losses.append(float(loss().detach()))
        for view, values in zip(views, kept, strict=True):
            view[unit] = values
    return (losses[0] - losses[1]) / (2 * step)
