"""Compression against least squares solved anew, sums over all subsets, and counts by hand."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.compression.calibration import solved_layers
from fedhp.compression.layers import called_layers, input_runs, matrix, patches
from fedhp.compression.methods import compressed, parsed
from fedhp.compression.n_of_m import n_of_m
from fedhp.compression.obc import obc, obc_n_of_m
from fedhp.compression.obq import grid, nearest
from fedhp.compression.obs import fixed_in_turn, restricted
from fedhp.compression.smartdeal import factored, smartdeal
from fedhp.compression.ternary import descended, ternary
from fedhp.errors import ExportError

Array = NDArray[np.float64]


def a_row(n: int = 6, samples: int = 40, seed: int = 0) -> tuple[Array, Array]:
    """A row of weights, and correlated inputs (samples, n)."""
    draws = np.random.default_rng(seed)
    return draws.normal(size=n), draws.normal(size=(samples, n)) @ draws.normal(size=(n, n))


def error(row: Array, other: Array, inputs: Array) -> float:
    return float(((inputs @ row - inputs @ other) ** 2).sum())


def refitted(row: Array, inputs: Array, fixed: dict[int, float]) -> Array:
    """Least squares for the products with ``row``, where some weights have to have a value."""
    free = [place for place in range(len(row)) if place not in fixed]
    found = np.zeros(len(row))
    found[list(fixed)] = list(fixed.values())
    if free:
        found[free] = np.linalg.lstsq(inputs[:, free], inputs @ (row - found))[0]
    return found


def smallest(weights: Array, diagonal: Array, places: object) -> tuple[int, float]:
    return int(np.argmin(weights**2 / diagonal)), 0.0


def a_network(groups: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, (3, 1), padding="same", bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )
    return network.eval()


def samples(number: int = 24) -> torch.Tensor:
    return torch.randn(number, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_each_removal_is_the_cheapest_of_all_single_ones_and_leaves_least_squares() -> None:
    row, inputs = a_row()
    order, losses, left = fixed_in_turn(row, 2 * inputs.T @ inputs, 5, smallest)
    gone: dict[int, float] = {}
    before = 0.0
    for place, loss in zip(order, losses, strict=True):
        costs = {
            p: error(row, refitted(row, inputs, {**gone, p: 0.0}), inputs) for p in range(6) if p not in gone
        }
        assert place == min(costs, key=costs.__getitem__)
        assert loss == pytest.approx(costs[place] - before)
        gone[int(place)], before = 0.0, costs[place]
    np.testing.assert_allclose(left, refitted(row, inputs, gone), rtol=1e-8, atol=1e-10)


def test_eliminations_kept_as_vectors_come_to_the_same_as_least_squares() -> None:
    """More than are multiplied out at once."""
    row, inputs = a_row(80, 300)
    order, _, left = fixed_in_turn(row, 2 * inputs.T @ inputs, 75, smallest)
    wanted = refitted(row, inputs, dict.fromkeys(order.tolist(), 0.0))
    np.testing.assert_allclose(left, wanted, rtol=1e-6, atol=1e-8)
    kept = np.ones((1, 80), bool)
    kept[0, order] = False
    closed = restricted(row[None], 2 * inputs.T @ inputs, kept)[0]
    np.testing.assert_allclose(closed, wanted, rtol=1e-6, atol=1e-8)


def test_with_inputs_that_do_not_correlate_the_smallest_share_of_all_subsets_is_found() -> None:
    """Of a layer of 2 x 4 weights, four go: none of all 70 choices has a smaller error."""
    draws = np.random.default_rng(3)
    inputs = np.linalg.qr(draws.normal(size=(30, 4)))[0] * [1.0, 2.0, 3.0, 4.0]
    layer = nn.Linear(4, 2, bias=False)
    weights = matrix(layer)
    done = obc(nn.Sequential(layer), torch.from_numpy(inputs).float(), 0.5)

    def lost(gone: tuple[int, ...]) -> float:
        other = weights.ravel().copy()
        other[list(gone)] = 0
        return float(((inputs @ (weights - other.reshape(2, 4)).T) ** 2).sum())

    best = min(itertools.combinations(range(8), 4), key=lost)
    (new,) = called_layers(done.network, torch.ones(1, 4)).values()
    assert set(np.flatnonzero(matrix(new).ravel() == 0)) == set(best)


def test_quantisation_takes_the_cheapest_rounding_each_time() -> None:
    """The same steps, each with all the choices' least squares solved anew."""
    row, inputs = a_row(6, 40, 5)
    step, low, high = grid(row, 3)
    fixed: dict[int, float] = {}
    for _ in range(6):
        now = refitted(row, inputs, fixed)
        values = step * np.clip(np.rint(now / step), low, high)
        free = [p for p in range(6) if p not in fixed]
        outside = [p for p in free if abs(now[p] - values[p]) > step / 2 * (1 + 1e-9)]
        costs = {p: error(row, refitted(row, inputs, {**fixed, p: values[p]}), inputs) for p in free}
        place = (
            max(outside, key=lambda p: abs(now[p] - values[p]))
            if outside
            else min(costs, key=costs.__getitem__)
        )
        fixed[place] = float(values[place])
    _, _, found = fixed_in_turn(row, 2 * inputs.T @ inputs, 6, nearest(step, low, high))
    np.testing.assert_allclose(found, [fixed[p] for p in range(6)])


