"""Small models, structures and data for the tests of the numeric core."""

from collections import OrderedDict
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from fedhp.data import Shard
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.architecture import Architecture
from fedhp.model.axes import AxisRef
from fedhp.model.building import initial_state, to_module
from fedhp.model.inference import to_whole_module
from fedhp.model.layout import Layout
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.training.batches import MemoryConfig
from fedhp.training.method import ClientRun, Method
from fedhp.training.method_names import PRUNING
from fedhp.training.methods import methods_for
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe
from fedhp.training.session import Client, Session
from fedhp.training.trainer import step_one, train_locally
from fedhp.training.update import RoundTask, Update

torch.set_num_threads(1)

# The same examples in every run: a red build can be repeated.
FEW = settings(max_examples=15, deadline=None, database=None, derandomize=True)

# Every model of MODELS; with odd sides, since pooling drops the last row or column, and several channels.
ARCHITECTURES: dict[str, Architecture] = {
    "mlp-1-hidden": architecture(ModelConfig("mlp", [11], 1), (1, 3, 5), 4),
    "mlp-3-hidden": architecture(ModelConfig("mlp", [9, 12, 5], 2), (3, 2, 4), 3),
    "mlp-whole-inputs": architecture(ModelConfig("mlp", [7, 6], 1, prune_inputs=False), (1, 3, 4), 3),
    "cnn-1-conv": architecture(ModelConfig("cnn", [9, 6], 2), (3, 5, 8), 3),
    "cnn-2-convs": architecture(ModelConfig("cnn", [5, 6, 7], 1), (1, 9, 7), 4),
    "vgg11": architecture(ModelConfig("vgg11", [3, 4, 5, 4, 6, 5, 4, 6], 1), (2, 8, 8), 3),
    "resnet20": architecture(ModelConfig("resnet20", [4, 5, 6], 1), (2, 8, 8), 3),
    "resnet20-group": architecture(ModelConfig("resnet20", [8, 12, 16], 1, norm="group"), (1, 8, 8), 3),
    "conv1d": architecture(ModelConfig("conv1d", [5, 6, 7], 1), (1, 3, 16), 4),
    "lenet5": architecture(ModelConfig("lenet5", [4, 5, 7, 6], 1), (2, 17, 16), 3),
    "fedavg_cnn": architecture(ModelConfig("fedavg_cnn", [5, 6, 7], 1), (1, 9, 7), 4),
    "heterofl_cnn": architecture(ModelConfig("heterofl_cnn", [4, 6, 5, 7], 1), (2, 9, 8), 3),
}
HAS_SPIKING = find_spec("snntorch") is not None
if HAS_SPIKING:
    ARCHITECTURES |= {
        "spiking_mlp": architecture(ModelConfig("spiking_mlp", [9, 7], 1, time_steps=3), (1, 3, 5), 4),
        "spiking_cnn": architecture(ModelConfig("spiking_cnn", [5, 6, 7], 1, time_steps=2), (2, 9, 7), 3),
    }

CHAIN_NAMES = ("mlp", "cnn", "lenet5", "fedavg_cnn")
# Those whose wiring is plain enough to index by hand.
CHAINS = {case: arch for case, arch in ARCHITECTURES.items() if case.startswith(CHAIN_NAMES)}


def masks(width: int, floor: int = 1) -> st.SearchStrategy[np.ndarray]:
    """Masks of a group that keep at least ``floor`` units."""
    kept = st.sets(st.integers(0, width - 1), min_size=floor)
    return kept.map(lambda units: np.isin(np.arange(width), list(units)))


def structures(layout: Layout, within: Structure | None = None) -> st.SearchStrategy[Structure]:
    """Structures with every group at its floor or above, below ``within`` where it is given."""
    if within is None:
        return st.fixed_dictionaries({g: masks(w, layout.floors[g]) for g, w in layout.widths.items()}).map(
            Structure
        )
    inner = {g: masks(n, min(n, layout.floors[g])) for g, n in within.counts.items()}
    return st.fixed_dictionaries(inner).map(
        lambda kept: Structure({g: _scatter(within.masks[g], kept[g]) for g in kept})
    )


