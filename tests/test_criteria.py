"""Scores by hand, and against autograd and the loss itself."""

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, CHAINS
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.axes import AxisRef
from fedhp.model.building import initial_state, to_module
from fedhp.model.layout import Layout, Place
from fedhp.pruning.criteria import CRITERIA, check_criterion
from fedhp.pruning.evidence import Evidence, Rows, evidence


def rows(values, gradient=None, axis: int = 0) -> Rows:
    """A parameter of which each row (or, for axis 1, each column) is a unit."""
    parameter = nn.Parameter(torch.tensor(values))
    parameter.grad = None if gradient is None else torch.tensor(gradient)
    return Rows(parameter, Place(axis, "g", 0, parameter.shape[axis], 1))


def source(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scores(name: str, *entering: Rows, **evidence) -> list[float]:
    return CRITERIA[name].score(Evidence(entering, **evidence)).tolist()


# --- by hand ---------------------------------------------------------------------------------

WEIGHT = [[1.0, 2.0], [3.0, -1.0]], [[0.1, 0.2], [0.0, 1.0]]
BIAS = [0.5, 0.0], [2.0, 5.0]


def test_taylor_and_fisher():
    """Unit 0: |1*.1 + 2*.2 + .5*2| = 1.5; unit 1: |3*0 - 1*1 + 0*5| = 1; their squares."""
    assert scores("taylor", rows(*WEIGHT), rows(*BIAS)) == pytest.approx([1.5, 1.0])
    assert scores("fisher", rows(*WEIGHT), rows(*BIAS)) == pytest.approx([2.25, 1.0])


def test_taylor_sums_before_it_takes_the_absolute_value():
    """Opposite terms cancel, 1*1 - 1*1 = 0: the unit can go at no cost, to first order."""
    assert scores("taylor", rows([[1.0, -1.0]], [[1.0, 1.0]])) == [0.0]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("magnitude", [13, 1]), ("magnitude_l1", [19, 1]), ("outgoing", [5, 13]), ("outgoing_l1", [7, 17])],
)
def test_magnitudes(name, wanted):
    """Entering unit 0: 3, 4 and a bias of 12, sqrt(9 + 16 + 144) = 13 and 3 + 4 + 12 = 19; unit 1: 0, 1, 0.

    Leaving unit 0, a column: 3 and -4, 5 and 7; unit 1: 5 and -12, 13 and 17.
    """
    weight, bias = rows([[3.0, 4.0], [0.0, -1.0]]), rows([-12.0, 0.0])
    leaving = rows([[3.0, 5.0], [-4.0, -12.0]], axis=1)
    assert scores(name, weight, bias, leaving=(leaving,)) == pytest.approx(wanted)


def test_inputs_are_judged_by_what_leaves_them():
    """Of a 2x3 matrix seen by its columns: 1*.1 + 4*.4 = 1.7, 2*.2 + 5*.5 = 2.9, 3*.3 + 6*.6 = 4.5."""
    columns = rows([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], axis=1)
    assert scores("taylor", leaving=(columns,)) == pytest.approx([1.7, 2.9, 4.5])
    assert scores("magnitude_l1", leaving=(columns,)) == pytest.approx([5, 7, 9])


def test_the_scales_of_all_normalisation_layers_count():
    """|.5| + |-2| = 2.5 and |-1| + |0| = 1; other parameters do not."""
    scales = rows([0.5, -1.0]), rows([-2.0, 0.0])
    assert scores("bn_scale", rows([[9.0], [9.0]]), *scales, scales=scales) == [2.5, 1.0]


def test_flexrel_halves_magnitude_and_relevance_as_shares_of_their_means():
    """Magnitudes 1 and 3, shares .5 and 1.5; relevances |2*1 + 1*1| = 3 and |1*1 - 2*1| = 1, 1.5 and .5."""
    leaving = rows([[2.0, 1.0], [1.0, -2.0]], [[1.0, 1.0], [1.0, 1.0]], axis=1)
    assert scores("flexrel", rows([[1.0], [-3.0]]), leaving=(leaving,)) == pytest.approx([1.0, 1.0])
    still = rows([[2.0, 1.0]], [[0.0, 0.0]], axis=1)
    assert scores("flexrel", rows([[1.0], [-3.0]]), leaving=(still,)) == pytest.approx([0.25, 0.75])


