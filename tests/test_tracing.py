"""Traced wiring against the oracle: what is cut out must be what the full model can be silenced at."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import ARCHITECTURES, CHAINS, FEW, random_shard, small_recipe, small_task, structures
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as users write it

from fedhp.errors import ScenarioError
from fedhp.memory import MemoryConfig
from fedhp.models import Architecture, ModelConfig, architecture, initial_state, to_module
from fedhp.modules import batch_norms
from fedhp.optimizers import TrainConfig
from fedhp.schedule import PruneConfig
from fedhp.state import ModelState
from fedhp.structure import AxisRef
from fedhp.tracing import trace
from fedhp.trainer import train_locally


class Joined(nn.Module):
    """Dense blocks: each layer sees what all layers before it made, and the image itself."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.one = nn.Conv2d(input_shape[0], 4, 3, padding=1)
        self.two = nn.Conv2d(input_shape[0] + 4, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(input_shape[0] + 9)
        self.head = nn.Linear((input_shape[0] + 9) * 16, num_classes)

    def forward(self, x):
        y = torch.cat([x, F.relu(self.one(x))], dim=1)
        y = torch.cat([F.relu(self.two(y)), y], 1)
        y = F.max_pool2d(F.relu(self.norm(y)), 2)
        return self.head(y.view(y.size(0), -1))


class Viewed(nn.Module):
    """Rows by ``view``, which torch makes only where channels lie outermost; those of a point lie either."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.wide = nn.Conv2d(input_shape[0], 6, 3, padding=1)
        self.point = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5 * 64, num_classes)

    def forward(self, x):
        x = F.relu(self.point(F.relu(self.wide(x))))
        return self.head(x.view(x.size(0), -1))


class Separable(nn.Module):
    """Depthwise with a multiplier, grouped, group-normalised; a gate of squeeze and excitation."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.point = nn.Conv2d(16, 12, 1)
        self.grouped = nn.Conv2d(12, 6, 3, padding=1, groups=3)
        self.norm = nn.GroupNorm(2, 12)
        self.squeeze = nn.Conv2d(6, 4, 1)
        self.excite = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        y = F.relu(self.depthwise(torch.relu(self.stem(x))))
        y = F.relu(self.grouped(F.relu(self.norm(self.point(y)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((y * gate).mean((2, 3)))


class Streams(nn.Module):
    """Two branches that are joined, then added to one layer: its channels belong to two groups."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.left = nn.Conv2d(input_shape[0], 3, 1)
        self.right = nn.Conv2d(input_shape[0], 4, 3, padding=1)
        self.both = nn.Conv2d(input_shape[0], 7, 3, padding=1)
        self.again = nn.Conv2d(7, 7, 3, padding=1)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(7 * 64, 5)
        self.norm = nn.BatchNorm1d(5, affine=False)
        self.head = nn.Linear(5, num_classes)

    def forward(self, x):
        y = torch.cat((self.left(x), self.right(x)), dim=1) + self.both(x)
        y = y + self.again(F.relu(y))
        y = F.relu(self.again(F.relu(y)) + y)
        return self.head(F.relu(self.norm(self.hidden(self.flatten(y)))))


FOREIGN = {
    kind.__name__: architecture(ModelConfig(target=f"{__name__}:{kind.__name__}", floor=1), (2, 8, 8), 3)
    for kind in (Joined, Viewed, Separable, Streams)
}
TRACED = {case: arch for case, arch in ARCHITECTURES.items() if case not in CHAINS} | FOREIGN


def unsettled(arch: Architecture) -> ModelState:
    """The full model with statistics as after some training, and biases that are not zero."""
    rng = np.random.default_rng(0)
    state = initial_state(arch, 7)
    weights = {
        name: array + rng.normal(size=array.shape).astype(np.float32) / 9
        for name, array in state.weights.items()
    }
    for name in arch.layout.buffers:
        if name.endswith("running_square"):
            mean = weights[name.replace("square", "mean")]
            weights[name] = (mean**2 + rng.uniform(0.5, 2, mean.shape)).astype(np.float32)
    return ModelState(weights, state.structure)


def silenced(arch: Architecture, state: ModelState, structure) -> ModelState:
    """The full model, all that belongs to dropped units made zero: their channels are zero everywhere."""
    weights = {name: array.copy() for name, array in state.weights.items()}
    for name, array in weights.items():
        for place in arch.layout.places(name, arch.layout.widths):
            index = [slice(None)] * array.ndim
            dropped = np.flatnonzero(~structure.masks[place.group])
            entries = (place.start + dropped[:, None] * place.span + np.arange(place.span)).ravel()
            index[place.axis] = entries
            array[tuple(index)] = 0
    return ModelState(weights, state.structure)


@pytest.mark.parametrize("case", TRACED)
def test_compact_equals_full_with_the_dropped_units_zeroed(case):
    arch = TRACED[case]
    state = unsettled(arch)

    @FEW
    @given(st.data())
    def check(data):
        structure = data.draw(structures(arch.layout))
        samples = torch.randn(4, *arch.input_shape, generator=torch.Generator().manual_seed(1))
        full = to_module(arch, silenced(arch, state, structure)).eval()
        compact = to_module(arch, state.cut(arch.layout, structure)).eval()
        with torch.no_grad():
            wanted, got = full(samples.clone()), compact(samples.clone())
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)

    check()


@pytest.mark.parametrize("case", TRACED)
def test_a_group_is_cut_from_every_tensor_it_indexes(case):
    """Fewer channels really are there: the compact module's tensors hold no more than the structure says."""
    arch = TRACED[case]
    counts = arch.layout.smallest()
    module = to_module(arch, initial_state(arch, 0).cut(arch.layout, _first(arch, counts)))
    assert sum(p.numel() for p in module.parameters()) == arch.layout.num_parameters(counts)
    assert all(count == 1 for count in counts.values())
    module.train()(torch.zeros(2, *arch.input_shape)).sum().backward()


def _first(arch, counts):
    full = arch.layout.full()
    for group, count in counts.items():
        full = full.without(group, np.arange(count, arch.layout.widths[group]))
    return full


@pytest.mark.parametrize("case", ["mlp-whole-inputs", "cnn-1-conv", "cnn-2-convs"])
def test_declared_layouts_are_those_that_tracing_finds(case):
    arch = ARCHITECTURES[case]
    declared, module = arch.layout, arch.build(arch.layout.widths).to("meta")
    floor = max(declared.floors.values())
    traced = trace(module, arch.input_shape, arch.num_classes, floor, case)
    assert traced.widths == declared.widths
    assert traced.shapes == declared.shapes
    assert traced.axes == declared.axes
    assert traced.floors == declared.floors


def test_all_that_writes_into_a_residual_stream_is_one_group():
    """Three blocks write into 4 channels: stem, three second convolutions, and norms."""
    layout = ARCHITECTURES["resnet20"].layout
    writers = [name for name in layout.shapes if layout.axes[name][0] == (AxisRef("stem.0"),)]
    assert [name for name in writers if name.endswith("conv2.weight")] == [
        f"stage1.{block}.conv2.weight" for block in range(3)
    ]
    assert layout.widths["stem.0"] == 4
    assert layout.widths["stage1.0.conv1"] == 4
    assert len(layout.widths) == 3 + 9  # a stream per stage, and the inside of each block


def test_group_normalisation_keeps_its_groups_whole():
    """12 channels in 2 groups are 2 units of 6 channels; the layer normalises one group when one is left."""
    arch = FOREIGN["Separable"]
    # The grouped convolution has 3 groups of 4: one unit must hold whole groups of both, 12 channels.
    assert "point" not in arch.layout.widths
    arch = ARCHITECTURES["resnet20-group"]
    assert arch.layout.widths["stem.0"] == 2
    assert arch.layout.axes["stem.0.weight"][0] == (AxisRef("stem.0", 4),)
    module = to_module(arch, initial_state(arch, 0).cut(arch.layout, _first(arch, arch.layout.smallest())))
    assert {(n.num_groups, n.num_channels) for n in module.modules() if isinstance(n, nn.GroupNorm)} == {
        (1, 4)
    }


def test_joined_maps_keep_their_order():
    """The second layer sees the image's 2 channels and 4 more; the head 5, 2 and 4 maps of 4x4."""
    axes = FOREIGN["Joined"].layout.axes
    assert axes["two.weight"][1] == (AxisRef(None, 2), AxisRef("one"))
    assert axes["norm.running_mean"] == ((AxisRef("two"), AxisRef(None, 2), AxisRef("one")),)
    assert axes["head.weight"][1] == (AxisRef("two", 16), AxisRef(None, 32), AxisRef("one", 16))


def test_what_is_added_to_joined_maps_belongs_to_their_groups():
    layout = FOREIGN["Streams"].layout
    assert layout.widths == {"left": 3, "right": 4, "hidden": 5}
    assert layout.axes["both.weight"][0] == (AxisRef("left"), AxisRef("right"))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.attention(x, x, x)[0].flatten(1)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        return self.head(y.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6))


class Split(Shuffled):
    def forward(self, x):
        left, right = self.conv(x).mean((2, 3)).chunk(2, 1)
        return self.head(torch.cat([right, left], 1))


class Asking(Shuffled):
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3))) if x.sum() > 0 else x


class Unused(Shuffled):
    def forward(self, x):
        return self.head(x.flatten(1)[:, :6])


class Layered(Shuffled):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        return self.head(self.norm(self.conv(x).mean((2, 3))))


class Wide(Shuffled):
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3))).repeat(1, 2)