def test_quantised_weights_lie_on_their_rows_grid_and_zeros_stay() -> None:
    network = compressed(a_network(), samples(), parsed("obc:0.4,obq:3"))
    for layer, figures in zip(
        called_layers(network.network, samples()).values(), network.layers, strict=True
    ):
        rows = matrix(layer)
        assert max(len(np.unique(row)) for row in rows) <= 8
        assert figures.zeros == (rows == 0).sum() >= round(0.4 * rows.size)
        assert figures.bits == min(3 * rows.size, rows.size + 3 * (rows.size - figures.zeros)) + 35 * len(
            rows
        )


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_its_matrix_times_the_patches(groups: int) -> None:
    network = a_network(groups)
    layers, values = list(called_layers(network, samples()).values()), samples()
    for layer in (layers[0], layers[1]):
        found = patches(layer, values)
        parts = torch.from_numpy(matrix(layer)).float().chunk(groups if layer is layers[0] else 1)
        products = torch.cat([part @ one for part, one in zip(parts, found, strict=True)])
        out = layer(values)
        plain = out if layer.bias is None else out - layer.bias.reshape(1, -1, 1, 1)
        torch.testing.assert_close(products, plain.transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)
        values = torch.randn(5, 6, 4, 4)


def test_windows_over_time_are_patches_too() -> None:
    layer = nn.Conv1d(3, 5, 4, stride=2, padding=1, dilation=2, bias=False)
    values = torch.randn(7, 3, 20)
    products = torch.from_numpy(matrix(layer)).float() @ patches(layer, values)[0]
    torch.testing.assert_close(products, layer(values).transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)


def test_a_convolution_prunes_as_the_dense_layer_on_its_patches() -> None:
    convolution = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1))
    dense = nn.Sequential(nn.Linear(36, 6))
    dense[0].weight.data, dense[0].bias.data = convolution[0].weight.data.flatten(1), convolution[0].bias.data
    seen = patches(convolution[0], samples())[0].T.contiguous()
    pruned = [obc(*pair, 0.5).network[0] for pair in ((convolution, samples()), (dense, seen))]
    torch.testing.assert_close(pruned[0].weight.flatten(1), pruned[1].weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(pruned[0].bias, pruned[1].bias, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", [n_of_m, obc_n_of_m])
def test_of_every_run_of_inputs_n_are_left(method) -> None:
    done = method(a_network(), samples(), 2, 4)
    first, second, third = called_layers(done.network, samples()).values()
    assert (first.weight != 0).sum(1).eq(2).all()  # of the two inputs of a group, no more than two
    kept = (second.weight != 0).squeeze(-1)  # 6 inputs: a run of four, and one of two
    assert (kept[:, :4].sum(1) == 2).all()
    assert kept[:, 4:].all()
    assert ((third.weight != 0).reshape(10, -1, 4).sum(-1) == 2).all()
    assert [layer.zeros for layer in done.layers] == [0, 8 * 3 * 2, 640]
    assert done.layers[2].bits == 1280 + 32 * 640


def test_magnitudes_are_kept_as_they_were() -> None:
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.1, 0.2, -0.3, 0.4]])
    done = n_of_m(nn.Sequential(layer), torch.ones(1, 8), 2, 4)
    (new,) = called_layers(done.network, torch.ones(1, 8)).values()
    assert new.weight.tolist() == torch.tensor([[0, -3, 2, 0, 0, 0, -0.3, 0.4]]).tolist()


