"""The oracle: a compact model computes what the full one does with the dropped units silenced."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import ARCHITECTURES, CHAINS, FEW, structures
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.building import fresh_state, initial_state, to_module
from fedhp.model.inference import to_whole_module
from fedhp.model.modules import thin_before_convolutions
from fedhp.model.options import ModelConfig
from fedhp.model.structure import Structure
from fedhp.model.traced import shipped, traced
from fedhp.model.zoo import MODELS, architecture


def silence(module: nn.Module, structure: Structure) -> None:
    """Multiplies each group's activations, after its ReLU, and the inputs by the group's mask."""
    for group, mask in structure.masks.items():
        kept = torch.tensor(mask, dtype=torch.float32)

        def hook(_module, _inputs, output, kept=kept):
            return output * kept.view(1, -1, *[1] * (output.dim() - 2))

        name = "flatten" if group == "inputs" else f"relu_{group}"
        module.get_submodule(name).register_forward_hook(hook)


def test_every_model_stands_before_the_oracle():
    pytest.importorskip("snntorch")
    assert {case.split("-")[0] for case in ARCHITECTURES} == set(MODELS)


@pytest.mark.parametrize("case", CHAINS)
def test_compact_equals_full_with_the_dropped_units_zeroed(case):
    arch = ARCHITECTURES[case]
    state = initial_state(arch, 7)

    @FEW
    @given(st.data())
    def check(data):
        structure = data.draw(structures(arch.layout))
        samples = torch.randn(4, *arch.input_shape, generator=torch.Generator().manual_seed(1))
        full = to_module(arch, state)
        silence(full, structure)
        compact = to_whole_module(arch, state.cut(arch.layout, structure))
        with torch.no_grad():
            wanted, got = full(samples.clone()), compact(samples.clone())
        assert got.shape == (4, arch.num_classes)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)

    check()


def test_a_compact_module_takes_the_kept_inputs_and_the_whole_one_picks_them():
    """Of 15 inputs 2 and 9 stay: the compact module's samples have two entries, the whole one's all."""
    arch = ARCHITECTURES["mlp-1-hidden"]
    structure = arch.layout.full().without("inputs", [n for n in range(15) if n not in (2, 9)])
    state = initial_state(arch, 7).cut(arch.layout, structure)
    samples = torch.randn(4, *arch.input_shape, generator=torch.Generator().manual_seed(1))
    assert list(arch.kept_inputs(structure)) == [2, 9]
    picked = to_module(arch, state)(samples.reshape(4, 15)[:, [2, 9]])
    torch.testing.assert_close(to_whole_module(arch, state)(samples), picked, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("case", "inputs"), [("mlp-1-hidden", True), ("mlp-whole-inputs", False), ("cnn-1-conv", False)]
)
def test_inputs_are_units_of_dense_networks_unless_switched_off(case, inputs):
    arch = ARCHITECTURES[case]
    assert ("inputs" in arch.layout.widths) == inputs
    assert arch.kept_inputs(arch.layout.full()) is None


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_layers_have_the_compact_sizes(case):
    arch = ARCHITECTURES[case]
    counts = arch.layout.smallest()
    shapes = {name: tuple(p.shape) for name, p in arch.build(counts).named_parameters()}
    assert shapes == {name: arch.layout.shape(name, counts) for name in arch.layout.trained}


def test_the_size_of_the_usual_mlp():
    """784*300 + 300 + 300*100 + 100 + 100*10 + 10 = 266,610."""
    arch = architecture(ModelConfig("mlp", [300, 100]), (1, 28, 28), 10)
    assert arch.layout.num_parameters(arch.layout.widths) == 266_610


def test_the_size_of_the_usual_cnn():
    """9*8 + 8 + 9*8*16 + 16 + 7*7*16*64 + 64 + 64*10 + 10 = 52,138, with sides 28, 14 and 7."""
    arch = architecture(ModelConfig("cnn", [8, 16, 64]), (1, 28, 28), 10)
    assert arch.layout.num_parameters(arch.layout.widths) == 52_138


def test_initial_weights_are_those_of_torch_in_distribution():
    """Uniform in +-1/sqrt(fan_in): fan_in 784 gives 1/28 and a variance of (1/28)^2 / 3."""
    arch = architecture(ModelConfig("mlp", [300, 100]), (1, 28, 28), 10)
    state = initial_state(arch, 0)
    for name, fan_in in {"fc1.weight": 784, "fc1.bias": 784, "fc2.bias": 300, "head.weight": 100}.items():
        weights, bound = state.weights[name], fan_in**-0.5
        assert abs(weights).max() <= bound
        assert abs(weights).max() > 0.95 * bound
        assert weights.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_initial_weights_follow_from_the_seed_alone():
    arch = ARCHITECTURES["cnn-2-convs"]
    torch.manual_seed(1)
    first = initial_state(arch, 5)
    torch.manual_seed(2)
    second = initial_state(arch, 5)
    assert all((first.weights[n] == second.weights[n]).all() for n in first.weights)
    other = initial_state(arch, 6)
    assert not any((first.weights[n] == other.weights[n]).all() for n in first.weights)


def test_a_module_copies_the_state():
    arch = ARCHITECTURES["mlp-1-hidden"]
    state = initial_state(arch, 0)
    before = state.weights["head.bias"].copy()
    with torch.no_grad():
        for parameter in to_module(arch, state).parameters():
            parameter.zero_()
    assert (state.weights["head.bias"] == before).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"name": "resnet"},
            "lenet5, fedavg_cnn, heterofl_cnn, spiking_mlp, spiking_cnn, got 'resnet'",
        ),
        ({"norm": "layer"}, "batch, group, got 'layer'"),
        ({"widths": [3, 0]}, r"model.widths\[1\] must be at least 1, got 0"),
        ({"widths": [8, 4], "floor": 5}, "at most the smallest width, 4, got 5"),
        ({"floor": 0}, "model.floor must be at least 1, got 0"),
    ],
)
def test_impossible_models_are_refused(values, said):
    with pytest.raises(ScenarioError, match=said):
        ModelConfig(**values)


@pytest.mark.parametrize(
    ("widths", "shape", "said"),
    [
        ([8], (1, 9, 9), "at least two widths"),
        ([8, 8], (81,), "takes images"),
        ([8, 8, 8], (1, 9, 3), "halves the image 2 times"),
        (
            [8, 8],
            (1, 1, 30),
            r"features of shape \(30,\) have no height .* set model.name=mlp, or conv1d if .* time",
        ),
        ([8, 8], (9, 1, 128), r"samples of shape \(9, 1, 128\) have no height .* model.name=mlp, or conv1d"),
        ([8, 8], (1, 20, 1), r"samples of shape \(1, 20, 1\) have no height"),
    ],
)
def test_images_that_the_cnn_cannot_take_are_refused(widths, shape, said):
    with pytest.raises(ScenarioError, match=said):
        architecture(ModelConfig("cnn", widths), shape, 10)


@pytest.mark.parametrize("name", ["vgg11", "conv1d"])
def test_a_network_that_is_too_large_is_refused_before_it_is_built(name):
    """A hundred thousand channels after as many: ten billion weights for each place of a kernel."""
    widths = [100_000] * (8 if name == "vgg11" else 3)
    with pytest.raises(ScenarioError, match="the most that fedhp takes; lower "):
        architecture(ModelConfig(name, widths), (1, 8, 8), 3)


@pytest.mark.parametrize(
    ("norm", "widths", "shape"),
    [
        ("batch", [8, 12, 6], (1, 9, 128)),
        ("batch", [3, 1, 4], (3, 1, 7)),
        ("group", [8, 12, 6, 16], (1, 9, 128)),
        ("group", [4, 3, 4], (3, 1, 4)),
    ],
)
def test_the_declared_layout_of_windows_is_what_tracing_tells(norm, widths, shape):
    """Widths of 1, or of one group of channels, are fixed: nothing of them could be cut."""
    declared = architecture(ModelConfig("conv1d", widths, 1, norm=norm), shape, 5).layout
    told = traced(shipped("conv1d", norm, widths, shape, 5), 1, 5).layout
    for field in fields(told):
        assert getattr(declared, field.name) == getattr(told, field.name), field.name
    assert (list(declared.widths), list(declared.shapes)) == (list(told.widths), list(told.shapes))


def test_windows_without_anything_to_cut_are_refused():
    with pytest.raises(ScenarioError, match="'conv1d' cannot be pruned: it has no units"):
        architecture(ModelConfig("conv1d", [4, 2], 1, norm="group"), (1, 3, 16), 5)


def perceptron(input_shape, num_classes, widths=(7, 5)):
    sizes = [input_shape[1], *widths, num_classes]
    layers = [nn.Linear(one, other) for one, other in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize(("given", "made"), [([], [7, 5]), ([3], [3])])
def test_a_network_of_ones_own_has_its_own_widths_unless_some_are_given(given, made):
    arch = architecture(ModelConfig(target=f"{__name__}:perceptron", widths=given, floor=1), (1, 9), 4)
    assert list(arch.layout.widths.values()) == made


def shortcuts(input_shape, num_classes):
    """Layers that skip places, one of them where padding adds places."""
    convolutions = [nn.Conv2d(input_shape[0], 8, 1, stride=(2, 3)), nn.Conv2d(8, 6, 1, stride=2, padding=1)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes))


def test_layers_that_are_given_only_the_places_that_they_look_at_compute_the_same():
    """Against a sum over channels of every second row and third column."""
    arch = architecture(ModelConfig(target=f"{__name__}:shortcuts"), (4, 8, 11), 3)
    module = to_module(arch, initial_state(arch, 7)).eval()
    thin_before_convolutions(module, arch.layout)
    # The padded one still skips places itself.
    assert [module.get_submodule(name).stride for name in "01"] == [(1, 1), (2, 2)]
    samples = torch.randn(4, *arch.input_shape, generator=torch.Generator().manual_seed(1))
    first = module.get_submodule("0")
    with torch.no_grad():
        expected = torch.einsum("nchw,oc->nohw", samples[:, :, ::2, ::3], first.weight[:, :, 0, 0])
        expected = expected + first.bias[:, None, None]
        torch.testing.assert_close(first(samples), expected)


LEARNT = {
    "hidden.weight": torch.linspace(-1, 1, 8 * 6).reshape(6, 8),
    "hidden.bias": torch.arange(6.0),
}


class Pretrained(nn.Module):
    """A hidden layer that comes learnt, and a head that is drawn anew."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, num_classes)
        self.load_state_dict({**self.state_dict(), **LEARNT})

    def forward(self, x):
        return self.head(self.hidden(self.stem(x.flatten(1)).relu()).relu())


def test_what_was_learnt_before_keeps_its_scale_when_a_budget_cuts_it():
    """Of 8 and 6 units 2 and 3 stay. The head, drawn for 6 inputs, is scaled to its 3: by the root of 2."""
    arch = architecture(ModelConfig(target=f"{__name__}:Pretrained", floor=1), (1, 2, 2), 3)
    structure = arch.layout.full().without("stem", range(2, 8)).without("hidden", [0, 2, 4])
    drawn, fresh = initial_state(arch, 5).weights, fresh_state(arch, structure, 5).weights
    hidden = LEARNT["hidden.weight"][[1, 3, 5]][:, :2]
    torch.testing.assert_close(torch.tensor(fresh["hidden.weight"]), hidden, atol=0, rtol=0)
    assert fresh["hidden.bias"].tolist() == [1, 3, 5]
    assert fresh["head.weight"] == pytest.approx(drawn["head.weight"][:, [1, 3, 5]] * 2**0.5)
    assert fresh["head.bias"] == pytest.approx(drawn["head.bias"] * 2**0.5)
    assert (fresh["stem.weight"] == drawn["stem.weight"][:2]).all()
