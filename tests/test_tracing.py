"""Traced wiring against the oracle: what is cut out must be what the full model can be silenced at."""

import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import (
    ARCHITECTURES,
    CHAINS,
    FEW,
    compact_and_silenced,
    random_shard,
    silenced,
    small_recipe,
    small_task,
    structures,
    unsettled,
)
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as users write it

from fedhp.costs.rehearsal import memory_model
from fedhp.errors import ScenarioError
from fedhp.model.axes import AxisRef
from fedhp.model.batch_norms import batch_norms
from fedhp.model.building import initial_state, to_module
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.wiring.tracing import trace
from fedhp.model.zoo import architecture
from fedhp.pruning.evidence import groups_without_scales
from fedhp.pruning.options import PruneConfig
from fedhp.training.batches import MemoryConfig
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally


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


@pytest.mark.parametrize("case", TRACED)
def test_compact_equals_full_with_the_dropped_units_zeroed(case):
    arch = TRACED[case]
    state = unsettled(arch)

    @FEW
    @given(st.data())
    def check(data):
        structure = data.draw(structures(arch.layout))
        got, wanted = compact_and_silenced(arch, state, structure, 4)
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
    module.train()(torch.zeros(2, *arch.taken_shape(counts)))


def _first(arch, counts):
    full = arch.layout.full()
    for group, count in counts.items():
        full = full.without(group, np.arange(count, arch.layout.widths[group]))
    return full


@pytest.mark.parametrize("case", ["mlp-whole-inputs", "cnn-1-conv", "cnn-2-convs"])
def test_declared_layouts_are_those_that_tracing_finds(case):
    arch = ARCHITECTURES[case]
    declared, module = arch.layout, to_module(arch, initial_state(arch, 0))
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


def test_a_group_of_a_single_value_is_refused():
    """Its mean is the value itself, and all that the network says of a sample would be its biases."""
    layers = [nn.Conv2d(2, 5, 2, stride=2), nn.Conv2d(5, 5, 2), nn.GroupNorm(5, 5), nn.Flatten()]
    with pytest.raises(ScenarioError, match=r"layer '2' \(GroupNorm\) normalises groups of one value"):
        trace(nn.Sequential(*layers, nn.Linear(5, 3)), (2, 4, 4), 3, 1, "a model")
    with pytest.raises(ScenarioError, match="model 'conv1d': 'norm3' normalises groups of one value"):
        architecture(ModelConfig("conv1d", [5, 5, 5], norm="group"), (1, 1, 7), 2)
    architecture(ModelConfig("conv1d", [5, 5, 6], norm="group"), (1, 1, 7), 2)


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


class Loud(nn.Module):
    def forward(self, x):
        return {}[x.shape]


class Sorting(nn.Module):
    def forward(self, x):
        return x.sort(1).values


def Raising():  # noqa: N802
    return nn.Sequential(OrderedDict(body=Loud()))


def Sorted():  # noqa: N802
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 6, 1), body=Sorting()))


class Normed(Shuffled):
    """A weight that is computed anew from others."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(self.conv)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


class Tutorial(Shuffled):
    """As in PyTorch's tutorial on CIFAR-10, and Flower's: the first dense layer's inputs as a number."""

    def forward(self, x):
        return self.head(F.max_pool2d(F.relu(self.conv(x)), 4).view(-1, 6 * 1 * 1))


class Squashed(Shuffled):
    def forward(self, x):
        return torch.softmax(self.head(self.conv(x).mean((2, 3))), 1)


def Sigmoid():  # noqa: N802
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 3), nn.Sigmoid())


class Spread(Shuffled):
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)).view(12).view(2, 6))


class Assigned(Shuffled):
    """What is written into a tensor of zeros would be lost."""

    def forward(self, x):
        out = torch.zeros(len(x), 6)
        out[:] = self.conv(x).mean((2, 3))
        return self.head(out)


class Skipping(Shuffled):
    """A layer that is left out at times: what a step takes would hang on chance."""

    def forward(self, x):
        x = self.conv(x)
        return self.head((F.relu(x) if torch.rand(1) < 0.5 else x).mean((2, 3)))


class Maxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(32, 12), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.hidden(x.flatten(1)).view(x.size(0), 6, 2).max(-1).values)


class Merged(Shuffled):
    """Places become samples."""

    def forward(self, x):
        x = self.conv(x).permute(0, 2, 3, 1).reshape(-1, 6)
        return self.head(x).view(2, 16, 3).mean(1)


class Needing(Shuffled):
    def forward(self, x, mask):
        return self.head(self.conv(x).mean((2, 3)) * mask)


def lazy_and_wrong():
    return nn.Sequential(nn.LazyConv2d(6, 9), nn.Flatten(), nn.LazyLinear(3))


def broken():
    raise RuntimeError("no such file")


