"""Local training against a plain PyTorch loop, and its promises: budget, batch, repeatability."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import begun, random_shard, random_structure, small_recipe, small_task
from torch import nn

import fedhp.training.meter
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.costs.live_tensors import LiveTensors
from fedhp.costs.rehearsal import memory_model
from fedhp.data import Shard
from fedhp.errors import BudgetError, ScenarioError, TrainingError
from fedhp.model.building import initial_state, to_module
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.options import PruneConfig
from fedhp.seeds import generator
from fedhp.training import evaluation, moments, stack, torch_runtime, trainer
from fedhp.training.batches import MemoryConfig
from fedhp.training.evaluation import evaluate
from fedhp.training.method import local_accuracy
from fedhp.training.optimizers import state_tensors
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe, choose_batch
from fedhp.training.trainer import train_locally
from fedhp.training.update import Update

ARCH = architecture(ModelConfig("mlp", [40, 20]), (1, 6, 6), 5)
CNN = architecture(ModelConfig("cnn", [6, 8, 16]), (1, 9, 7), 5)
MODEL_WITH_GROUPS = architecture(ModelConfig("resnet20", [8, 12, 16], norm="group"), (1, 8, 8), 5)
SHARD = random_shard((1, 6, 6), 5, 120)
TRAIN = TrainConfig(local_epochs=2, batch_size=8, learning_rate=0.05, device="cpu")
PRUNE = PruneConfig(target_compression=4, start=0.1, end=0.7, cuts=5)
FILL = MemoryConfig("fill", max_batch=64)
DENSE_NEED = memory_model(ARCH, 1, 1).training_bytes(ARCH.layout.widths, 8)


@pytest.fixture(autouse=True)
def _nothing_measured_yet(monkeypatch):
    monkeypatch.setattr("fedhp.training.meter.PEAKS", {})


def pruned(memory: MemoryConfig, **changes) -> Recipe:
    return replace(small_recipe(ARCH, TRAIN, PRUNE, memory), **changes)


def same(one: ModelState, other: ModelState) -> bool:
    return one.structure == other.structure and all(
        np.array_equal(one.weights[name], other.weights[name]) for name in other.weights
    )


class Spy:
    """Measures every step of a training on its own, and notes its batch and learning rate."""

    def __init__(self, monkeypatch) -> None:
        self.peaks: list[int] = []
        self.batches: list[int] = []
        self.rates: list[float] = []
        self.structures: list[Structure] = []
        alone, beside = trainer.step_alone, stack.Stack.step
        monkeypatch.setattr(trainer, "step_alone", lambda one: self.measured(one, alone, one))
        monkeypatch.setattr(stack.Stack, "step", lambda *given: self.measured(given[1][0], beside, *given))

    def measured(self, session, step, *given):
        self.batches.append(len(session.rows))
        self.rates.append(session.run.optimizer.param_groups[0]["lr"])
        self.structures.append(session.run.structure)
        with LiveTensors([*session.run.module.parameters(), *state_tensors(session.run.optimizer)]) as meter:
            result = step(*given)
        self.peaks.append(meter.peak)
        return result


# --- the numbers -----------------------------------------------------------------------------


def plain_training(recipe: Recipe, shard: Shard, module: nn.Module) -> float:
    """The textbook loop: SGD with momentum and a cosine; returns the last epoch's mean loss."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    order = generator(recipe.seed, "batches", 1, 5)
    num_steps = math.ceil(len(shard) / 8)
    for epoch in range(2):
        rows, losses = order.permutation(len(shard)), []
        for step in range(num_steps):
            batch = rows[8 * step : 8 * step + 8]
            done = (epoch + 8 * step / len(shard)) / 2
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * done)) / 2
            images, labels = shard.batch(batch)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(images), labels)
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(batch)
    return sum(losses) / len(shard)


@pytest.mark.parametrize("arch", [ARCH, CNN], ids=["mlp", "cnn"])
def test_training_is_a_plain_loop_when_nothing_is_pruned(arch):
    """117 samples: the last step of an epoch has 5 of 8, and counts by its samples in the mean loss."""
    shard = random_shard(arch.input_shape, 5, 117)
    recipe = small_recipe(arch, replace(TRAIN, weight_decay=0.01))
    task = small_task(recipe, shard)
    update = train_locally(recipe, task, shard)
    module = to_module(arch, task.state)
    loss = plain_training(recipe, shard, module)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(update.state.weights[name], parameter.detach(), atol=1e-5)
    assert update.statistics.train_loss == pytest.approx(loss, abs=1e-5)
    assert update.state.structure == update.assigned == arch.layout.full()
    assert (update.client, update.num_examples) == (5, 117)
    assert update.statistics.seconds > 0


