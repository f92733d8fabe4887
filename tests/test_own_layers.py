"""Layers of one's own, added to the tracer by a line: the cut network against the full one, silenced."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import (
    FEW,
    compact_and_silenced,
    random_shard,
    small_recipe,
    small_task,
    structures,
    unsettled,
)
from torch import nn

import fedhp
from fedhp.errors import ScenarioError
from fedhp.model.options import ModelConfig
from fedhp.model.wiring import WIRING, keeps_channels, makes_channels, mixes_channels
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.training.batches import MemoryConfig
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally


class Surrogate(torch.autograd.Function):
    """A spike where the threshold is passed, with the derivative of a sigmoid: no function that is known."""

    @staticmethod
    def forward(ctx, potential):
        ctx.save_for_backward(potential)
        return (potential > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        (potential,) = ctx.saved_tensors
        slope = potential.sigmoid()
        return gradient * slope * (1 - slope)


class Spikes(nn.Module):
    """Fires where a channel's own threshold is passed, and nowhere at 0."""

    def __init__(self, num_channels):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, num_channels))
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * Surrogate.apply(x * self.scale.view(-1, *[1] * (x.dim() - 2)) * self.gain)


class Einsum(nn.Module):
    """A 1x1 convolution by a function that is not known."""

    def __init__(self, taken, made):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(made, taken) / taken**0.5)
        self.bias = nn.Parameter(torch.zeros(made))

    def forward(self, x):
        return torch.einsum("bi...,oi->bo...", x, self.weight) + self.bias.view(-1, *[1] * (x.dim() - 2))


class Attention(nn.Module):
    """Every place looks at all places and channels."""

    def __init__(self, num_channels):
        super().__init__()
        self.ask = nn.Linear(num_channels, num_channels)

    def forward(self, x):
        rows = x.flatten(2).mT
        return (torch.softmax(self.ask(rows) @ rows.mT, -1) @ rows).mT.view_as(x)


class Own(nn.Module):
    """All three, and layers of torch between them."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 6, 3, padding=1)
        self.spikes = Spikes(6)
        self.dense = Einsum(6, 8)
        self.narrow = nn.Conv2d(8, 5, 1)
        self.attention = Attention(5)
        self.wide = nn.Conv2d(5, 7, 1)
        self.again = Spikes(7)
        self.head = nn.Linear(7, num_classes)

    def forward(self, x):
        x = self.narrow(self.dense(self.spikes(self.conv(x))).relu())
        return self.head(self.again(self.wide(self.attention(x))).mean((2, 3)))


WIRING[Spikes] = keeps_channels
WIRING[Einsum] = makes_channels
WIRING[Attention] = mixes_channels

TARGET = f"{__name__}:Own"


def traced(kind: type[nn.Module] = Own):
    return architecture(ModelConfig(target=f"{__name__}:{kind.__name__}", floor=1), (2, 8, 8), 3)


def test_layers_with_a_rule_make_keep_and_mix_channels_as_it_says():
    layout = traced().layout
    assert layout.widths == {"conv": 6, "dense": 8, "wide": 7}, "those of 'narrow' are mixed"
    indexed = {name: [p.group for p in layout.places(name, layout.widths)] for name in layout.shapes}
    assert indexed["spikes.scale"] == ["conv"]
    assert indexed["spikes.gain"] == []
    assert indexed["dense.weight"] == ["dense", "conv"]
    assert indexed["dense.bias"] == ["dense"]
    assert indexed["attention.ask.weight"] == []
    assert indexed["again.scale"] == ["wide"]


def test_the_cut_network_is_the_full_one_with_the_dropped_units_zeroed():
    arch = traced()
    state = unsettled(arch)

    @FEW
    @given(st.data())
    def check(data):
        structure = data.draw(structures(arch.layout))
        got, wanted = compact_and_silenced(arch, state, structure, 4)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)

    check()


def test_it_trains_within_its_budget_and_shrinks():
    arch = traced()
    shard = random_shard(arch.input_shape, 3, 64)
    prune = PruneConfig(target_compression=1.5, start=0.1, end=0.7, cuts=3)
    recipe = small_recipe(
        arch, TrainConfig(batch_size=8, device="cpu"), prune, MemoryConfig("fill", max_batch=32)
    )
    budget = recipe.memory_model(1).training_bytes(arch.layout.widths, 8)
    update = train_locally(recipe, small_task(recipe, shard, budget), shard)
    assert update.state.structure.counts == recipe.schedule.counts(1.0) != arch.layout.widths
    assert update.statistics.memory_measured_bytes <= update.statistics.memory_predicted_bytes <= budget


def test_what_a_run_made_of_it_is_a_plain_module_again(tmp_path):
    values = {"model.target": TARGET, "model.widths": [], "prune.target_compression": 1.5, "train.epochs": 2}
    run = fedhp.train("quickstart", tmp_path / "run", **values, **{"data.max_train": 200})
    module = fedhp.load_model(run.folder, trust_target=True)
    assert isinstance(module, Own)
    assert len(module.spikes.scale) == module.conv.out_channels < 6
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


class Unruled(Own):
    """One of whose layers has no rule: that of its parent is not its own."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.dense = type("Other", (Einsum,), {})(6, 8)


class Misruled(Own):
    """A layer that gives other channels than it takes, though it is said to keep them."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.spikes = nn.PixelUnshuffle(2)
        self.dense = Einsum(24, 8)


class Crooked(Own):
    """A layer said to keep channels, whose parameter has another number of rows."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.spikes = nn.Linear(8, 8)


class Transposed(Own):
    """A layer said to make channels, whose weight is written the other way round."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.dense = Backwards(6, 8)


class Backwards(nn.Module):
    def __init__(self, taken, made):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(taken, made))

    def forward(self, x):
        return torch.einsum("bihw,io->bohw", x, self.weight) if x.dim() > 2 else x @ self.weight


class Written(Own):
    """A layer that writes down how many channels it takes."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.spikes = Six()


class Six(nn.Module):
    def forward(self, x):
        assert x.shape[1] == 6
        return x


@pytest.mark.parametrize(
    ("kind", "layer", "said"),
    [
        (Unruled, None, "'einsum' in 'dense' is not known to keep channels apart"),
        (Misruled, nn.PixelUnshuffle, r"'spikes' \(PixelUnshuffle\) has a rule by which it gives 6 channels"),
        (Transposed, Backwards, r"'dense' .* make 8 channels of 6 .* begin with \(8, 6\), and is \(6, 8\)"),
        (Crooked, nn.Linear, r"'spikes' \(Linear\) has a rule .* 'spikes.weight' has 8 for 6 channels"),
    ],
)
def test_a_rule_that_a_layer_does_not_keep_to_is_refused_by_the_layers_name(kind, layer, said, monkeypatch):
    if layer is not None:
        rule = makes_channels if layer is Backwards else keeps_channels
        monkeypatch.setitem(WIRING, layer, rule)
    with pytest.raises(ScenarioError, match=said):
        traced(kind)


def test_a_layer_that_takes_no_fewer_channels_keeps_them_all(monkeypatch):
    monkeypatch.setitem(WIRING, Six, keeps_channels)
    assert traced(Written).layout.widths == {"dense": 8, "wide": 7}