def leaving():
    """As a script does that is imported by mistake: the run is not to end as if it had finished."""
    raise SystemExit(0)


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
        ("Shuffled", "no units that could be cut apart .*'head.weight' takes them in another order"),
        ("Split", "no units that could be cut apart .*'head.weight' takes them in another order"),
        ("Asking", "'__bool__' reads a number off the samples or off chance, as control flow"),
        ("Nested", "'__bool__' in 'body.1' reads a number off the samples"),
        ("Raising", r"the forward pass of 'body' \(Loud\) cannot be traced: KeyError: .*take the same steps"),
        ("Skipping", "'__bool__' reads a number off the samples or off chance"),
        ("Maxout", "no units that could be cut apart .*'max' mixes them"),
        ("Merged", "'reshape' mixes the samples of a batch"),
        ("Counting", "takes other steps for another batch .*It must take the same steps"),
        ("Sorted", "'sort' in 'body' is not known to keep channels apart. Known are"),
        ("Unused", "'conv.weight' belongs to no layer that its forward pass uses"),
        ("Layered", r"no units that could be cut apart .*layer 'norm' \(LayerNorm\) mixes them"),
        ("Wide", r"must return one logit per class, 3, for each sample, and returns \(6,\)"),
        ("Written", "'view' to a number of channels written down: use flatten"),
        ("Flatter", r"layer 'pool' \(MaxPool1d\), given 2 axes, reaches into the channels"),
        ("Shifted", "no units that could be cut apart .*'head.weight' takes them in another order"),
        ("Frozen", "'conv.weight' is frozen"),
        ("Tied", "a parameter belongs to two layers"),
        ("OneGroup", "no units that could be cut apart .*group normalisation .*or use more groups"),
        ("Normed", r"layer 'conv' \(ParametrizedConv2d\) computes its weight from others"),
        ("Tutorial", "'view' to a number of channels written down: use flatten"),
        ("Squashed", "'softmax' at its end trains badly: the loss takes logits"),
        ("Sigmoid", r"layer '4' \(Sigmoid\) at its end trains badly"),
        ("Spread", "'view' mixes the samples of a batch"),
        ("Assigned", "'setitem' is not known to keep channels apart"),
        ("Needing", "the forward pass cannot be traced: TypeError: .*'mask'"),
        ("lazy_and_wrong", r"its lazy layers cannot take samples of shape \(2, 4, 4\): RuntimeError: "),
        ("broken", "calling it failed: RuntimeError: no such file"),
        ("leaving", "calling it failed: SystemExit: 0"),
        ("number", "must return a torch.nn.Module, got int"),
        ("nothing", "has no 'nothing'"),
    ],
)
def test_what_cannot_be_traced_is_refused_by_name(target, said):
    with pytest.raises(ScenarioError, match=said):
        architecture(ModelConfig(target=f"{__name__}:{target}"), (2, 4, 4), 3)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(32, 6), nn.Linear(6, 3)

    def forward(self, x, mask=None, *args, return_features=False, **kwargs):
        features = self.hidden(x.flatten(1)).relu()
        if mask is not None:
            features = features * mask
        return (self.head(features), features) if return_features else self.head(features)


def moved():
    return Optional().to("cpu")


def numbered():
    rates = [rate.item() for rate in torch.linspace(0, 0.2, 2)]
    network = Optional()
    network.hidden = nn.Sequential(network.hidden, nn.Dropout(rates[1]))
    return network


def loaded():
    network = Optional()
    network.load_state_dict({k: v.clone() for k, v in network.state_dict().items()}, assign=True)
    return network


def on_demand():
    return nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


class TwiceNamed(nn.Module):
    """One layer under two names, used by both; and its activation listed twice."""

    def __init__(self):
        super().__init__()
        self.first, self.body, act = nn.Linear(32, 6), nn.Linear(6, 6), nn.PReLU(6)
        self.again, self.head = self.body, nn.Linear(6, 3)
        self.all = nn.Sequential(self.body, act, self.body, act)

    def forward(self, x):
        return self.head(self.all(self.again(self.first(x.flatten(1)))))