@pytest.mark.parametrize("arch", [ARCH, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("changes", [{}, {"clip_norm": 0.01}, {"proximal_mu": 0.5}], ids=str)
def test_the_gradients_norm_is_that_of_the_loss_alone_in_each_epochs_first_step(arch, changes):
    """By autograd, of the weights that an epoch begins with and the first 8 samples of its order."""
    recipe, shard = small_recipe(arch, replace(TRAIN, **changes)), random_shard(arch.input_shape, 5, 117)
    order = generator(recipe.seed, "batches", 1, 5)

    def by_hand(state: ModelState) -> float:
        images, labels = shard.batch(order.permutation(len(shard))[:8])
        module = to_module(arch, state)
        nn.functional.cross_entropy(module(images), labels).backward()
        return math.sqrt(sum(float(one.grad.double().square().sum()) for one in module.parameters()))

    task = small_task(recipe, shard)
    norms = [by_hand(task.state)]
    update = train_locally(recipe, task, shard, lambda told, _: norms.append(by_hand(told.state)))
    assert update.statistics.gradient_norm == pytest.approx(sum(norms[:2]) / 2, rel=1e-5)
    assert norms[0] != pytest.approx(norms[1])


def test_training_learns():
    """The shard's classes differ in brightness; five of them leave chance at a fifth."""
    recipe = small_recipe(ARCH, replace(TRAIN, local_epochs=8))
    task = small_task(recipe, SHARD)
    accuracy_before, loss_before = evaluate(ARCH, task.state, SHARD)
    update = train_locally(recipe, task, SHARD)
    accuracy, loss = evaluate(ARCH, update.state, SHARD)
    assert loss < loss_before / 2
    assert accuracy > max(0.6, accuracy_before)
    assert update.statistics.accuracy > 0.5


def test_the_assigned_weights_are_not_touched():
    recipe = pruned(FILL)
    task = small_task(recipe, SHARD, DENSE_NEED)
    before = {name: array.copy() for name, array in task.state.weights.items()}
    train_locally(recipe, task, SHARD)
    assert all(np.array_equal(task.state.weights[name], array) for name, array in before.items())


def test_the_same_seed_gives_the_same_result():
    recipe = pruned(FILL)
    first, again = (train_locally(recipe, small_task(recipe, SHARD, DENSE_NEED), SHARD) for _ in range(2))
    assert same(first.state, again.state)
    assert replace(first.statistics, seconds=0) == replace(again.statistics, seconds=0)


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "random"])
def test_another_seed_gives_another_result(criterion):
    one, other = (pruned(FILL, seed=s, prune=replace(PRUNE, criterion=criterion)) for s in (1, 2))
    state = initial_state(ARCH, 0)
    updates = [train_locally(r, small_task(r, SHARD, DENSE_NEED, state=state), SHARD) for r in (one, other)]
    assert not same(updates[0].state, updates[1].state)


def test_measuring_does_not_change_results():
    """Once with every phase measured, once with every peak known already: equal bit for bit."""
    recipe = pruned(FILL)
    task = small_task(recipe, SHARD, DENSE_NEED)
    measured = train_locally(recipe, task, SHARD)
    known = dict(fedhp.training.meter.PEAKS)
    assert len(known) > 2
    unmeasured = train_locally(recipe, task, SHARD)
    assert known == fedhp.training.meter.PEAKS
    assert same(measured.state, unmeasured.state)
    assert replace(measured.statistics, seconds=0) == replace(unmeasured.statistics, seconds=0)


# --- pruning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "random"])
def test_the_target_is_reached_step_by_step(criterion, monkeypatch):
    recipe = pruned(MemoryConfig(), prune=replace(PRUNE, criterion=criterion))
    spy = Spy(monkeypatch)
    update = train_locally(recipe, small_task(recipe, SHARD), SHARD)
    full = ARCH.layout.num_parameters(ARCH.layout.widths)
    assert update.state.num_parameters() <= full / 4
    assert update.state.structure.counts == recipe.schedule.counts(1.0)
    shapes = {name: array.shape for name, array in update.state.weights.items()}
    assert shapes == {name: ARCH.layout.shape(name, update.state.structure.counts) for name in shapes}
    assert all(a.contains(b) for a, b in zip(spy.structures, spy.structures[1:], strict=False))
    assert len(set(spy.structures)) > 3


