"""The memory model by hand, against PyTorch's own tracker, and its inverse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import (
    ARCHITECTURES,
    FEW,
    HAS_SPIKING,
    begun,
    random_shard,
    random_structure,
    small_recipe,
    small_task,
    stepped,
)
from torch.distributed._tools.mem_tracker import MemTracker

from fedhp.costs.live_tensors import LiveTensors
from fedhp.costs.memory import Extras
from fedhp.costs.rehearsal import memory_model
from fedhp.errors import ScenarioError
from fedhp.model.building import initial_state
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.zoo import MODELS, architecture
from fedhp.pruning.options import PruneConfig
from fedhp.training.batches import MemoryConfig
from fedhp.training.methods import DynHP
from fedhp.training.optimizers import state_tensors
from fedhp.training.options import TrainConfig
from fedhp.training.session import Session

TINY = architecture(ModelConfig("mlp", [3], 1, prune_inputs=False), (1, 2, 2), 2)

# Large enough that the few scalars of a step (the loss, Adam's step counts) do not show.
TRACKED = {
    "mlp": architecture(ModelConfig("mlp", [96, 48]), (1, 16, 16), 10),
    "cnn": architecture(ModelConfig("cnn", [12, 24, 64]), (2, 15, 13), 10),
    "mlp-whole-inputs": architecture(ModelConfig("mlp", [96], prune_inputs=False), (1, 16, 16), 10),
    "mlp-many-classes": architecture(ModelConfig("mlp", [64]), (1, 4, 4), 100),
    "vgg11": architecture(ModelConfig("vgg11", [8, 12, 16, 16, 24, 24, 24, 24]), (3, 16, 16), 10),
    "resnet20": architecture(ModelConfig("resnet20", [8, 12, 16]), (3, 16, 16), 10),
    "conv1d": architecture(ModelConfig("conv1d", [16, 24, 24], norm="group"), (1, 6, 64), 10),
    "lenet5": architecture(ModelConfig("lenet5", [6, 12, 40, 24]), (1, 28, 28), 10),
    "fedavg_cnn": architecture(ModelConfig("fedavg_cnn", [12, 24, 64]), (2, 15, 13), 10),
    "heterofl_cnn": architecture(ModelConfig("heterofl_cnn", [8, 12, 16, 24]), (3, 16, 16), 10),
}
if HAS_SPIKING:
    TRACKED |= {
        "spiking_mlp": architecture(ModelConfig("spiking_mlp", [96, 48], time_steps=5), (1, 16, 16), 10),
        "spiking_cnn": architecture(ModelConfig("spiking_cnn", [8, 12, 32], time_steps=4), (2, 15, 13), 10),
    }
OPTIMISERS = {
    "sgd": TrainConfig(optimizer="sgd", momentum=0.0, device="cpu"),
    "momentum": TrainConfig(optimizer="sgd", momentum=0.9, device="cpu"),
    "adamw": TrainConfig(optimizer="adamw", device="cpu"),
}


# --- by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "num_bytes"), [(1, 348), (2, 384), (3, 432), (5, 552)])
def test_an_mlp_4_3_2_by_hand(batch, num_bytes):
    """Momentum, 8-bit images, float32 = 4 bytes.

    fc1 has (4*3 + 3)*4 = 60 bytes, head (3*2 + 2)*4 = 32, together 92. At rest: 2 * 92 for parameters
    and momentum, 2*4*3 = 24 for contributions: 208. Per sample: input 4*4 = 16 and label 8 = 24; raw
    image 4; hidden layer 12; logits 8. The loss and the number of right predictions take
    4 + 8 = 12 from when they are there, the weight that the loss was divided by 4 until its backward pass is
    done. So the moments, for batch b, are

    - loading: 208 + 28b; the optimiser's step, with all gradients: 208 + 92 + 24b = 300 + 24b
    - loss forward, with the log-probabilities: 208 + (24 + 12 + 8 + 8)b = 208 + 52b
    - loss backward, they and two gradients: 224 + (24 + 12 + 3*8)b = 224 + 60b
    - head backward, its gradients of 32 bytes, the logits' gradient and the hidden one:
      252 + (24 + 12 + 8 + 12)b = 252 + 56b
    - ReLU backward, kept result, gradients of output and input: 252 + (24 + 3*12)b = 252 + 60b
    - fc1 backward, all gradients and the hidden one: 312 + (24 + 12)b = 312 + 36b

    The maximum is 312 + 36b up to b = 2 (384 against 372) and 252 + 60b from 3 on (432 against 420).
    """
    model = memory_model(TINY, state_slots=1, raw_itemsize=1)
    assert model.training_bytes({"fc1": 3}, batch) == num_bytes


@pytest.mark.parametrize(("budget", "batch"), [(347, 0), (348, 1), (383, 1), (384, 2), (551, 4), (552, 5)])
def test_the_largest_batch_by_hand(budget, batch):
    """The inverse of the table above: 256 + 60 * 4 = 496 <= 555 < 556."""
    model = memory_model(TINY, state_slots=1, raw_itemsize=1)
    assert model.largest_batch({"fc1": 3}, budget) == batch


def test_a_raw_batch_counts_while_it_is_loaded():
    """784 inputs and one hidden unit: loading (784*5 + 8)b outweighs all else, 4 bytes and 1 per pixel.

    At rest: (784 + 1 + 2 + 2)*4 = 3156 and 8 for one unit's contribution. Data stored as float32 is not
    converted and needs no second copy: then fc1's backward pass is the peak, with all gradients, 3156
    more, the hidden unit's of 4 bytes per sample and the step's two scalars of 12.
    """
    arch = architecture(ModelConfig("mlp", [1], 1, prune_inputs=False), (1, 28, 28), 2)
    bytes_at = memory_model(arch, state_slots=0, raw_itemsize=1).training_bytes
    assert bytes_at({"fc1": 1}, 100) == 3164 + (784 * 5 + 8) * 100
    floats_at = memory_model(arch, state_slots=0, raw_itemsize=4).training_bytes
    assert floats_at({"fc1": 1}, 100) == 3164 + 3156 + 12 + (784 * 4 + 8 + 4) * 100


PICKING = architecture(ModelConfig("mlp", [1], 1), (1, 28, 28), 2)


@pytest.mark.parametrize(
    ("num_inputs", "num_bytes"),
    [
        (100, 4 * (100 + 1 + 2 + 2) + 8 * 101 + (100 * 5 + 8) * 100),
        (500, 4 * (500 + 1 + 2 + 2) + 8 * 501 + (500 * 5 + 8) * 100),
    ],
)
def test_inputs_that_were_cut_are_never_gathered(num_inputs, num_bytes):
    """Plain SGD, one hidden unit, 100 samples of 784 bytes.

    At rest: (n + 1 + 2 + 2)*4 for n inputs, and 8 for each one's and the hidden unit's contribution. Then the
    picked bytes, their float32 and the label, 5n + 8 for each sample.
    """
    model = memory_model(PICKING, state_slots=0, raw_itemsize=1)
    assert model.training_bytes({"inputs": num_inputs, "fc1": 1}, 100) == num_bytes


MANY_CLASSES = architecture(ModelConfig("mlp", [1], 1, prune_inputs=False), (1, 1, 1), 50)


def test_many_classes_make_the_loss_the_peak():
    """One input, one hidden unit, 50 classes, plain SGD. At rest (2 + 100)*4 + 8 = 416; the loss backward
    holds the step's two scalars of 12 and, per sample, input and label 12, the hidden unit 4 and three times
    the 200 bytes of logits.
    """
    model = memory_model(MANY_CLASSES, state_slots=0, raw_itemsize=1)
    assert model.training_bytes({"fc1": 1}, 10) == 416 + 12 + (12 + 4 + 3 * 200) * 10


def test_a_mask_of_absent_classes_takes_its_own_bytes_alone():
    """50 classes of 4 bytes on top: masked logits take the place of the ones before, which are freed."""
    plain, masked = (memory_model(MANY_CLASSES, 0, 1, Extras(masked=masked)) for masked in (False, True))
    assert masked.training_bytes({"fc1": 1}, 10) == plain.training_bytes({"fc1": 1}, 10) + 200


def test_shares_are_relative_to_the_heaviest_group():
    """The inputs make the first layer weigh most; what saves next to nothing keeps a share of a quarter."""
    model = memory_model(architecture(ModelConfig("mlp", [300, 400]), (1, 28, 28), 10), 1, 1)
    widths = {"inputs": 784, "fc1": 300, "fc2": 400}

    def saved(group: str) -> int:
        return model.training_bytes(widths, 32) - model.training_bytes({**widths, group: 2}, 32)

    shares = model.shares(32)
    assert shares["fc1"] == 1
    assert shares["fc2"] == pytest.approx(saved("fc2") / saved("fc1"))
    assert shares["inputs"] == pytest.approx(saved("inputs") / saved("fc1") / 2)
    at_floor = architecture(ModelConfig("mlp", [9, 2], prune_inputs=False), (1, 4, 4), 3)
    assert memory_model(at_floor, 0, 1).shares(1) == {"fc1": 1, "fc2": 0.25}


# --- the inverse and the order ---------------------------------------------------------------

slots_and_items = st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([1, 4]))


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_the_largest_batch_is_maximal(case):
    @FEW
    @given(slots_and_items, st.floats(0, 1), st.integers(0, 400_000))
    def check(kind, share, budget):
        model = memory_model(ARCHITECTURES[case], *kind)
        counts = {g: max(1, int(share * w)) for g, w in model.layout.widths.items()}
        batch = model.largest_batch(counts, budget)
        assert batch >= 0
        assert batch == 0 or model.training_bytes(counts, batch) <= budget
        assert model.training_bytes(counts, batch + 1) > budget
        exact = model.training_bytes(counts, batch + 1)
        assert model.largest_batch(counts, exact) == batch + 1

    check()


@pytest.mark.parametrize("case", ARCHITECTURES)
@pytest.mark.parametrize("raw_itemsize", [1, 4])
def test_more_units_or_samples_never_take_less(case, raw_itemsize):
    model = memory_model(ARCHITECTURES[case], 1, raw_itemsize)
    for batch in (1, 9, 200):
        counts = dict.fromkeys(model.layout.widths, 1)
        previous = model.training_bytes(counts, batch)
        while counts != model.layout.widths:
            group = next(g for g, w in model.layout.widths.items() if counts[g] < w)
            counts[group] += 1
            now = model.training_bytes(counts, batch)
            assert previous <= now < model.training_bytes(counts, batch + 1)
            previous = now


# --- against PyTorch's tracker ---------------------------------------------------------------


def tracked_session(
    model: str,
    optimiser: str,
    batch: int,
    dtype: type = np.uint8,
    state: ModelState | None = None,
    **penalties: float | bool,
) -> Session:
    """A client in the middle of its training: state allocated, contributions tracked, one step done.

    It has samples of the first two classes alone.
    """
    arch = TRACKED[model]
    shard = random_shard(arch.input_shape, 2, batch, dtype=dtype)
    prune = PruneConfig(target_compression=4)
    recipe = small_recipe(arch, replace(OPTIMISERS[optimiser], batch_size=batch, **penalties), prune)
    session = begun(recipe, small_task(recipe, shard, state=state), shard)
    stepped(session)
    return session


def averages(session: Session) -> list[torch.Tensor]:
    """Returns the contributions, which will be looked at in the next step."""
    (watch,) = (method._watch for method in session.run.methods if isinstance(method, DynHP))
    assert watch is not None
    watch._num_steps = 0
    return list(watch._average.values())


def peak_by_torch(session: Session, batch: int) -> int:
    tracker = MemTracker()
    # Which module is at work is of no interest: by its hooks to tell in the backward pass, the tracker holds
    # tensors of layers that are used several times, as long as time goes on.
    tracker._mod_tracker._fw_pre_hook = tracker._mod_tracker._fw_post_hook = lambda *_: None
    mask = [] if session.run.mask is None else [session.run.mask]
    tracker.track_external(
        session.run.module, *state_tensors(session.run.optimizer), *averages(session), *mask
    )
    with tracker:
        stepped(session)
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def peak_by_meter(session: Session, batch: int) -> int:
    with LiveTensors([*session.run.held(), *averages(session)]) as meter:
        stepped(session)
    return meter.peak


def test_every_model_is_tracked():
    pytest.importorskip("snntorch")
    assert {case.split("-")[0] for case in TRACKED} == set(MODELS)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("model", TRACKED)
@pytest.mark.parametrize("batch", [1, 7, 64, 1024])
def test_the_model_is_within_five_percent_of_torch(model, optimiser, batch):
    """It may say up to 5 % more than the tracker sees, and at most 1 % less."""
    batch = max(batch, TRACKED[model].layout.smallest_batch)
    session = tracked_session(model, optimiser, batch)
    seen = peak_by_torch(session, batch)
    said = session.run.memory.training_bytes(session.run.structure.counts, batch)
    assert -0.01 <= said / seen - 1 <= 0.05, f"model {said:,}, tracker {seen:,} bytes"
    assert peak_by_meter(session, batch) == seen


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("model", TRACKED)
@pytest.mark.parametrize("batch", [2, 64, 1024])
def test_a_masked_and_pulled_step_is_within_five_percent_of_torch(model, optimiser, batch):
    session = tracked_session(model, optimiser, batch, proximal_mu=0.1, masked_loss=True)
    assert session.run.mask is not None
    seen = peak_by_torch(session, batch)
    said = session.run.memory.training_bytes(session.run.structure.counts, batch)
    assert -0.01 <= said / seen - 1 <= 0.05, f"model {said:,}, tracker {seen:,} bytes"
    assert peak_by_meter(session, batch) == seen


@pytest.mark.parametrize("model", TRACKED)
def test_a_step_on_smoothed_labels_is_within_five_percent_of_torch(model):
    batch = max(7, TRACKED[model].layout.smallest_batch)
    session = tracked_session(model, "momentum", batch, label_smoothing=0.1)
    seen = peak_by_torch(session, batch)
    said = session.run.memory.training_bytes(session.run.structure.counts, batch)
    assert -0.01 <= said / seen - 1 <= 0.05, f"model {said:,}, tracker {seen:,} bytes"
    assert peak_by_meter(session, batch) == seen


def test_data_stored_as_floats_is_within_five_percent_of_torch():
    session = tracked_session("cnn", "momentum", 64, np.float32)
    seen = peak_by_torch(session, 64)
    said = session.run.memory.training_bytes(session.run.structure.counts, 64)
    assert -0.01 <= said / seen - 1 <= 0.05, f"model {said:,}, tracker {seen:,} bytes"


@pytest.mark.parametrize("batch", [1, 64, 1024])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_step_on_some_of_the_inputs_is_within_five_percent_of_torch(dtype, batch):
    arch = TRACKED["mlp"]
    structure = random_structure(arch.layout, 5)
    assert structure.counts["inputs"] < 256
    state = initial_state(arch, 3).cut(arch.layout, structure)
    session = tracked_session("mlp", "momentum", batch, dtype, state)
    seen = peak_by_torch(session, batch)
    said = session.run.memory.training_bytes(structure.counts, batch)
    assert -0.01 <= said / seen - 1 <= 0.05, f"model {said:,}, tracker {seen:,} bytes"
    assert peak_by_meter(session, batch) == seen


# --- the meter -------------------------------------------------------------------------------


def test_the_meter_counts_what_lives_at_once():
    """400 bytes exist; two temporaries of 400 live one after the other, then two of 400 together."""
    existing = torch.zeros(100)
    with LiveTensors([existing, existing.view(10, 10)]) as meter:
        assert meter.peak == 400
        torch.ones(100)
        torch.ones(100)
        assert meter.peak == 800
        first = torch.ones(100)
        second = first + 1
        assert meter.peak == 1200
        del first, second
        torch.ones(150)
    assert meter.peak == 1200


def test_views_and_writing_in_place_take_nothing():
    existing = torch.zeros(100)
    with LiveTensors([existing]) as meter:
        existing.view(10, 10).t().add_(1)
        existing[3:7].zero_()
    assert meter.peak == 400


def test_the_meter_stops_when_it_is_left():
    with LiveTensors([]) as meter:
        kept = torch.ones(10)
    torch.ones(1000)
    del kept
    assert meter.peak == 40


# --- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)],
)
def test_the_learning_rate_follows_the_batch(scaling, factor):
    """Four times the reference batch of 32."""
    assert MemoryConfig(lr_scaling=scaling).lr_factor(128, 32) == factor
    assert MemoryConfig(lr_scaling=scaling).lr_factor(32, 32) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch_policy": "grow"}, "memory.batch_policy must be one of fixed, fill, noise, got 'grow'"),
        ({"lr_scaling": "cubic"}, "memory.lr_scaling"),
        ({"max_batch": 0}, "memory.max_batch"),
    ],
)
def test_impossible_settings_are_refused(values, said):
    with pytest.raises(ScenarioError, match=said):
        MemoryConfig(**values)
