"""Contributions, the choice of units, and the cut of module and optimiser."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import ARCHITECTURES, CHAINS, FEW, fancy, normalised_net, random_structure
from torch import nn

from fedhp.costs.live_tensors import LiveTensors
from fedhp.model.axes import AxisRef
from fedhp.model.building import initial_state, to_module
from fedhp.model.layout import Layout
from fedhp.model.modules import put_weights, take_weights
from fedhp.model.options import ModelConfig
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.pruning.contributions import STRIDE, Contributions
from fedhp.pruning.criteria import CRITERIA, Criterion, magnitude
from fedhp.pruning.cutting import cut, select
from fedhp.training.optimizers import allocate_state, state_tensors, unallocated
from fedhp.training.options import OPTIMIZERS, TrainConfig

OPTIMISERS = {
    "sgd-plain": TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.01),
    "sgd-momentum": TrainConfig(optimizer="sgd", momentum=0.9),
    "adam": TrainConfig(optimizer="adam", learning_rate=0.01, weight_decay=0.01),
    "adamw": TrainConfig(optimizer="adamw", learning_rate=0.01, weight_decay=0.1),
}


# --- contributions ---------------------------------------------------------------------------

ONE_GROUP = Layout({"g": 3}, {"w": (3, 2)}, {"w": (AxisRef("g"), None)}, {"g": 1})


def one_group() -> nn.ParameterDict:
    return nn.ParameterDict({"w": nn.Parameter(torch.ones(3, 2))})


def scripted(*scores: list[float]) -> Criterion:
    left = iter(scores)
    return Criterion(lambda seen: torch.tensor(next(left)), tracked=True)


def contributions(criterion: Criterion, module: nn.Module, seed: int = 0) -> Contributions:
    nothing = {"g": np.ones(len(module["w"]), np.float32)}
    return Contributions(ONE_GROUP, criterion, module, nothing, 0.0, np.random.default_rng(seed))


def look(tracker: Contributions) -> None:
    """Takes as many steps as one look is for."""
    for _ in range(STRIDE):
        tracker.observe()
        tracker.count()


def test_contributions_are_a_moving_average_as_shares_of_the_mean():
    """First (1, 3, 8) as it is; then half the way to (3, 3, 8): (2, 3, 8), mean 13/3. Look 20 counts a
    twentieth, and so does every later one: from (2, 3, 8) to (42, 23, 8) is (4, 4, 8), mean 16/3.
    """
    looks = [[1, 3, 8.0], [3, 3, 8.0], *[[2, 3, 8.0]] * 28, [42, 23, 8.0]]
    tracker = contributions(scripted(*looks), one_group())
    look(tracker)
    np.testing.assert_allclose(tracker.own()["g"], np.array([1, 3, 8]) / 4, rtol=1e-6)
    look(tracker)
    np.testing.assert_allclose(tracker.own()["g"], np.array([2, 3, 8]) * 3 / 13, rtol=1e-6)
    for _ in range(29):
        look(tracker)
    np.testing.assert_allclose(tracker.own()["g"], np.array([4, 4, 8]) * 3 / 16, rtol=1e-5)


def test_contributions_forget_the_units_cut():
    """Units 0 and 2 of the first cut stay, then only 2; averages go on where they were."""
    tracker = contributions(scripted([1, 3, 8.0], [3, 10.0], [28.0]), one_group())
    full = ONE_GROUP.full()
    ends, last = full.without("g", [1]), full.without("g", [0, 1])
    look(tracker)
    tracker.cut(full, ends)
    look(tracker)  # (1, 8) half the way to (3, 10): (2, 9)
    np.testing.assert_allclose(tracker.own()["g"], np.array([2, 9]) / 5.5, rtol=1e-6)
    tracker.cut(ends, last)
    np.testing.assert_allclose(tracker.own()["g"], np.array([1.0]), rtol=1e-6)


def test_a_group_without_any_contribution_has_equal_scores():
    tracker = contributions(scripted([0, 0, 0.0]), one_group())
    tracker.observe()
    assert tracker.own()["g"].tolist() == [1, 1, 1]


def test_a_criterion_that_ignores_the_data_scores_the_weights_of_now():
    """Rows of norm 2, 4 and 6 have the mean 4."""
    module = one_group()
    tracker = contributions(CRITERIA["magnitude"], module)
    tracker.observe()
    module["w"].data = torch.tensor([[2.0, 0], [0, 4], [6, 0]])
    np.testing.assert_allclose(tracker.own()["g"], np.array([0.5, 1, 1.5]), rtol=1e-6)


def test_random_scores_repeat_with_the_seed():
    first, again, other = (
        contributions(CRITERIA["random"], one_group(), seed).own()["g"].tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_contributions_see_what_enters_a_group():
    """In a chain a -> b -> head, b's score takes b's own weight and bias, not the head's columns of it.

    The inputs, which nothing enters, are judged by the columns of the first layer.
    """
    arch = architecture(ModelConfig("mlp", [3, 2], 1), (1, 1, 4), 2)
    module = to_module(arch, initial_state(arch, 0))
    seen = []

    def score(evidence):
        seen.append([tuple(rows.weights.shape) for rows in evidence.own])
        return torch.ones(len(evidence.own[0].weights))

    known = {group: np.ones(width, np.float32) for group, width in arch.layout.widths.items()}
    tracker = Contributions(arch.layout, Criterion(score, True), module, known, 0.5, np.random.default_rng())
    tracker.observe()
    assert seen == [[(4, 3)], [(3, 4), (3, 1)], [(2, 3), (2, 1)]]


def test_a_channel_counts_its_whole_kernel():
    """All ones: a 1x3x3 kernel has 9 entries, and its bias is 1 more: sqrt(10) each, equal shares."""
    arch = architecture(ModelConfig("cnn", [4, 3], 1), (1, 6, 6), 2)
    module = to_module(arch, initial_state(arch, 0))
    seen = []

    def score(evidence):
        seen.append(magnitude(evidence))
        return seen[-1]

    for parameter in module.parameters():
        parameter.data.fill_(1.0)
    known = {group: np.ones(width, np.float32) for group, width in arch.layout.widths.items()}
    Contributions(arch.layout, Criterion(score, False), module, known, 0.5, np.random.default_rng()).own()
    torch.testing.assert_close(seen[0], torch.full((4,), 10**0.5))


def test_known_and_own_scores_are_blended_as_shares_of_their_means():
    """Known (2, 4, 6) are shares (.5, 1, 1.5), own (3, 0, 3) are (1.5, 0, 1.5); a quarter of the first."""
    known = {"g": np.array([2, 4, 6], np.float32)}
    module = one_group()
    source = np.random.default_rng()
    tracker = Contributions(ONE_GROUP, scripted([3, 0, 3.0]), module, known, 0.25, source)
    tracker.observe()
    np.testing.assert_allclose(tracker.blended()["g"], [1.25, 0.25, 1.5], rtol=1e-6)


def test_activations_are_averaged_over_steps_and_forget_the_units_cut():
    """A chain 2 -> 3 -> 2 of ones and zeros, with images (1, 2) and (3, 0) and ReLU: a unit that adds its
    inputs says 3 and 3, one that takes the first alone 1 and 3, one that subtracts them from each other
    (first less second) 0 and 3: means 3, 2 and 1.5.
    """
    arch = architecture(ModelConfig("mlp", [3], 1, prune_inputs=False), (1, 1, 2), 2)
    module = to_module(arch, initial_state(arch, 0))
    with torch.no_grad():
        module.get_parameter("fc1.weight").copy_(torch.tensor([[1.0, 1], [1, 0], [1, -1]]))
        module.get_parameter("fc1.bias").zero_()
    known = {"fc1": np.ones(3, np.float32)}
    criterion = CRITERIA["activation"]
    tracker = Contributions(arch.layout, criterion, module, known, 0.0, np.random.default_rng())
    module(torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]]))
    look(tracker)
    np.testing.assert_allclose(tracker.own()["fc1"], np.array([3, 2, 1.5]) * 3 / 6.5, rtol=1e-6)
    full = arch.layout.full()
    sub = full.without("fc1", [1])
    cut(module, torch.optim.SGD(module.parameters()), arch.layout, full, sub)
    tracker.cut(full, sub)
    module(torch.tensor([[[[6.0, 4.0]]]]))  # the units left say 10 and 2
    look(tracker)
    np.testing.assert_allclose(tracker.own()["fc1"], np.array([6.5, 1.75]) / 4.125, rtol=1e-6)


def test_channels_are_judged_by_the_scale_of_their_normalisation():
    """|gamma| of 2, 1, 0, .5, .5 and 2 has the mean 1."""
    module, layout = normalised_net()
    module.get_parameter("norm.weight").data = torch.tensor([2.0, -1.0, 0.0, 0.5, -0.5, 2.0])
    known = {"c": np.ones(6, np.float32)}
    tracker = Contributions(layout, CRITERIA["bn_scale"], module, known, 0.0, np.random.default_rng())
    assert tracker.own()["c"].tolist() == [2.0, 1.0, 0.0, 0.5, 0.5, 2.0]


@pytest.mark.parametrize("name", [name for name, kind in CRITERIA.items() if kind.activations])
def test_nothing_is_left_on_the_module(name):
    arch = ARCHITECTURES["cnn-2-convs"]
    module = to_module(arch, initial_state(arch, 0))
    known = {group: np.ones(width, np.float32) for group, width in arch.layout.widths.items()}
    source = np.random.default_rng()
    tracker = Contributions(arch.layout, CRITERIA[name], module, known, 0.0, source)
    assert any(layer._forward_pre_hooks for layer in module.modules())
    tracker.close()
    assert not any(layer._forward_pre_hooks for layer in module.modules())


# --- selection -------------------------------------------------------------------------------


def chosen(scores, count, *, kept=None, floor=1, marginal=0.0) -> list[int]:
    mask = np.ones(len(scores), bool) if kept is None else np.array(kept, bool)
    result = select({"g": np.array(scores)}, Structure({"g": mask}), {"g": count}, {"g": floor}, marginal)
    return list(result.kept("g"))


@pytest.mark.parametrize(
    ("scores", "count", "options", "wanted"),
    [
        ([1, 3, 2, 4], 2, {}, [1, 3]),
        ([1, 3, 2, 4], 9, {}, [0, 1, 2, 3]),
        ([2, 1, 2, 2], 2, {}, [0, 2]),  # of equal scores the lower unit
        ([0, 0, 0, 0], 3, {}, [0, 1, 2]),
        ([1, 3, 2, 4], 1, {"floor": 3}, [1, 2, 3]),
        ([5, 7], 1, {"kept": [0, 1, 0, 1]}, [3]),  # scores are in the order of the kept units
        ([5, 7], 0, {"kept": [0, 1, 0, 1], "floor": 3}, [1, 3]),  # below the floor already
        ([0.1, 2, 0.9, 1], 4, {"marginal": 0.95}, [1, 3]),
        ([0.1, 2, 0.9, 1], 1, {"marginal": 0.5}, [1]),  # marginal never keeps more
        ([0.1, 0.2, 0.3, 3.4], 4, {"marginal": 0.5, "floor": 2}, [2, 3]),
        ([0.5, 1.5], 2, {"marginal": 0.5}, [0, 1]),  # at the share is not below it
    ],
)
def test_the_best_units_stay(scores, count, options, wanted):
    assert chosen(scores, count, **options) == wanted


@FEW
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 12), st.integers(1, 12))
def test_nobody_stays_who_scored_below_one_who_goes(scores, count, floor):
    kept = chosen(scores, count, floor=floor)
    assert len(kept) == min(max(count, floor), len(scores))
    gone = [unit for unit in range(len(scores)) if unit not in kept]
    assert all((scores[k], -k) > (scores[g], -g) for k in kept for g in gone)


def test_groups_are_selected_separately():
    full = Structure.full({"a": 2, "b": 2})
    scores = {"a": np.array([1.0, 2.0]), "b": np.array([9.0, 8.0])}
    result = select(scores, full, {"a": 1, "b": 1}, {"a": 1, "b": 1})
    assert {g: list(result.kept(g)) for g in "ab"} == {"a": [1], "b": [0]}


# --- the cut ---------------------------------------------------------------------------------


class Training:
    """A module in training, with random inputs, and everything that it keeps as NumPy arrays.

    In float64: Adam divides gradients by their own size, and would show the rounding of the smallest.
    """

    def __init__(self, case: str, config: TrainConfig) -> None:
        self.arch = ARCHITECTURES[case]
        self.module = to_module(self.arch, initial_state(self.arch, 1)).double()
        self.config = config
        self.optimizer = unallocated(self.module.parameters(), config)
        allocate_state(self.optimizer, config)

    def step(self, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        images = torch.randn(6, *self.arch.input_shape, generator=source, dtype=torch.float64)
        if self.num_inputs is not None:
            images = images.flatten(1)[:, : self.num_inputs]
        labels = torch.randint(0, self.arch.num_classes, (6,), generator=source)
        self.module.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.module(images), labels).backward()
        self.optimizer.step()

    @property
    def num_inputs(self) -> int | None:
        """How many inputs the module takes; None where it takes whole samples."""
        return (
            self.module.get_parameter("fc1.weight").shape[1] if "inputs" in self.arch.layout.widths else None
        )

    def snapshot(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns, per key (parameter or optimiser state), the arrays by parameter name."""
        taken = {"parameter": {n: p.detach().numpy().copy() for n, p in self.module.named_parameters()}}
        for key in OPTIMIZERS[self.config.optimizer].state_names(self.config):
            taken[key] = {
                n: self.optimizer.state[p][key].numpy().copy() for n, p in self.module.named_parameters()
            }
        return taken