def test_every_step_obeys_the_schedule(monkeypatch):
    """15 steps of 8 samples per epoch, 30 in all: before step n, n/30 of the training is done."""
    spy = Spy(monkeypatch)
    recipe = pruned(MemoryConfig())
    train_locally(recipe, small_task(recipe, SHARD), SHARD)
    assert len(spy.structures) == 30
    for step, structure in enumerate(spy.structures):
        assert structure.counts == recipe.schedule.counts(step / 30)


def test_the_schedule_runs_over_all_rounds():
    """Round 2 of 4 ends at half of the training; a model that is small enough is left alone then."""
    recipe = pruned(MemoryConfig(), rounds=4)
    update = train_locally(recipe, small_task(recipe, SHARD, round_=2), SHARD)
    assert update.state.structure.counts == recipe.schedule.counts(0.5)
    small = initial_state(ARCH, 0).cut(ARCH.layout, random_structure(ARCH.layout, 0, 0.1))
    update = train_locally(recipe, small_task(recipe, SHARD, round_=2, state=small), SHARD)
    assert update.state.structure == small.structure


def test_nothing_is_cut_at_target_one_or_before_the_start():
    for recipe in (
        pruned(FILL, prune=replace(PRUNE, target_compression=1)),
        pruned(FILL).without_pruning(),
        pruned(FILL, prune=replace(PRUNE, marginal=0.5)).without_pruning(),
        pruned(FILL, rounds=20, prune=replace(PRUNE, marginal=0.5)),
    ):
        update = train_locally(recipe, small_task(recipe, SHARD), SHARD)
        assert update.state.structure == ARCH.layout.full()


@pytest.mark.parametrize("marginal", [0.5, 0.99])
def test_marginal_units_go_ahead_of_schedule_and_not_beyond_the_target(marginal, monkeypatch):
    """Every cut raises the mean that units are measured by, so that by itself the share has no end."""
    spy = Spy(monkeypatch)
    recipe = pruned(MemoryConfig(), prune=replace(PRUNE, marginal=marginal, blend=0.0))
    update = train_locally(recipe, small_task(recipe, SHARD), SHARD)
    ahead = 0
    for step, structure in enumerate(spy.structures):
        allowed, least = recipe.schedule.counts(step / 30), recipe.schedule.counts(1.0)
        assert all(least[g] <= count <= allowed[g] for g, count in structure.counts.items())
        ahead += structure.counts != allowed
    assert ahead > 5
    assert update.state.structure.counts == recipe.schedule.counts(1.0)


def test_marginal_units_stay_where_a_device_has_no_more_than_the_target():
    recipe = pruned(MemoryConfig(), prune=replace(PRUNE, marginal=0.99, blend=0.0))
    small = initial_state(ARCH, 0).cut(ARCH.layout, random_structure(ARCH.layout, 0, 0.1))
    update = train_locally(recipe, small_task(recipe, SHARD, state=small), SHARD)
    assert update.state.structure == small.structure


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fixed", "fill"])
@pytest.mark.parametrize("share", [1.0, 0.95, 1.5])
def test_the_budget_holds_in_every_step(policy, share, monkeypatch):
    budget = int(DENSE_NEED * share)
    spy = Spy(monkeypatch)
    recipe = pruned(MemoryConfig(policy, max_batch=64))
    update = train_locally(recipe, small_task(recipe, SHARD, budget), SHARD)
    statistics = update.statistics
    assert update.state.structure != update.assigned
    assert max(spy.peaks) <= budget
    assert statistics.memory_predicted_bytes <= budget
    assert statistics.memory_measured_bytes <= budget


