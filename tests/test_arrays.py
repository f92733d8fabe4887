"""Networks of NumPy's arrays against PyTorch's: gradients, scores and cuts from equal weights."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import (
    ARCHITECTURES,
    FEW,
    begun,
    random_shard,
    random_structure,
    small_recipe,
    small_task,
    stepped,
)
from torch import nn

from fedhp.costs.live_arrays import LiveArrays
from fedhp.costs.memory import Extras
from fedhp.costs.rehearsal import memory_model
from fedhp.model.architecture import INPUTS, Architecture
from fedhp.model.array_network import ArrayNetwork
from fedhp.model.array_networks import array_network
from fedhp.model.batch_norms import retake_statistics
from fedhp.model.building import initial_state, to_module
from fedhp.model.dense import Loss
from fedhp.model.modules import take_weights
from fedhp.model.options import ModelConfig
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.cutting import cut_tensors
from fedhp.pruning.evidence import evidence
from fedhp.pruning.options import PruneConfig
from fedhp.training.optimizers import SGD
from fedhp.training.options import TrainConfig

WIDE = architecture(ModelConfig("mlp", [30, 20]), (1, 8, 8), 10)
MLPS = {"wide": WIDE, **{name: arch for name, arch in ARCHITECTURES.items() if name.startswith("mlp")}}
WINDOWS = {
    "windows-batch": architecture(ModelConfig("conv1d", [8, 12]), (1, 3, 20), 10),
    "windows-group": architecture(ModelConfig("conv1d", [8, 12], norm="group"), (3, 1, 20), 10),
    "windows-short": architecture(ModelConfig("conv1d", [8, 6, 4, 4]), (1, 6, 5), 10),
}
NETWORKS = {**MLPS, **WINDOWS}

JUDGED = [name for name, one in CRITERIA.items() if not (one.activations or one.scales)]


def twins(arch: Architecture, seed: int = 1) -> tuple[ArrayNetwork, nn.Module]:
    """The same weights as arrays and as a module."""
    state = initial_state(arch, seed)
    return array_network(arch.layout, state.weights), to_module(arch, state)


def batch(arch: Architecture, size: int) -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.default_rng(size)
    samples = stream.normal(size=(size, *arch.input_shape)).astype(np.float32)
    return samples, stream.integers(arch.num_classes, size=size)


def step_back(network: ArrayNetwork, module: nn.Module, samples, labels, mask=None, spread=0.0):
    """Gives both their gradients, the module by autograd; returns its loss and right samples."""
    logits = module(torch.from_numpy(samples))
    logits = logits if mask is None else logits + torch.from_numpy(mask)
    aims = torch.from_numpy(labels)
    if spread:  # the probability of each class
        aims = (1 - spread) * nn.functional.one_hot(aims, logits.shape[1]) + spread / logits.shape[1]
    loss = nn.functional.cross_entropy(logits, aims)
    loss.backward()
    ours, right = network.gradients(samples, labels, Loss(mask, spread))
    assert float(ours) == pytest.approx(loss.item(), abs=1e-6)
    assert int(right) == int((logits.argmax(1).numpy() == labels).sum())
    return loss.item(), int(right)


@pytest.mark.parametrize("size", [1, 3, 32])
@pytest.mark.parametrize(("is_masked", "spread"), [(False, 0.0), (True, 0.0), (False, 0.3)])
@pytest.mark.parametrize("case", NETWORKS)
def test_gradients_are_those_of_autograd(case, is_masked, spread, size):
    arch = NETWORKS[case]
    network, module = twins(arch)
    if arch.layout.over_batches:  # of two samples, nothing but signs would be left
        size = max(size, 5)
    samples, labels = batch(arch, size)
    mask = None
    if is_masked:
        mask = np.full(arch.num_classes, -np.inf, np.float32)
        mask[np.unique(labels)] = 0
    step_back(network, module, samples, labels, mask, spread)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(network.named[name].grad, parameter.grad, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", WINDOWS)
def test_running_statistics_are_those_of_tensors(case):
    """Of three batches, the last one short, by samples; and what evaluation makes of them."""
    arch = WINDOWS[case]
    network, module = twins(arch)
    batches = [batch(arch, size)[0] for size in (9, 8, 3)]
    network.retake_statistics(iter(batches))
    retake_statistics(module, map(torch.from_numpy, batches))
    theirs = take_weights(module)
    for name, weights in network.weights().items():
        np.testing.assert_allclose(weights, theirs[name], atol=1e-6, err_msg=name)
    samples, labels = batch(arch, 30)
    with torch.no_grad():
        logits = module.eval()(torch.from_numpy(samples))
    right, loss = network.judged(samples, labels)
    assert right == int((logits.argmax(1).numpy() == labels).sum())
    assert loss == pytest.approx(
        float(nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum"))
    )


@pytest.mark.parametrize(
    "name", [name for name, one in CRITERIA.items() if not (one.activations or one.scales)]
)
@pytest.mark.parametrize("case", MLPS)
def test_scores_are_those_of_tensors(case, name):
    arch = MLPS[case]
    network, module = twins(arch)
    step_back(network, module, *batch(arch, 12))
    seen = (
        evidence(arch.layout, dict(held.named_parameters()), arch.layout.widths, np.random.default_rng(3))
        for held in (network, module)
    )
    ours, theirs = ({group: CRITERIA[name].score(one) for group, one in of.items()} for of in seen)
    for group, score in ours.items():
        assert isinstance(score, np.ndarray)
        np.testing.assert_allclose(score, theirs[group].numpy(), rtol=1e-4, atol=1e-7, err_msg=group)


@pytest.mark.parametrize("groups", [(INPUTS,), ("fc1",), (INPUTS, "fc1", "fc2")])
def test_what_is_cut_is_taken_out_of_weights_and_momenta_alike(groups):
    network, _ = twins(WIDE)
    optimizer = SGD([], 0.1)
    for _, parameter in network.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = parameter.data + 1
    layout, full = WIDE.layout, WIDE.layout.full()
    halves = {group: np.random.default_rng(0).random(len(full.masks[group])) < 0.5 for group in groups}
    sub = Structure({**full.masks, **halves})
    cut_tensors(network, optimizer, layout, full, sub)
    expected = layout.slice(initial_state(WIDE, 1).weights, full, sub)
    for name, parameter in network.named_parameters():
        np.testing.assert_array_equal(parameter.data, expected[name])
        np.testing.assert_array_equal(optimizer.state[parameter]["momentum_buffer"], expected[name] + 1)
        assert parameter.data.flags.c_contiguous
        assert parameter.grad is None


# --- memory ----------------------------------------------------------------------------------

CLASSES = {"plain": Extras(), "masked": Extras(masked=True)}


@pytest.mark.parametrize("extras", CLASSES)
@pytest.mark.parametrize("case", MLPS)
def test_arrays_take_no_more_than_tensors(case, extras):
    """A server forecasts by PyTorch's memory model: what it assigns fits a device without PyTorch too."""

    @FEW
    @given(st.integers(0, 2**16), st.sampled_from([1, 2, 7, 64]), st.sampled_from([1, 4]))
    def check(seed, size, itemsize):
        arch = MLPS[case]
        counts = random_structure(arch.layout, seed).counts
        ours, theirs = (memory_model(arch, 1, itemsize, CLASSES[extras], name) for name in ("numpy", "torch"))
        assert ours.training_bytes(counts, size) <= theirs.training_bytes(counts, size)

    check()