def test_neighbours_of_a_convolution_are_channels_at_one_place() -> None:
    assert input_runs(nn.Conv1d(4, 1, 2), 2).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_ternary_descent_never_rises_and_ends_where_no_single_weight_can_improve() -> None:
    row, inputs = a_row(7, 50)
    weights = np.stack([row, row[::-1], 0.1 * row])
    hessian = 2 * inputs.T @ inputs
    scales, signs, losses = descended(weights, hessian, np.sign(weights))
    assert (losses[1:] <= losses[:-1] * (1 + 1e-12)).all()
    assert set(np.unique(signs)) <= {-1, 0, 1}

    def loss(other: Array) -> float:
        return sum(error(a, s * b, inputs) for a, s, b in zip(weights, scales, other, strict=True))

    assert losses[-1].sum() == pytest.approx(loss(signs))
    for place, value in itertools.product(np.ndindex(signs.shape), (-1, 0, 1)):
        other = signs.copy()
        other[place] = value
        assert loss(other) >= loss(signs) * (1 - 1e-6)


def test_ternary_rows_are_together_near_the_best_of_all_243_signs_each() -> None:
    """Descent ends in a local minimum, of which some rows have worse ones than the best."""
    torch.manual_seed(4)
    layer, values = nn.Linear(5, 40, bias=False), torch.randn(200, 5) * torch.tensor([1.0, 2, 3, 1, 2])
    rows, inputs = matrix(layer), values.double().numpy()
    (found,) = called_layers(ternary(nn.Sequential(layer), values).network, values).values()
    signs = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=5)))[
        :121
    ]  # of each and its negative, one
    outs = inputs @ signs.T
    best = 0.0
    for row in rows:
        wanted = inputs @ row
        best += float((wanted @ wanted - (wanted @ outs) ** 2 / (outs**2).sum(0)).min())
    lost = sum(error(row, other, inputs) for row, other in zip(rows, matrix(found), strict=True))
    assert best <= lost <= 1.1 * best


def test_ternary_weights_have_one_scale_for_each_output_and_two_bits() -> None:
    done = ternary(a_network(), samples())
    for layer in called_layers(done.network, samples()).values():
        for row in layer.weight:
            assert len(row[row != 0].abs().unique()) == 1
    sizes = [(6, 2 * 9), (8, 6 * 3), (10, 128)]
    assert [layer.bits for layer in done.layers] == [2 * rows * n + 32 * rows for rows, n in sizes]
    others_bits = 32 * (6 + 4 * 6 + 10)  # the bias, the norm's two and its two running ones, the last bias
    assert done.packed_bits == sum(layer.bits for layer in done.layers) + others_bits


def test_smartdeal_finds_pieces_that_are_powers_of_two_and_counts_their_bits() -> None:
    """Four pieces of three, the last nothing: with twice the identity as the basis, nothing is lost.

    A bit for each of 4 pieces, 9 coefficients of 4 bits, a basis of 9 bytes, and its step of 32 bits.
    """
    row = np.array([2.0, 0, 0, 0, -0.5, 0, 0, 0, 0.25, 0, 0, 0])
    found = factored(row, 3)
    np.testing.assert_allclose((found.coefficients @ found.basis).ravel(), row, atol=1e-6)
    assert found.bits == 4 + 9 * 4 + 9 * 8 + 32