class Written(Shuffled):
    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.conv(x), 1).view(-1, 6))


class Flatter(Shuffled):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool1d(3, 1, 1)

    def forward(self, x):
        return self.head(self.pool(self.conv(x).mean((2, 3))))


class Shifted(Shuffled):
    def forward(self, x):
        return self.head(F.pad(self.conv(x), (0, 0, 0, 0, 1, -1)).mean((2, 3)))


class Frozen(Shuffled):
    def __init__(self):
        super().__init__()
        self.conv.weight.requires_grad_(False)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


class Tied(Shuffled):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(self.two(self.one(self.conv(x).mean((2, 3)))))


class Keyed(Shuffled):
    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        return self.head(torch.add(y, other=y))


class OneGroup(Shuffled):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(1, 6)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


class KeyedLayer(Shuffled):
    def forward(self, x):
        return self.head(input=self.conv(x).mean((2, 3)))


class KeyedJoin(Shuffled):
    def forward(self, x):
        return self.head(torch.cat(tensors=[self.conv(x).mean((2, 3))], dim=1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Counting(Shuffled):
    def forward(self, x):
        return sum(self.head(self.conv(x).mean((2, 3))) for _ in range(x.shape[0]))


def Nested():  # noqa: N802 - named as what is traced
    return nn.Sequential(OrderedDict(body=nn.Sequential(nn.ReLU(), Asking()), head=nn.Linear(3, 3)))


def Deep():  # noqa: N802
    return nn.Sequential(OrderedDict(body=nn.Sequential(nn.ReLU(), Shuffled()), head=nn.Linear(3, 3)))


def broken():
    raise RuntimeError("no such file")


def number():
    return 3


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "Attentive",
            r"layer 'attention' \(MultiheadAttention\) is not known to keep channels apart. Known are",
        ),
        ("Recurrent", r"layer 'lstm' \(LSTM\) is not known"),  # rather than that it takes no maps
        ("Shuffled", "'view' is not known to keep channels apart"),
        ("Split", "is not known to keep channels apart"),
        ("Asking", "the forward pass cannot be traced: TraceError: .* control flow"),
        ("Nested", r"the forward pass of 'body.1' \(Asking\) cannot be traced: TraceError"),
        ("Counting", "the forward pass cannot be traced: TypeError: .*It must take the same steps"),
        ("Deep", "'view' in 'body.1' is not known"),
        ("Unused", "is not known to keep channels apart"),
        ("Layered", r"layer 'norm' \(LayerNorm\) is not known to keep channels apart"),
        ("Wide", "'repeat' is not known"),
        ("Written", "'view' to a number of channels written down: use flatten"),
        ("Flatter", r"layer 'pool' \(MaxPool1d\), given 2 axes, reaches into the channels"),
        ("Shifted", "'pad', given 4 axes, reaches into the channels"),
        ("Frozen", "'conv.weight' is frozen"),
        ("Tied", "a parameter belongs to two layers"),
        ("Keyed", "'add' takes a feature map by keyword"),
        ("KeyedLayer", r"layer 'head' \(Linear\) takes a feature map by keyword"),
        ("KeyedJoin", "'cat' takes a feature map by keyword"),
        ("OneGroup", "no units that could be cut apart .*group normalisation .*or use more groups"),
        ("broken", "calling it failed: RuntimeError: no such file"),
        ("number", "must return a torch.nn.Module, got int"),
        ("nothing", "has no 'nothing'"),
    ],
)
def test_what_cannot_be_traced_is_refused_by_name(target, said):
    with pytest.raises(ScenarioError, match=said):
        architecture(ModelConfig(target=f"{__name__}:{target}"), (2, 4, 4), 3)