# Two samples of three units on maps of two places.
SAID = [[[0.0, 1.0], [-2.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]]


def test_mean_activation():
    """(0 + 1 + 3 + 0)/4, (2 + 0 + 1 + 1)/4 and 0."""
    assert scores("activation", rows([[1.0]] * 3), activations=torch.tensor(SAID)) == [1.0, 1.0, 0.0]


def test_apoz_counts_what_is_not_zero():
    """2, 3 and none of 4; and all of them when none is zero."""
    said = torch.tensor(SAID)
    assert scores("apoz", rows([[1.0]] * 3), activations=said) == [0.5, 0.75, 0.0]
    assert scores("apoz", rows([[1.0]] * 3), activations=said - 0.25) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["activation", "apoz"])
def test_of_inputs_the_spread_counts(name):
    """0, 1, 3, 0 have the mean 1 and the variance (1 + 0 + 4 + 1)/4; -2, 0, 1, 1 have 0 and 6/4 too."""
    said = torch.tensor(SAID) + 7
    assert scores(name, activations=said) == pytest.approx([1.5**0.5, 1.5**0.5, 0.0])


@pytest.mark.parametrize("num_units", [5, 40])
def test_of_two_units_alike_the_lesser_is_redundant(num_units):
    """Correlations by NumPy, over samples and places alike; each unit against those that vary more."""
    said = np.random.default_rng(3).normal(size=(6, num_units, 4)).astype(np.float32) + 2
    said[:, 2] = -3 * said[:, 1] + 1  # alike, and says more
    said[:, 3] = 0.1  # constant
    flat = said.transpose(1, 0, 2).reshape(num_units, -1)
    spread = flat.std(axis=1)
    varying = [unit for unit in range(num_units) if unit != 3]
    alike = np.zeros((num_units, num_units))
    alike[np.ix_(varying, varying)] = np.abs(np.corrcoef(flat[varying]))
    wanted = [1 - max([alike[u, v] for v in varying if spread[v] > spread[u]], default=0) for u in varying]
    found = scores("correlation", activations=torch.tensor(said))
    assert [found[unit] for unit in varying] == pytest.approx(wanted, abs=1e-5)
    assert found[1] == pytest.approx(0, abs=1e-5)
    assert found[2] > 0.1
    assert found[3] == 0


def test_random_depends_on_the_generator_alone():
    weight = rows([[1.0], [2.0], [3.0]])
    first, again, other = (scores("random", weight, generator=source(seed)) for seed in (1, 1, 2))
    assert first == again != other


# --- all of them -----------------------------------------------------------------------------


def test_the_table_has_every_criterion_of_the_documents():
    assert {name for name, kind in CRITERIA.items() if kind.activations} == {
        "activation",
        "apoz",
        "correlation",
    }
    assert [name for name, kind in CRITERIA.items() if kind.scales] == ["bn_scale"]


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_each_unit_and_changes_nothing(name):
    entering = tuple(rows(torch.randn(5, n).tolist(), torch.randn(5, n).tolist()) for n in (3, 1))
    leaving = (rows(torch.randn(4, 5).tolist(), torch.randn(4, 5).tolist(), axis=1),)
    said = torch.randn(6, 5, 2)
    tensors = [said, *(t for r in (*entering, *leaving) for t in (r.parameter.data, r.parameter.grad))]
    before = [tensor.clone() for tensor in tensors]
    found = CRITERIA[name].score(Evidence(entering, leaving, entering[1:], source(), said))
    assert found.shape == (5,)
    assert not found.requires_grad
    assert (found >= 0).all()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


# --- against the loss and autograd -----------------------------------------------------------