@pytest.mark.parametrize("arch", [ARCH, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("criterion", [name for name, kind in CRITERIA.items() if not kind.scales])
def test_the_budget_holds_with_every_criterion(criterion, arch, monkeypatch):
    """To the byte in the first steps and after cuts, on a budget of just what the dense model needs."""
    shard = random_shard(arch.input_shape, 5, 60)
    prune = replace(PRUNE, criterion=criterion)
    recipe = small_recipe(arch, TRAIN, prune, MemoryConfig("fill", max_batch=64))
    need = recipe.memory_model(1).training_bytes(arch.layout.widths, 8)
    spy = Spy(monkeypatch)
    update = train_locally(recipe, small_task(recipe, shard, need), shard)
    assert update.state.structure.counts == recipe.schedule.counts(1.0)
    assert max(spy.peaks) <= need


class Flattening(nn.Sequential):
    """A convolution whose maps are flattened as they come out of it."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        channels, height, width = input_shape
        convolution = nn.Conv2d(channels, 8, 3, padding=1)
        hidden = nn.Linear(8 * height * width, 16)
        super().__init__(convolution, nn.ReLU(), nn.Flatten(), hidden, nn.ReLU(), nn.Linear(16, num_classes))


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_budget_holds_where_maps_are_flattened_at_once(num_channels, monkeypatch):
    """Flattening copies maps whose channels lie innermost, and they do before as after a cut."""
    shape = (num_channels, 12, 12)
    arch = architecture(ModelConfig(target=f"{__name__}:Flattening"), shape, 5)
    shard = random_shard(shape, 5, 256)
    recipe = small_recipe(arch, TRAIN, PRUNE, MemoryConfig("fill", max_batch=128))
    need = recipe.memory_model(1).training_bytes(arch.layout.widths, 32)
    spy = Spy(monkeypatch)
    update = train_locally(recipe, small_task(recipe, shard, need), shard)
    assert update.state.structure.counts == recipe.schedule.counts(1.0)
    assert max(spy.peaks) <= update.statistics.memory_predicted_bytes <= need


@pytest.mark.parametrize(("size", "epochs"), [(120, 2), (117, 2), (20, 4), (9, 6)])
def test_the_measured_peak_is_the_largest_of_all_steps(size, epochs, monkeypatch):
    """Steps of full and of shorter batches, cut at different places of an epoch."""
    spy = Spy(monkeypatch)
    shard = random_shard((1, 6, 6), 5, size)
    recipe = pruned(MemoryConfig(), train=replace(TRAIN, local_epochs=epochs))
    update = train_locally(recipe, small_task(recipe, shard), shard)
    # The meter of a phase's first step does not know the averages, 4 bytes per unit, of the one before.
    slack = 4 * 60 + 64
    assert max(spy.peaks) - slack <= update.statistics.memory_measured_bytes <= max(spy.peaks) + slack


def test_a_phase_that_starts_with_a_short_step_is_measured(monkeypatch):
    """9 samples are a step of 8 and one of 1; the model shrinks after the first step of 12.

    The structure that is left meets the short step first; its full steps follow in the next epoch.
    """
    spy = Spy(monkeypatch)
    shard = random_shard((1, 6, 6), 5, 9)
    prune = PruneConfig(target_compression=4, start=0.0, end=0.1, cuts=1)
    recipe = pruned(MemoryConfig(), train=replace(TRAIN, local_epochs=6), prune=prune)
    train_locally(recipe, small_task(recipe, shard), shard)
    small = spy.structures[-1]
    assert spy.structures[0] != spy.structures[1] == small
    assert spy.batches[:4] == [8, 1, 8, 1]
    shapes = tuple(ARCH.layout.shape(name, small.counts) for name in ARCH.layout.shapes)
    measured = [peak for key, peak in fedhp.training.meter.PEAKS.items() if shapes in key]
    assert max(measured) >= max(spy.peaks[1:]) - 64


def test_peaks_are_not_shared_between_steps_that_differ():
    """The same parameters, but images of 9x7 and of 8x6: both pool to 4x3, and only the first is larger."""
    peaks = []
    for shape in ((1, 8, 6), (1, 9, 7)):
        arch = architecture(ModelConfig("cnn", [6, 8]), shape, 5)
        recipe = small_recipe(arch, TRAIN)
        shard = random_shard(shape, 5, 16)
        update = train_locally(recipe, small_task(recipe, shard), shard)
        peaks.append(update.statistics.memory_measured_bytes)
    assert peaks[0] < peaks[1]


def test_the_batch_grows_into_what_a_cut_frees(monkeypatch):
    spy = Spy(monkeypatch)
    recipe = pruned(FILL)
    update = train_locally(recipe, small_task(recipe, SHARD, DENSE_NEED), SHARD)
    statistics = update.statistics
    assert statistics.batch_size_first == spy.batches[0] == 8
    assert statistics.batch_size_last == max(spy.batches) == 64
    model = recipe.memory_model(1)
    for batch, structure in zip(spy.batches, spy.structures, strict=True):
        assert batch <= model.largest_batch(structure.counts, DENSE_NEED)


def test_a_fixed_batch_stays(monkeypatch):
    spy = Spy(monkeypatch)
    recipe = pruned(MemoryConfig())
    statistics = train_locally(recipe, small_task(recipe, SHARD, DENSE_NEED), SHARD).statistics
    assert set(spy.batches) == {8}
    assert (statistics.batch_size_first, statistics.batch_size_last) == (8, 8)


@pytest.mark.parametrize(
    ("policy", "budget", "batch"),
    [("fixed", None, 8), ("fill", None, 8), ("fixed", 10**9, 8), ("fill", 10**9, 64), ("fixed", "3", 3)],
)
def test_the_batch_that_a_policy_takes(policy, budget, batch):
    """A budget of "3" is what three samples take."""
    recipe = pruned(MemoryConfig(policy, max_batch=64))
    memory, full = recipe.memory_model(1), ARCH.layout.full()
    if budget == "3":
        budget = memory.training_bytes(full.counts, 3)
    assert choose_batch(recipe, memory, full, budget) == batch


def test_the_batch_is_no_larger_than_the_shard():
    shard = random_shard((1, 6, 6), 5, 3)
    recipe = pruned(FILL)
    statistics = train_locally(recipe, small_task(recipe, shard, 10**9), shard).statistics
    assert (statistics.batch_size_first, statistics.batch_size_last) == (3, 3)


@pytest.mark.parametrize(("scaling", "power"), [("none", 0), ("sqrt", 0.5), ("linear", 1)])
def test_the_learning_rate_is_scaled_by_the_batch(scaling, power, monkeypatch):
    """Batch 32 at a reference of 8 is a factor of 4; 120 samples leave a last step of 24 at that rate."""
    spy = Spy(monkeypatch)
    memory = MemoryConfig("fill", max_batch=32, lr_scaling=scaling)
    train = replace(TRAIN, local_epochs=1, lr_schedule="constant")
    recipe = small_recipe(ARCH, train, None, memory)
    train_locally(recipe, small_task(recipe, SHARD, 10**9), SHARD)
    assert spy.batches == [32, 32, 32, 24]
    assert spy.rates == pytest.approx([0.05 * 4**power] * 4)


# --- refusals --------------------------------------------------------------------------------


def test_a_device_that_cannot_hold_one_sample_is_refused():
    recipe = pruned(FILL)
    least = recipe.memory_model(1).training_bytes(ARCH.layout.widths, 1)
    train_locally(recipe, small_task(recipe, SHARD, least), SHARD)
    with pytest.raises(BudgetError, match=f"takes {least:,} bytes; the budget is {least - 1:,} bytes"):
        train_locally(recipe, small_task(recipe, SHARD, least - 1), SHARD)


def test_a_loss_that_is_not_finite_ends_the_training():
    weights = {name: array.copy() for name, array in initial_state(ARCH, 0).weights.items()}
    weights["head.bias"][0] = np.nan
    state = ModelState(weights, ARCH.layout.full())
    for recipe in (small_recipe(ARCH, TRAIN), pruned(FILL)):
        with pytest.raises(TrainingError, match=r"client 5 in round 1 is nan; lower train.learning_rate"):
            train_locally(recipe, small_task(recipe, SHARD, 10**9, state=state), SHARD)


def test_a_missing_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ScenarioError, match=r"train.device = cuda"):
        small_recipe(ARCH, replace(TRAIN, device="cuda")).device()
    assert small_recipe(ARCH, replace(TRAIN, device="auto")).device() == torch.device("cpu")


# --- evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 1000])
def test_evaluation_by_hand(batch):
    """A model whose logits are (2x, 0) for one pixel x, on x = 1, -1, 1 with the labels 0, 1, 1.

    The first two are right with a loss of log(1 + e^-2), the third is wrong with log(1 + e^2):
    a third unit of ReLU carries the negative side, 2*relu(x) - 2*relu(-x) = 2x.
    """
    arch = architecture(ModelConfig("mlp", [2], 1), (1, 1, 1), 2)
    weights = {
        "fc1.weight": np.array([[1], [-1]], np.float32),
        "fc1.bias": np.zeros(2, np.float32),
        "head.weight": np.array([[2, -2], [0, 0]], np.float32),
        "head.bias": np.zeros(2, np.float32),
    }
    images = np.array([1, -1, 9, 1], np.float32).reshape(4, 1, 1, 1)
    shard = Shard(images, np.array([0, 1, 0, 1]), np.array([0, 1, 3]), num_classes=2, mean=0.0, std=1.0)
    accuracy, loss = evaluate(arch, ModelState(weights, arch.layout.full()), shard, batch=batch)
    assert accuracy == pytest.approx(2 / 3)
    assert loss == pytest.approx((2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 3, rel=1e-6)


@pytest.mark.parametrize("arch", [ARCH, CNN, MODEL_WITH_GROUPS], ids=["mlp", "cnn", "resnet20"])
def test_batches_judged_by_threads_come_to_the_same_bits(arch, monkeypatch):
    """Nine batches of 13 and a last one of 3, by one thread and by four."""
    state, shard = initial_state(arch, 0), random_shard(arch.input_shape, 5, 120)
    judge, threads = evaluation._judge, set()
    monkeypatch.setattr(evaluation, "_judge", lambda *a: (threads.add(threading.get_ident()), judge(*a))[1])
    found = []
    for number in (1, 4):
        monkeypatch.setattr(evaluation, "cores", lambda number=number: number * torch.get_num_threads())
        found.append(evaluate(arch, state, shard, batch=13))
    assert found[0] == found[1]
    assert len(threads) > 1


def test_an_update_can_be_evaluated_as_it_is():
    recipe = pruned(FILL)
    update = train_locally(recipe, small_task(recipe, SHARD, DENSE_NEED), SHARD)
    assert isinstance(update, Update)
    accuracy, loss = evaluate(ARCH, update.state, SHARD)
    assert 0 <= accuracy <= 1
    assert math.isfinite(loss)


@pytest.mark.parametrize("policy", ["fixed", "noise"])
@pytest.mark.parametrize(("criterion", "case"), [("taylor", "mlp"), ("activation", "mlp"), ("apoz", "vgg11")])
def test_held_out_samples_judge_the_model_before_and_after_and_change_nothing(policy, criterion, case):
    """Inputs of the perceptron are cut on the way, and so are running statistics of the convolutions."""
    arch = {"mlp": ARCH, "vgg11": NORMED}[case]
    shard, held_out = (random_shard(arch.input_shape, 4, n, seed=n) for n in (120, 50))
    prune, memory = replace(PRUNE, criterion=criterion), MemoryConfig(policy, max_batch=64)
    recipe = small_recipe(arch, TRAIN, prune, memory)
    task = small_task(recipe, shard, 10**9)
    update = train_locally(recipe, task, shard, held_out=held_out)
    statistics = update.statistics
    assert update.state.structure != task.state.structure
    assert statistics.num_local_test == 50
    assert statistics.local_accuracy_global == evaluate(arch, task.state, held_out)[0]
    assert statistics.local_accuracy_personal == evaluate(arch, update.state, held_out)[0]
    alone = train_locally(recipe, task, shard)
    assert same(alone.state, update.state)
    assert all(np.array_equal(alone.state.scores[g], s) for g, s in update.state.scores.items())
    without = {"num_local_test": 0, "local_accuracy_global": None, "local_accuracy_personal": None}
    assert replace(statistics, seconds=0, **without) == replace(alone.statistics, seconds=0)


# Of one hidden unit and many inputs: the batch is nearly all that there is, and loading it the peak.
WIDE = architecture(ModelConfig("mlp", [4], prune_inputs=False), (1, 28, 28), 5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("arch", [ARCH, CNN, WIDE, MODEL_WITH_GROUPS], ids=["mlp", "cnn", "wide", "resnet"])
def test_evaluation_takes_no_more_than_a_step_with_as_many_samples(arch, batch, optimizer):
    """Over several batches, the last one shorter, beside all that lives between steps."""
    shard, held_out = (random_shard(arch.input_shape, arch.num_classes, n) for n in (64, 3 * batch + 1))
    train = replace(TRAIN, optimizer=optimizer, momentum=0.0, batch_size=batch)
    recipe = small_recipe(arch, train, PRUNE)
    need = recipe.memory_model(1).training_bytes(arch.layout.widths, batch)
    run = begun(recipe, small_task(recipe, shard, need), shard).run
    assert run.steps.batch == batch
    with LiveTensors(run.held()) as meter:
        local_accuracy(run, held_out, "received")
    peaks = [peak for key, peak in fedhp.training.meter.PEAKS.items() if key[0] == "evaluation"]
    assert peaks == [meter.peak]
    assert 0.2 * need < meter.peak <= need


def test_evaluation_keeps_to_the_batch_that_fits(monkeypatch):
    """A budget of three samples: batches of three before the training, and of its last size after it."""
    recipe = pruned(MemoryConfig())
    budget = recipe.memory_model(1).training_bytes(ARCH.layout.widths, 3)
    held_out, taken = random_shard((1, 6, 6), 5, 20), []
    batch = held_out.batch

    def spied(rows, inputs, whole):
        assert not whole
        taken.append(len(rows))
        return batch(rows, inputs)

    monkeypatch.setattr(held_out, "batch", spied)
    update = train_locally(recipe, small_task(recipe, SHARD, budget), SHARD, held_out=held_out)
    assert taken[:7] == [3] * 6 + [2]
    assert max(taken[7:]) == update.statistics.batch_size_last > 3
    assert sum(taken) == 40
    assert update.statistics.memory_measured_bytes <= budget


NORMED = architecture(ModelConfig("vgg11", [6, 6, 6, 6, 6, 6, 6, 6]), (1, 8, 8), 4)


def test_running_statistics_of_a_federation_are_those_of_all_samples():
    """Two clients with unlike data and weights that stay: the server's statistics are the pooled ones."""
    train = TrainConfig(batch_size=16, learning_rate=1e-12, momentum=0.0, device="cpu")
    recipe = small_recipe(NORMED, train)
    state = initial_state(NORMED, 0)
    federation = Reconciliation(NORMED.layout, state)
    maps = []
    for seed, size in ((1, 64), (2, 192)):
        shard = random_shard((1, 8, 8), 4, size, seed=seed)
        shard._scales = [(150.0 * seed, 0.2 * 255)]  # unlike normalisation makes unlike data
        federation.add(train_locally(recipe, small_task(recipe, shard, state=state), shard))
        images, _ = shard.batch(np.arange(size))
        maps.append(nn.functional.conv2d(images, torch.tensor(state.weights["conv1.weight"]), padding=1))
    pooled = torch.cat(maps).movedim(1, 0).flatten(1)
    norm = to_module(NORMED, federation.mean()).get_submodule("norm1")
    np.testing.assert_allclose(norm.running_mean, pooled.mean(1), rtol=1e-3)
    np.testing.assert_allclose(norm.running_var, pooled.var(1), rtol=0.05)
    apart = torch.stack([m.movedim(1, 0).flatten(1).var(1) for m in maps]).mean(0)
    assert (norm.running_var > 1.05 * apart).all(), "the spread between clients is in it"


def test_a_lone_last_sample_takes_no_step_where_batches_are_normalised():
    """17 samples by 16: one step; the loss and accuracy are those of 16. One sample alone is refused."""
    train = TrainConfig(batch_size=16, device="cpu")
    recipe = small_recipe(NORMED, train)
    shard = random_shard((1, 8, 8), 4, 17)
    update = train_locally(recipe, small_task(recipe, shard), shard)
    assert update.statistics.accuracy * 16 == pytest.approx(round(update.statistics.accuracy * 16))
    one = random_shard((1, 8, 8), 4, 1)
    with pytest.raises(TrainingError, match="1, where a step takes 2"):
        train_locally(recipe, small_task(recipe, one), one)


def two_norms(input_shape, num_classes):
    def block(taken, made):
        return [nn.Conv2d(taken, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]

    blocks = [*block(input_shape[0], 16), *block(16, 16)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


TWO_NORMS = architecture(ModelConfig(target=f"{__name__}:two_norms"), (1, 6, 6), 4)
# At a rate that next to nothing comes of, so that cuts alone change the network; the batch divides the rows.
STILL = TrainConfig(batch_size=16, learning_rate=1e-12, momentum=0.0, lr_schedule="constant", device="cpu")


@pytest.mark.parametrize("criterion", ["taylor", "activation"])
@pytest.mark.parametrize("policy", ["fixed", "noise"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.0, 0.6)])
def test_running_statistics_after_a_cut_are_those_of_the_network_that_is_left(criterion, policy, start, end):
    """Of its own maps on the epoch's samples, computed by hand: nothing of the network before is in them."""
    shard = random_shard((1, 6, 6), 4, 160)
    prune = PruneConfig(target_compression=3, start=start, end=end, cuts=1, criterion=criterion)
    recipe = small_recipe(TWO_NORMS, STILL, prune, MemoryConfig(policy))
    update = train_locally(recipe, small_task(recipe, shard), shard)
    assert update.state.structure != update.assigned
    module = to_module(TWO_NORMS, update.state)
    norms = [module.get_submodule(name) for name in "14"]
    found = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    images, _ = shard.batch(np.arange(160))
    with torch.no_grad():
        first = module[0](images).movedim(1, 0).flatten(1)
        second = module[3](module[:3].train()(images)).movedim(1, 0).flatten(1)
    for (mean, variance), maps in zip(found, (first, second), strict=True):
        assert float((mean - maps.mean(1)).abs().max()) < 0.02 * float(maps.std())
        torch.testing.assert_close(variance, maps.var(1), rtol=0.1, atol=1e-4)


def test_statistics_are_taken_anew_only_where_too_few_samples_came_after_the_last_cut(monkeypatch):
    """Ten steps of 16, of which the cut leaves one or nine; where 100 samples are wanted, seven steps do."""
    taken = []
    retake = torch_runtime.retake_statistics
    monkeypatch.setattr(moments, "ENOUGH", 100)
    monkeypatch.setattr(
        torch_runtime,
        "retake_statistics",
        lambda module, batches: retake(module, seen(batches, taken)),
    )
    shard = random_shard((1, 6, 6), 4, 160)
    for end, wanted in ((0.9, [16] * 6 + [4]), (0.1, [])):
        prune = PruneConfig(target_compression=3, start=0.0, end=end, cuts=1)
        recipe = small_recipe(TWO_NORMS, STILL, prune)
        train_locally(recipe, small_task(recipe, shard), shard)
        assert taken == wanted
        taken.clear()


def seen(batches, sizes):
    for batch in batches:
        sizes.append(len(batch))
        yield batch


def test_the_budget_holds_while_statistics_are_taken_anew():
    shard = random_shard((1, 6, 6), 4, 64)
    prune = PruneConfig(target_compression=1.2, start=0.0, end=1.0, cuts=1)
    recipe = small_recipe(TWO_NORMS, STILL, prune)
    need = recipe.memory_model(1).training_bytes(TWO_NORMS.layout.widths, 16)
    update = train_locally(recipe, small_task(recipe, shard, need), shard)
    ((_, peak),) = [entry for entry in fedhp.training.meter.PEAKS.items() if entry[0][0] == "statistics"]
    left = recipe.memory_model(1).training_bytes(update.state.structure.counts, 16)
    assert 0.3 * need < peak <= left < need


class Unremembered(nn.Module):
    """A batch normalisation without running statistics, and one whose statistics are plain means."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(36, 8), nn.Linear(8, num_classes)
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)
        self.other = nn.BatchNorm1d(8, momentum=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.other(self.norm(self.body(x.flatten(1))).relu()))


class Forgetful(nn.Module):
    """Nothing but a batch normalisation that keeps no running statistics."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(36, 8), nn.Linear(8, num_classes)
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x.flatten(1))).relu())


@pytest.mark.parametrize("network", ["Unremembered", "Forgetful"])
def test_a_lone_sample_is_never_normalised_by_itself(network):
    """17 samples by 16 are one step; and are judged by 15 and 2, as 16 and 1 could not be."""
    arch = architecture(ModelConfig(target=f"{__name__}:{network}"), (1, 6, 6), 4)
    assert arch.layout.smallest_batch == 2
    recipe = small_recipe(arch, replace(STILL, learning_rate=0.05), PRUNE)
    shard = random_shard((1, 6, 6), 4, 17)
    update = train_locally(recipe, small_task(recipe, shard), shard, held_out=shard)
    assert update.state.structure != update.assigned
    module = to_module(arch, update.state).eval()
    images, labels = shard.batch(np.arange(17))
    with torch.no_grad():
        right = [
            (module(images[part]).argmax(1) == labels[part]).sum() for part in (slice(15), slice(15, 17))
        ]
    assert evaluate(arch, update.state, shard, batch=16)[0] == pytest.approx(int(sum(right)) / 17)