def test_smartdeals_coefficients_are_seven_powers_of_two_and_its_basis_bytes() -> None:
    row = np.random.default_rng(2).normal(size=90)
    found = factored(row, 3)
    exponents = np.log2(np.abs(found.coefficients[found.coefficients != 0]))
    np.testing.assert_allclose(exponents, np.rint(exponents), atol=1e-12)
    assert exponents.max() - exponents.min() <= 6
    steps = 127 * found.basis / np.abs(found.basis).max()
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)

    def lost(factor: float) -> float:
        return float(((row - (found.coefficients @ (factor * found.basis)).ravel()) ** 2).sum())

    assert lost(1) < 0.05 * float((row**2).sum())
    assert lost(1) <= min(lost(0.98), lost(1.02))  # the basis is where least squares has it, to a step


def test_smartdeal_is_counted_output_by_output_over_all_groups() -> None:
    done = smartdeal(a_network(), samples())
    kernels = 6 * (6 + 6 * 3 * 4 + 72 + 32)  # of 2 channels x 3 rows, each of three
    tall = 8 * (5 + 5 * 4 * 4 + 128 + 32)  # 6 channels x 3 x 1: 18 weights in pieces of four
    dense = 10 * (32 + 32 * 4 * 4 + 128 + 32)
    assert [layer.bits for layer in done.layers] == [kernels, tall, dense]


def test_what_changes_nothing_gives_the_network_itself_and_leaves_the_given_one() -> None:
    network, values = a_network(), samples(200)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    same = solved_layers(network, values, lambda rows: rows.weights)
    torch.testing.assert_close(same(values), network(values), rtol=1e-4, atol=1e-4)
    obc(network, values, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_layers_outputs_keep_their_means_and_come_closer_than_by_magnitude() -> None:
    network, values = a_network(), samples(200)
    wanted = network(values)
    found, plain = (method(network, values, 2, 4).network(values) for method in (obc_n_of_m, n_of_m))
    torch.testing.assert_close(found.mean(0), wanted.mean(0), rtol=1e-3, atol=1e-4)
    assert (found - wanted).square().mean() < 0.5 * (plain - wanted).square().mean()


def test_zeros_stay_through_all_that_comes_after() -> None:
    done = compressed(a_network(), samples(), parsed("nm:2:4, obc:0.7, ternary"))
    for (_, layer), figures in zip(called_layers(done.network, samples()).items(), done.layers, strict=True):
        assert figures.zeros >= round(0.7 * layer.weight.numel())
    third = list(called_layers(done.network, samples()).values())[2]
    assert ((third.weight != 0).reshape(10, -1, 4).sum(-1) <= 2).all()


@pytest.mark.parametrize(
    "text", ["prune", "obc", "obc:0", "obc:1", "obc:1.5", "obc:nan", "nm:4:2", "nm:2", "obq:9", "obq:x", ""]
)
def test_what_is_no_method_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(ExportError, match=r"obc:0\.5.*nm:2:4.*ternary"):
        parsed(text)


def test_what_would_undo_few_bits_is_refused() -> None:
    with pytest.raises(ExportError, match="put 'ternary' last"):
        parsed("ternary,obc:0.5")
    with pytest.raises(ExportError, match="put 'smartdeal' last"):
        parsed("smartdeal,obq:4")


@pytest.mark.parametrize("text", ["obc:0.5", "nm:2:4", "obq:4", "ternary", "smartdeal"])
def test_without_samples_or_finite_scores_nothing_is_compressed(text: str) -> None:
    with pytest.raises(ExportError, match="there are none"):
        compressed(a_network(), samples(0), parsed(text))
    with pytest.raises(ExportError, match="not finite"):
        compressed(a_network(), samples() * torch.nan, parsed(text))


@pytest.mark.parametrize("text", ["obc:0.5", "obc:2:4", "obq:4", "ternary", "smartdeal"])
def test_layers_of_zeros_or_without_inputs_stay_finite(text: str) -> None:
    """An output whose weights are all 0, and an input that is 0 in every sample."""
    network = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    network[0].weight.data[1] = 0
    network[2].weight.data.zero_()
    values = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    values[:, 2] = 0
    done = compressed(network, values, parsed(text))
    assert done.network(values).isfinite().all()
    torch.testing.assert_close(done.network(values), network(values), rtol=0, atol=1e-6)