@pytest.mark.parametrize("text", ["import nowhere_at_all", "def build(:", "1 / 0"])
def test_a_module_that_cannot_be_imported_is_refused(text, tmp_path, monkeypatch):
    (tmp_path / "faulty_net.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ScenarioError, match=r"model\.target = faulty_net:build: importing it failed: \w+Error: "
    ):
        architecture(ModelConfig(target="faulty_net:build"), (2, 4, 4), 3)


def test_a_model_for_other_samples_or_classes_is_refused():
    with pytest.raises(ScenarioError, match="takes samples of three axes and 8 widths"):
        architecture(ModelConfig("vgg11", [4, 4]), (1, 8, 8), 3)
    with pytest.raises(ScenarioError) as caught:
        trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to("meta"), (1, 2, 2), 4, 1, "a model")
    assert (
        str(caught.value) == "a model must return one logit per class, 4, for each sample, and returns (3,)"
    )


class Adding(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 5), nn.Linear(8, 4)

    def forward(self, x):
        return self.one(x) + self.two(x)


@pytest.mark.parametrize(
    ("layers", "who", "got"),
    [
        ([nn.Flatten(), nn.Linear(31, 3)], "layer '1' (Linear)", "(2, 32), with its in_features=31: "),
        ([nn.Conv2d(3, 4, 1)], "layer '0' (Conv2d)", "(2, 2, 4, 4), with its in_channels=3: "),
        (
            [nn.Conv2d(2, 4, 5)],
            "layer '0' (Conv2d)",
            "(2, 2, 4, 4), with its in_channels=2: Calculated padded",
        ),
        (
            [nn.Sequential(nn.BatchNorm2d(5))],
            "layer '0.0' (BatchNorm2d)",
            "(2, 2, 4, 4), with its num_features=5",
        ),
        ([nn.GroupNorm(2, 6)], "layer '0' (GroupNorm)", "(2, 2, 4, 4), with its num_channels=6: "),
        ([nn.MaxPool2d(3), nn.MaxPool2d(2)], "layer '1' (MaxPool2d)", "(2, 2, 1, 1): "),
        ([nn.Flatten(), nn.Linear(32, 8), Adding()], "'add' in '2'", "(2, 5) and (2, 4): "),
    ],
)
def test_a_layer_that_does_not_take_what_it_gets_is_named(layers, who, got, capfd):
    """In the first line of the error, with what it got; nothing is printed besides."""
    with pytest.raises(ScenarioError) as caught:
        trace(nn.Sequential(*layers).to("meta"), (2, 4, 4), 3, 1, "a model")
    told = f"a model, on samples of shape (2, 4, 4): {who} cannot take a batch of shape {got}"
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_statistics_are_those_of_all_clients_samples_together():
    """Two clients of unequal size and mean: the weighted mean of mean and square gives the pooled one."""
    arch = ARCHITECTURES["vgg11"]
    rng = np.random.default_rng(1)
    samples = [rng.normal(shift, scale, n) for shift, scale, n in ((-1, 0.5, 30), (2, 1.0, 90))]
    squares = [np.float32((part**2).mean()) for part in samples]
    means = [np.float32(part.mean()) for part in samples]
    share = np.array([30, 90]) / 120
    state = initial_state(arch, 0)
    name = "norm1.running_mean"
    weights = dict(state.weights)
    weights[name] = np.full(3, share @ means, np.float32)
    weights["norm1.running_square"] = np.full(3, share @ squares, np.float32)
    norm = dict(batch_norms(to_module(arch, ModelState(weights, state.structure))))["norm1"]
    pooled = np.concatenate(samples)
    np.testing.assert_allclose(norm.running_mean, pooled.mean(), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, pooled.var(), rtol=1e-5)