def _scatter(mask: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    out = np.zeros_like(mask)
    out[np.flatnonzero(mask)[chosen]] = True
    return out


def random_structure(
    layout: Layout, seed: int, share: float = 0.6, within: Structure | None = None
) -> Structure:
    """A structure that keeps about a share of every group's units, all of them kept in ``within``."""
    rng = np.random.default_rng(seed)
    chosen = {}
    for group, width in layout.widths.items():
        there = np.arange(width) if within is None else within.kept(group)
        count = max(layout.floors[group], int(share * len(there)))
        chosen[group] = np.isin(np.arange(width), rng.choice(there, count, replace=False))
    return Structure(chosen)


def fancy(weights: dict[str, np.ndarray], kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Slices the weights of a chain of layers by plain NumPy indexing, without asking a layout.

    A layer's rows are its own units where it has any (the head has none), its columns those of the layer
    before; after a flatten, one unit owns as many consecutive columns as there are per unit. The first layer
    follows the inputs, where those are a group.

    Args:
        weights: ``layer.weight`` and ``layer.bias`` in the order of the layers.
        kept: Positions to keep per layer name.
    """
    out, before = {}, "inputs" if "inputs" in kept else None
    num_before = next(iter(weights.values())).shape[1]
    for name, array in weights.items():
        layer = name.split(".")[0]
        cut = array[kept[layer]] if layer in kept else array
        if name.endswith("weight"):
            if before is not None:
                by_unit = cut.reshape(len(cut), num_before, -1, *cut.shape[2:])
                by_unit = by_unit[:, kept[before]]
                cut = by_unit.reshape(len(cut), -1, *cut.shape[2:])
            before, num_before = layer, len(array)
        out[name] = cut
    return out


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


def random_shard(
    input_shape: tuple[int, ...], num_classes: int, size: int, *, seed: int = 0, dtype: type = np.uint8
) -> Shard:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, size)
    images = rng.normal(size=(size, *input_shape)) * 30 + 20 * labels.reshape(-1, 1, 1, 1) + 100
    images = images.clip(0, 255).astype(dtype)
    if dtype == np.float32:
        images /= 255
    return Shard(images, labels, np.arange(size), num_classes=num_classes, mean=0.4, std=0.2)


def small_recipe(
    arch: Architecture,
    train: TrainConfig | None = None,
    prune: PruneConfig | None = None,
    memory: MemoryConfig | None = None,
    *,
    rounds: int = 1,
    seed: int = 3,
) -> Recipe:
    return Recipe(
        arch,
        train or TrainConfig(batch_size=8, device="cpu"),
        prune or PruneConfig(target_compression=1.0),
        memory or MemoryConfig(),
        rounds,
        seed,
        methods_for(PRUNING),
    )


class Watch(Method):
    """Keeps the training that it is told of, for tests that look at what is left of it."""

    run: ClientRun

    def begin(self, run: ClientRun) -> None:
        type(self).run = run


def watched(recipe: Recipe, task: RoundTask, shard: Shard) -> tuple[Update, ClientRun]:
    """Trains, and returns the training's state beside its update."""
    update = train_locally(replace(recipe, kinds=(*recipe.kinds, Watch)), task, shard)
    return update, Watch.run


def begun(recipe: Recipe, task: RoundTask, shard: Shard) -> Session:
    """Returns a client's training before its first step."""
    session = Session(recipe, Client(task, shard))
    session.begin_epoch(0)
    return session


def stepped(session: Session) -> None:
    """Takes a step as the trainer does, but for looking at its memory."""
    step_one(session)


def small_task(
    recipe: Recipe,
    shard: Shard,
    budget_bytes: int | None = None,
    *,
    round_: int = 1,
    state: ModelState | None = None,
) -> RoundTask:
    profile = DeviceProfile("test", budget_bytes, len(shard))
    return RoundTask(round_, 5, profile, state or initial_state(recipe.architecture, recipe.seed))


def normalised_net(num_channels: int = 6) -> tuple[torch.nn.Module, Layout]:
    """A convolution, normalised, pooled and flattened from 2x2 maps into a head; and its wiring.

    Images are of shape (2, 4, 4), classes three.
    """
    module = torch.nn.Sequential(
        OrderedDict(
            conv=torch.nn.Conv2d(2, num_channels, 3, padding=1),
            norm=torch.nn.BatchNorm2d(num_channels),
            relu=torch.nn.ReLU(),
            pool=torch.nn.MaxPool2d(2),
            flatten=torch.nn.Flatten(),
            head=torch.nn.Linear(num_channels * 4, 3),
        )
    )
    c = AxisRef("c")
    axes = {
        "conv.weight": (c, None, None, None),
        "conv.bias": (c,),
        "norm.weight": (c,),
        "norm.bias": (c,),
        "head.weight": (None, AxisRef("c", 4)),
        "head.bias": (None,),
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    return module, Layout({"c": num_channels}, shapes, axes, {"c": 1})


def compact_and_silenced(
    arch: Architecture, state: ModelState, structure: Structure, num_samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what the compact model makes of samples, and what the full one does with units silenced."""
    samples = torch.randn(num_samples, *arch.input_shape, generator=torch.Generator().manual_seed(1))
    full = to_module(arch, silenced(arch, state, structure)).eval()
    compact = to_whole_module(arch, state.cut(arch.layout, structure)).eval()
    with torch.no_grad():
        return compact(samples.clone()), full(samples.clone())