SLACK = 9000  # Python's own objects: views, numbers, and lists of them


@pytest.fixture
def _small_buffers():
    """NumPy's own, of 32 KiB at most where shapes are unlike, which no budget shows."""
    size = np.setbufsize(256)
    yield
    np.setbufsize(size)


@pytest.mark.usefixtures("_small_buffers")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("size", [2, 9, 128])
@pytest.mark.parametrize("case", ["wide", "windows-batch", "windows-group"])
def test_a_step_takes_what_the_model_says(case, size, dtype, masked):
    """By the arrays that were told of, to the byte; by Python's own tracker, no more."""

    arch = NETWORKS[case]

    @FEW
    @given(st.integers(0, 2**16))
    def check(seed):
        structure = random_structure(arch.layout, seed)
        shard = random_shard(arch.input_shape, 2, size, dtype=dtype)
        smoothing = 0.0 if masked else 0.1
        train = TrainConfig(
            batch_size=size, momentum=0.9, masked_loss=masked, label_smoothing=smoothing, device="cpu"
        )
        recipe = replace(small_recipe(arch, train, PruneConfig(target_compression=1)), runtime_name="numpy")
        state = initial_state(arch, 3).cut(arch.layout, structure)
        session = begun(recipe, small_task(recipe, shard, state=state), shard)
        stepped(session)
        session.epoch.done = 0
        said = session.run.memory.training_bytes(structure.counts, size)
        at_rest = sum(array.nbytes for array in session.run.held())
        with LiveArrays(session.run.held()) as live:
            stepped(session)
        # Averages of contributions are counted for every training; here there are none.
        assert live.peak + 2 * 4 * structure.num_units() == said
        session.epoch.done = 0
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            stepped(session)
            assert at_rest + tracemalloc.get_traced_memory()[1] - before <= said + SLACK
        finally:
            tracemalloc.stop()

    check()