@pytest.mark.parametrize("case", CHAINS)
def test_taylor_is_the_slope_of_the_loss(case):
    """Scaling a unit's incoming weights and bias by 1 - e changes the loss by -e * sum w dL/dw; so does
    scaling an input's outgoing weights.

    The slope is taken by a central difference, in float64, where it is good to about 1e-8.
    """
    arch = CHAINS[case]
    module = to_module(arch, initial_state(arch, 2)).double()
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(6, *arch.input_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, arch.num_classes, (6,), generator=generator)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(module(images), labels)

    loss().backward()
    seen = evidence(arch.layout, dict(module.named_parameters()), arch.layout.widths, source())
    for group, width in arch.layout.widths.items():
        found = CRITERIA["taylor"].score(seen[group])
        slopes = torch.tensor([slope(units_first(module, group), unit, loss) for unit in range(width)])
        torch.testing.assert_close(found, slopes.abs().to(found), atol=1e-6, rtol=1e-4)


def units_first(module: nn.Module, group: str) -> list[torch.Tensor]:
    """Returns views of the weights that a unit of the group is made of."""
    if group == "inputs":
        return [module.get_parameter("fc1.weight").data.T]
    return [parameter.data for parameter in module.get_submodule(group).parameters()]


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


def test_relevance_is_gradient_times_activation():
    """FlexRel's relevance of a hidden unit, by autograd: the batch's sum of a * dL/da over its places."""
    arch = ARCHITECTURES["cnn-2-convs"]
    module = to_module(arch, initial_state(arch, 2))
    images, labels = (
        torch.randn(6, *arch.input_shape, generator=torch.Generator().manual_seed(1)),
        torch.arange(6) % 4,
    )
    taken: dict[str, torch.Tensor] = {}
    for taker in ("conv2", "fc1", "head"):
        module.get_submodule(taker).register_forward_pre_hook(
            lambda _, inputs, taker=taker: taken.update({taker: inputs[0]}) or inputs[0].retain_grad()
        )
    nn.functional.cross_entropy(module(images), labels).backward()
    seen = evidence(arch.layout, dict(module.named_parameters()), arch.layout.widths, source())
    for group, taker in (("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "head")):
        said, width = taken[taker], arch.layout.widths[group]
        relevance = (said * said.grad).reshape(6, width, -1).sum((0, 2)).abs()
        size = torch.cat([r.weights.abs() for r in seen[group].entering], dim=1).sum(1)
        wanted = 0.5 * size / size.mean() + 0.5 * relevance / relevance.mean()
        torch.testing.assert_close(CRITERIA["flexrel"].score(seen[group]), wanted)


# --- refusals --------------------------------------------------------------------------------


def wired(**parameters: tuple[tuple[int, ...], tuple[AxisRef | None, ...]]) -> Layout:
    shapes = {name.replace("_", "."): shape for name, (shape, _) in parameters.items()}
    axes = {name.replace("_", "."): axes for name, (_, axes) in parameters.items()}
    return Layout({"a": 3, "b": 2}, shapes, axes, {"a": 1, "b": 1})


A, B = AxisRef("a"), AxisRef("b")
CHAIN = {"one_weight": ((3, 4), (A, None)), "one_bias": ((3,), (A,)), "two_weight": ((2, 3), (B, A))}


def test_a_criterion_that_needs_scales_is_refused_where_a_group_has_none():
    half = wired(**CHAIN, norm_weight=((3,), (A,)))
    with pytest.raises(ScenarioError, match=r"bn_scale needs a normalisation layer .* and 'b' has none"):
        check_criterion("bn_scale", half)
    with pytest.raises(ScenarioError, match=r"'a', 'b' have none; choose another criterion or a model"):
        check_criterion("bn_scale", wired(**CHAIN))
    check_criterion("bn_scale", wired(**CHAIN, norm_weight=((3,), (A,)), other_weight=((2,), (B,))))


def test_a_criterion_that_needs_activations_is_refused_where_no_layer_takes_them_in():
    with pytest.raises(ScenarioError, match=r"apoz looks at .* and 'b' has no layer"):
        check_criterion("apoz", wired(**CHAIN))
    check_criterion("apoz", wired(**CHAIN, head_weight=((5, 2), (None, B))))


@pytest.mark.parametrize("name", [name for name, kind in CRITERIA.items() if not kind.scales])
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_the_models_have_what_other_criteria_look_at(name, case):
    check_criterion(name, ARCHITECTURES[case].layout)