def rebuilt(training: Training, counts, arrays: dict[str, dict[str, np.ndarray]], steps: int) -> Training:
    """Builds a smaller module and its optimiser from arrays, without `cut`."""
    made = Training.__new__(Training)
    made.arch, made.config = training.arch, training.config
    made.module = made.arch.build(counts)
    put_weights(made.module, made.arch.layout, {**take_weights(training.module), **arrays["parameter"]})
    made.optimizer = unallocated(made.module.parameters(), made.config)
    for name, parameter in made.module.named_parameters():
        for key in arrays.keys() - {"parameter"}:
            made.optimizer.state[parameter][key] = torch.empty_like(parameter.detach())
            made.optimizer.state[parameter][key].copy_(torch.tensor(arrays[key][name]))
        if made.config.optimizer != "sgd":
            made.optimizer.state[parameter]["step"] = torch.tensor(float(steps))
    return made


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_a_cut_slices_parameters_and_optimiser_state_and_training_goes_on(case, optimiser):
    training = Training(case, OPTIMISERS[optimiser])
    layout = training.arch.layout
    training.step(0)
    training.step(1)
    objects = list(training.module.parameters())
    grouped = [[id(p) for p in g["params"]] for g in training.optimizer.param_groups]
    within = layout.full()
    for seed, share in ((1, 0.8), (2, 0.5)):
        before = training.snapshot()
        sub = random_structure(layout, seed, share, within)
        kept = {g: np.flatnonzero(np.isin(within.kept(g), sub.kept(g))) for g in layout.widths}
        cut(training.module, training.optimizer, layout, within, sub)
        if case in CHAINS:
            wanted = {key: fancy(arrays, kept) for key, arrays in before.items()}
        else:
            wanted = {key: layout.slice(arrays, within, sub) for key, arrays in before.items()}
        after = training.snapshot()
        for key, arrays in wanted.items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(after[key][name], array, err_msg=f"{key} of {name}")
        within = sub
    assert all(now is then for now, then in zip(training.module.parameters(), objects, strict=True))
    assert [[id(p) for p in g["params"]] for g in training.optimizer.param_groups] == grouped
    assert set(training.optimizer.state) <= set(objects)

    independent = rebuilt(training, within.counts, wanted, steps=2)
    for seed in (7, 8):
        training.step(seed)
        independent.step(seed)
    for key, arrays in independent.snapshot().items():
        for name, array in arrays.items():
            np.testing.assert_allclose(training.snapshot()[key][name], array, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["conv1.weight", "conv2.weight"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_channels_lie_innermost_before_and_after_a_cut(optimiser, name):
    """The fused update goes through weights, gradients and state as they lie in memory.

    The first convolution reads one channel: torch calls its weights innermost in either order, and takes the
    maps that it makes for what the strides say.
    """
    training = Training("cnn-2-convs", OPTIMISERS[optimiser])
    layout = training.arch.layout
    for within, sub in ((None, None), (layout.full(), random_structure(layout, 1, 0.6))):
        if within is not None:
            cut(training.module, training.optimizer, layout, within, sub)
        training.step(0)
        weight = training.module.get_parameter(name)
        _, inputs, height, width = weight.shape
        assert weight.stride() == (inputs * height * width, 1, width * inputs, inputs)
        assert weight.grad is not None
        assert weight.grad.stride() == weight.stride()
        for kept in training.optimizer.state[weight].values():
            assert kept.dim() == 0 or kept.stride() == weight.stride()


def test_no_gradient_is_left():
    training = Training("cnn-2-convs", OPTIMISERS["sgd-momentum"])
    layout = training.arch.layout
    training.step(0)
    assert all(p.grad is not None for p in training.module.parameters())
    cut(training.module, training.optimizer, layout, layout.full(), random_structure(layout, 0))
    left = [name for name, p in training.module.named_parameters() if p.grad is not None]
    assert left == []


def test_layers_say_their_new_sizes():
    training = Training("cnn-2-convs", OPTIMISERS["sgd-plain"])
    layout = training.arch.layout
    sub = layout.full().without("conv1", [0]).without("conv2", [1, 2]).without("fc1", [3])
    cut(training.module, training.optimizer, layout, layout.full(), sub)
    layers = dict(training.module.named_children())
    assert (layers["conv2"].in_channels, layers["conv2"].out_channels) == (4, 4)
    assert (layers["fc1"].in_features, layers["fc1"].out_features) == (8, 6)
    assert layers["head"].in_features == 6


def test_cutting_nothing_changes_nothing():
    training = Training("mlp-1-hidden", OPTIMISERS["adam"])
    training.step(0)
    storages = [p.data_ptr() for p in training.module.parameters()]
    full = training.arch.layout.full()
    cut(training.module, training.optimizer, training.arch.layout, full, full)
    assert [p.data_ptr() for p in training.module.parameters()] == storages


def test_state_that_is_not_of_the_parameters_shape_is_refused():
    """As Adafactor keeps: one row and one column instead of a whole matrix."""
    training = Training("mlp-1-hidden", OPTIMISERS["sgd-plain"])
    layout = training.arch.layout
    weight = training.module.get_parameter("fc1.weight")
    training.optimizer.state[weight]["row_var"] = torch.zeros(11, 1)
    with pytest.raises(TypeError, match=r"SGD keeps 'row_var' of shape \(11, 1\) for fc1.weight of shape"):
        cut(training.module, training.optimizer, layout, layout.full(), random_structure(layout, 0))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("case", ["mlp-3-hidden", "cnn-2-convs"])
def test_a_cut_holds_one_tensor_twice_at_most(case, optimiser):
    """Beside what lived before: the largest cut tensor, and the positions to take, 8 bytes each."""
    training = Training(case, OPTIMISERS[optimiser])
    layout = training.arch.layout
    training.step(0)
    training.module.zero_grad(set_to_none=True)
    sub = random_structure(layout, 3, 0.9)
    alive = [*training.module.parameters(), *state_tensors(training.optimizer)]
    before = sum(t.untyped_storage().nbytes() for t in alive)
    del alive
    with LiveTensors([*training.module.parameters(), *state_tensors(training.optimizer)]) as meter:
        cut(training.module, training.optimizer, layout, layout.full(), sub)
    largest = max(p.untyped_storage().nbytes() for p in training.module.parameters())
    positions = 8 * max(sum(p.shape) for p in training.module.parameters())
    assert before < meter.peak <= before + largest + positions
    after = [*training.module.parameters(), *state_tensors(training.optimizer)]
    assert sum(t.untyped_storage().nbytes() for t in after) < before