class Patient(nn.Module):
    """A batch normalisation whose statistics are the mean over all batches."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, momentum=None)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((-2, -1)))


@pytest.mark.parametrize(
    ("target", "group"),
    [
        ("Optional", "hidden"),
        ("moved", "hidden"),
        ("numbered", "hidden.0"),
        ("loaded", "hidden"),
        ("on_demand", "0"),
        ("TwiceNamed", "first"),
        ("Patient", "conv"),
    ],
)
def test_networks_are_built_and_called_as_everywhere_else(target, group):
    """Six units, whatever the way: arguments that are never given, builders that move, load and read numbers,
    lazy layers, a layer that is used under two names; and no warning."""
    arch = architecture(ModelConfig(target=f"{__name__}:{target}", floor=1), (2, 4, 4), 3)
    assert dict(arch.layout.widths) == {group: 6}
    state = unsettled(arch)
    structure = arch.layout.full().without(group, [1, 4])
    samples = torch.randn(3, *arch.input_shape, generator=torch.Generator().manual_seed(1))
    full = to_module(arch, silenced(arch, state, structure)).eval()
    compact = to_module(arch, state.cut(arch.layout, structure)).eval()
    torch.testing.assert_close(compact(samples), full(samples), atol=2e-5, rtol=1e-5)


class Between(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)
        self.between = between

    def forward(self, x):
        return self.head(self.between(self.conv(x)).mean((2, 3)))


ENTRYWISE = {
    "hard swish": lambda x: x * F.relu6(x + 3) / 6,
    "negated": lambda x: 1 - (-x),
    "absolute": torch.abs,
    "clamped": lambda x: x.clamp(0, 6),
    "softplus": F.softplus,
    "powers": lambda x: (x**2 + 1).sqrt() - x.exp().log1p(),
    "inverse": lambda x: 2 / (1 + x.square()),
    "chosen": lambda x: torch.where(x > 0, x, 0.1 * x).maximum(x.detach() / 2),
    "in place": lambda x: x.mul_(2).add_(1).sub_(x / 3),
    "slopes": nn.PReLU(6),
    "one slope": nn.PReLU(),
    "noise": lambda x: x + torch.randn(x.shape) * torch.rand(len(x), 1, 1, 1),
    "instances": nn.InstanceNorm2d(6, affine=True),
    "softmax over places": lambda x: x.flatten(2).softmax(-1).unflatten(2, x.shape[2:]),
}


@pytest.mark.parametrize("case", ENTRYWISE)
def test_what_works_on_every_entry_or_channel_by_itself_keeps_channels_apart(case):
    module = Between(ENTRYWISE[case])
    layout = trace(module, (2, 8, 8), 3, 1, "a network")
    assert layout.widths == {"conv": 6}
    for name in ("between.weight", "between.bias"):
        if name in layout.shapes and layout.shapes[name] == (6,):
            assert layout.axes[name] == ((AxisRef("conv"),),)


def test_slopes_are_no_scales_of_a_normalisation():
    """What presses on scales, or judges by them, would take slopes for them: both have one entry per unit."""
    layout = trace(Between(nn.PReLU(6)), (2, 8, 8), 3, 1, "a network")
    assert layout.slopes == {"between.weight"}
    assert groups_without_scales(layout) == ["conv"]


def test_what_mixes_channels_leaves_those_of_others_to_be_cut():
    """A layer normalisation needs all that it takes; what is made inside, of it, can go."""
    inside = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
    module = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.LayerNorm(6), inside, nn.Linear(6, 3))
    layout = trace(module, (1, 2, 4), 3, 1, "a network")
    assert layout.widths == {"3.0": 9, "3.2": 6}


def test_tracing_loads_no_compiler():
    """Half the memory of a server, and seconds: torch's, which drawing or normalising on "meta" loads."""
    code = (
        "import sys; from fedhp.model.building import initial_state; "
        "from fedhp.model.zoo import ModelConfig, architecture; "
        "from fedhp.costs.rehearsal import rehearsed; "
        "arch = architecture(ModelConfig('resnet20', [4, 4, 4]), (1, 8, 8), 3); rehearsed(arch); "
        "initial_state(arch, 0); assert not {'torch._dynamo', 'sympy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("target", ["Keyed", "KeyedLayer", "KeyedJoin"])
def test_maps_may_be_given_by_keyword(target):
    arch = architecture(ModelConfig(target=f"{__name__}:{target}"), (2, 4, 4), 3)
    assert dict(arch.layout.widths) == {"conv": 6}


def test_a_users_module_may_bear_the_name_of_one_of_fedhps(tmp_path, monkeypatch):
    """As common a name as `models` means the user's own, not `fedhp.model.architecture`."""
    (tmp_path / "models.py").write_text(f"from {__name__} import moved as build", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    arch = architecture(ModelConfig(target="models:build"), (2, 4, 4), 3)
    assert dict(arch.layout.widths) == {"hidden": 6}


class NotANetwork:
    """What a reference to the environment would show: secrets."""

    def __repr__(self):
        return "secret"


secrets = NotANetwork()


@pytest.mark.parametrize(("target", "kind"), [("secrets", "NotANetwork"), ("NotANetwork", "type")])
def test_what_builds_no_network_is_neither_called_nor_shown(target, kind):
    with pytest.raises(ScenarioError, match=f"must be a function that builds .* of type {kind}") as refusal:
        architecture(ModelConfig(target=f"{__name__}:{target}"), (2, 4, 4), 3)
    assert "secret" not in str(refusal.value).replace("test_tracing:secrets", "")


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
        trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 4, 1, "a model")
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
        trace(nn.Sequential(*layers), (2, 4, 4), 3, 1, "a model")
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
    assert memory_model(arch, 1, 1).training_bytes(arch.layout.widths, 4) > 0


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