class Evaluated(Shuffled):
    """Returned in evaluation mode, with a layer of the name that inputs have elsewhere."""

    def __init__(self):
        super().__init__()
        self.inputs = nn.Conv2d(2, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.eval()

    def forward(self, x):
        return self.head(self.norm(self.inputs(x)).mean((2, 3))) + self.head(self.conv(x).mean((2, 3)))


def test_a_network_is_trained_in_training_mode_and_names_are_its_own():
    arch = architecture(ModelConfig(target=f"{__name__}:Evaluated"), (2, 4, 4), 3)
    assert arch.build(arch.layout.widths).training
    assert "inputs" not in arch.layout.widths
    assert arch.kept_inputs(arch.layout.full()) is None
    assert arch.memory_model(1, 1).training_bytes(arch.layout.widths, 4) > 0


@pytest.mark.parametrize("case", FOREIGN)
def test_networks_of_ones_own_train_within_their_budget_and_shrink(case):
    arch = FOREIGN[case]
    shard = random_shard(arch.input_shape, 3, 64)
    prune = PruneConfig(target_compression=1.5, start=0.1, end=0.7, cuts=3)
    train, memory = TrainConfig(batch_size=8, device="cpu"), MemoryConfig("fill", max_batch=32)
    recipe = small_recipe(arch, train, prune, memory)
    budget = recipe.memory_model(1).training_bytes(arch.layout.widths, 8)
    update = train_locally(recipe, small_task(recipe, shard, budget), shard)
    assert update.state.structure.counts == recipe.schedule.counts(1.0) != arch.layout.widths
    assert update.statistics.memory_measured_bytes <= update.statistics.memory_predicted_bytes <= budget
