"""A guard over a device's training: what it does where memory gets short, told or really."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import same_bits
from small_models import random_shard, small_recipe, small_task

from fedhp.costs.memory_watch import MemoryWatch
from fedhp.costs.this_process import ThisProcess
from fedhp.errors import BudgetError
from fedhp.federation.checks import UpdateChecks
from fedhp.model.building import initial_state
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.training import stack
from fedhp.training.batches import MemoryConfig
from fedhp.training.memory_guard import MemoryGuard
from fedhp.training.moments import take_moments
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe
from fedhp.training.runtime import NUMPY, TORCH
from fedhp.training.trainer import train_locally

ARCH = architecture(ModelConfig("mlp", [40, 20]), (1, 6, 6), 5)
SHARD = random_shard((1, 6, 6), 5, 120)
TRAIN = TrainConfig(local_epochs=2, batch_size=32, learning_rate=0.05, device="cpu")
LATE = PruneConfig(target_compression=4, start=0.98, end=0.99, cuts=1)
DENSE = PruneConfig(target_compression=1.0)
PRUNE = PruneConfig(target_compression=4, start=0.1, end=0.7, cuts=5)
HELD = 2 * 4 * ARCH.layout.num_parameters(ARCH.layout.widths)  # parameters and their momenta
FULL = ARCH.layout.widths
MIB = 2**20
RESERVE, PLENTY = 1000, 10**9
BOTH = pytest.mark.parametrize("runtime", [TORCH, NUMPY])


class Scripted:
    """Says what is left each time that it is asked, twice where it is little: the last for good."""

    def __init__(self, *left: int | None, spikes: tuple[int, ...] = ()) -> None:
        self.script, self.spikes, self.trims = list(left), list(spikes), 0

    def left(self) -> int | None:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def spike(self) -> int:
        return self.spikes.pop(0) if self.spikes else 0

    def give_back(self) -> None:
        self.trims += 1


def guard(*left: int | None) -> MemoryGuard:
    """One that looks before every step."""
    return MemoryGuard(MemoryWatch(Scripted(*left), RESERVE, 0.0, clock=lambda: 0.0))


def recipe(runtime: str = TORCH, prune: PruneConfig = PRUNE) -> Recipe:
    return replace(small_recipe(ARCH, TRAIN, prune, MemoryConfig()), runtime_name=runtime)


def trained(chosen, watched: MemoryGuard | None, budget: int | None = None, state=None, on_epoch=None):
    task = small_task(chosen, SHARD, budget, state=state)
    update = train_locally(chosen, task, SHARD, on_epoch, guard=watched)
    UpdateChecks(ARCH.layout, task.state.structure).check(update, task.profile)
    return update


def needs(chosen: Recipe, batch: int, counts=FULL) -> int:
    return chosen.memory_model(1).training_bytes(counts, batch)


# --- told ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("left", [PLENTY, None], ids=["plenty", "not told"])
def test_where_memory_is_not_short_a_guard_changes_nothing(runtime, left):
    chosen = recipe(runtime)
    alone, watched = trained(chosen, None), trained(chosen, guard(left))
    assert same_bits(alone.state, watched.state)
    assert alone.statistics.num_shortages is None
    assert (watched.statistics.num_shortages, watched.statistics.memory_left_bytes) == (0, left)


@BOTH
def test_what_is_left_at_the_start_is_a_budget_as_any_other(runtime):
    chosen = recipe(runtime)
    left = needs(chosen, 8)
    alone = trained(chosen, None, left)
    watched = trained(chosen, guard(*[RESERVE + left] * 2, PLENTY), 10 * left)
    assert same_bits(alone.state, watched.state)
    said = watched.statistics
    assert (said.batch_size_first, said.num_shortages, said.memory_left_bytes) == (8, 1, RESERVE + left)


def test_running_statistics_are_taken_in_batches_of_what_is_left_and_of_the_whole_model():
    arch = architecture(ModelConfig("conv1d", [4, 4], norm="batch"), (1, 4, 16), 3)
    chosen = small_recipe(arch, TRAIN, PRUNE, MemoryConfig())
    shard = random_shard((1, 4, 16), 3, 40)
    task, memory = small_task(chosen, shard, 10**8), chosen.memory_model(shard.raw_itemsize)
    left = RESERVE + memory.training_bytes(arch.layout.widths, 4)
    short, plenty = (
        take_moments(chosen, guard(some, some).begun(chosen, task, shard, cuts=False), shard)
        for some in (left, PLENTY)
    )
    assert short.memory_measured_bytes < plenty.memory_measured_bytes
    assert short.weights.keys() == plenty.weights.keys()
    assert all(short.weights[name].shape == plenty.weights[name].shape for name in short.weights)
    with pytest.raises(BudgetError, match="memory is short on this device"):
        guard(RESERVE + 10, RESERVE + 10).begun(chosen, task, shard, cuts=False)


@BOTH
def test_memory_that_gets_short_makes_steps_smaller(runtime):
    chosen = recipe(runtime, DENSE)
    script = [PLENTY] * 3 + [RESERVE + needs(chosen, 8) - HELD] * 2 + [PLENTY]
    said = trained(chosen, guard(*script)).statistics
    assert (said.batch_size_first, said.batch_size_last, said.num_shortages) == (32, 8, 1)
    assert said.memory_left_bytes == script[3]
    assert said.memory_predicted_bytes == needs(chosen, 32)


def within_the_family(chosen, counts, allowed: int) -> bool:
    """Says whether of all that groups shrink to together, these are the most that fit with one sample."""
    fitting = [
        some
        for fraction in np.linspace(0, 1, 4001)
        if needs(chosen, 1, some := chosen.shape.counts(fraction, FULL)) <= allowed
    ]
    return counts == max(fitting, key=lambda some: sum(some.values()))


def test_where_no_step_fits_the_best_units_are_kept_that_do():
    """Too little for one sample, before anything is allocated."""
    calm = recipe(prune=LATE)
    allowed = needs(calm, 1) - 4000
    stream = np.random.default_rng(0)
    scores = {group: stream.uniform(0.5, 1.5, width).astype(np.float32) for group, width in FULL.items()}
    start = initial_state(ARCH, 3)
    start = ModelState(start.weights, start.structure, scores)
    cut: list[Structure] = []
    little = guard(*[RESERVE + allowed] * 2, PLENTY)
    watched = trained(calm, little, state=start, on_epoch=lambda one, _: cut.append(one.state.structure))
    assert within_the_family(calm, cut[0].counts, allowed)
    for group, kept in ((group, cut[0].kept(group)) for group in FULL):
        assert set(kept) == set(np.argsort(-scores[group])[: len(kept)])
    assert watched.assigned == start.structure


@BOTH
def test_units_are_cut_as_memory_gets_short(runtime):
    """Beside parameters and momenta, an average of each unit's scores is held."""
    calm = recipe(runtime, LATE)
    allowed = needs(calm, 1) - 4000
    script = [PLENTY] * 3 + [RESERVE + allowed - HELD - 4 * sum(FULL.values())] * 2 + [PLENTY]
    cut: list[Structure] = []
    watched = trained(calm, guard(*script), on_epoch=lambda one, _: cut.append(one.state.structure))
    assert within_the_family(calm, cut[0].counts, allowed)
    assert watched.statistics.num_shortages == 1


@BOTH
def test_a_device_that_has_too_little_for_the_schedules_end_declines(runtime):
    chosen = recipe(runtime)
    least = needs(chosen, 1, chosen.schedule.counts(1.0))
    trained(chosen, guard(*[RESERVE + least] * 2, PLENTY))
    with pytest.raises(
        BudgetError, match=r"^memory is short on this device, .* left with a reserve of 1000 B"
    ):
        trained(chosen, guard(RESERVE + least - 1))
    with pytest.raises(BudgetError, match="memory is short on this device, 0 B left with a reserve"):
        trained(chosen, guard(PLENTY, PLENTY, 0))


def test_who_does_not_prune_declines_where_one_sample_is_too_much():
    chosen = recipe(prune=DENSE)
    trained(chosen, guard(*[RESERVE + needs(chosen, 1)] * 2, PLENTY))
    with pytest.raises(BudgetError, match="memory is short on this device"):
        trained(chosen, guard(RESERVE + needs(chosen, 1) - 1))


def test_the_budget_counts_where_it_is_the_lesser():
    chosen = recipe(prune=DENSE)
    with pytest.raises(BudgetError, match=r"^training this model with one sample"):
        trained(chosen, guard(PLENTY), needs(chosen, 1) - 1)


def failing(monkeypatch, place: str, how: Callable[..., Exception], times: int = 1) -> list[int]:
    """Lets the first calls of a function fail, having done its work or not; tells the calls' batches."""
    real, calls = getattr(stack, place), []

    def broken(tensors, batch, take):
        calls.append(batch.samples.shape[1])
        if len(calls) <= times:
            raise how(real, tensors, batch, take)
        return real(tensors, batch, take)

    monkeypatch.setattr(stack, place, broken)
    return calls


def at_once(*given) -> Exception:
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8")


def half_way(real, tensors, batch, take) -> Exception:
    real(tensors, batch, take)
    return at_once()


def test_a_step_that_finds_no_memory_is_taken_again_with_half_of_it(monkeypatch):
    """It is the second: gradients of the first are looked at, and so computed otherwise."""
    chosen = recipe(prune=DENSE)
    half = (needs(chosen, 32) - HELD) // 2
    told = trained(chosen, guard(PLENTY, PLENTY, RESERVE + half, RESERVE + half, PLENTY))
    calls = failing(monkeypatch, "chain_gradients", at_once)
    found = trained(chosen, guard(None))
    assert same_bits(found.state, told.state)
    assert calls[:2] == [32, told.statistics.batch_size_last]
    assert found.statistics.num_shortages == 1


def test_a_step_that_fails_half_way_is_not_sent(monkeypatch):
    failing(monkeypatch, "chain_gradients", half_way)
    with pytest.raises(BudgetError, match=r"^memory is short on this device.*: an allocation failed$"):
        trained(recipe(prune=DENSE), guard(None))


def test_a_device_whose_steps_never_find_memory_declines(monkeypatch):
    failing(monkeypatch, "chain_gradients", at_once, times=10**6)
    with pytest.raises(BudgetError, match="training this model with one sample"):
        trained(recipe(prune=DENSE), guard(None))


def test_without_a_guard_a_failure_is_as_it_was(monkeypatch):
    failing(monkeypatch, "chain_gradients", at_once)
    with pytest.raises(RuntimeError, match="can't allocate"):
        trained(recipe(prune=DENSE), None)


# --- the watch -------------------------------------------------------------------------------


def test_what_steps_take_beyond_the_forecast_counts():
    """Forecast 10 MiB beside 5 held, and 20 were taken: 13 MiB beside the reserve are as good as 6.5."""
    memory = Scripted(14 * MIB, spikes=(20 * MIB,))
    watch = MemoryWatch(memory, MIB, 0.0, lambda: 0.0)
    assert watch.look(5 * MIB, 15 * MIB) == 5 * MIB + 13 * MIB // 2
    assert watch.look(5 * MIB, 15 * MIB) is None


def test_a_step_may_take_half_of_what_is_left_or_all_but_the_reserve():
    """Of 30 MiB, 16 of them a reserve, half; of 40 all but that. An eighth more is let pass."""
    for left, most in ((30, 15), (40, 24)):
        watch = MemoryWatch(Scripted(left * MIB), 16 * MIB, 0.0, lambda: 0.0)
        assert watch.look(0, most * MIB * 9 // 8) is None
        assert watch.look(0, most * MIB * 9 // 8 + 1) == most * MIB


def test_what_the_allocator_keeps_is_given_back_before_memory_is_called_short():
    memory = Scripted(5 * MIB, 50 * MIB)
    watch = MemoryWatch(memory, MIB, 0.0, lambda: 0.0)
    assert watch.look(0, 10 * MIB) is None
    assert (memory.trims, watch.least_left) == (1, 50 * MIB)


def test_looks_take_a_two_hundredth_of_the_time_at_most():
    """It is looked at once in 50 ms; at once in 200 where a look took 1, and in 250 where it took 5."""
    times = [0.0, 1.0, 1.0, 1.0, 1.049, 1.051, 2.0, 2.001, 2.2, 2.202, 3.0, 3.005, 3.254, 3.256]
    watch = MemoryWatch(Scripted(PLENTY), MIB, clock=lambda: times.pop(0))
    assert watch.is_due
    for _ in range(3):
        watch.look(0, 1)
        assert [watch.is_due, watch.is_due] == [False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_process_knows_how_far_it_went():
    memory = ThisProcess()
    large = np.ones(64 * MIB // 8)
    memory.give_back()
    del large
    assert memory.spike() == pytest.approx(64 * MIB, rel=0.1)
    assert memory.spike() < 8 * MIB


# --- real processes ---------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="its limits are Linux's")
V1 = Path("/sys/fs/cgroup/memory")


def started(*words: object, group: Path | None = None) -> tuple[subprocess.Popen[str], dict]:
    """Starts a process, within a control group; returns it with what it says once it is ready."""

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            if words[0] == "train":  # it is whom the system is to end
                Path("/proc/self/oom_score_adj").write_text("1000")

    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("short_of_memory.py")), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=enter,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return process, json.loads(line)


@linux
@pytest.mark.integration
def test_under_a_limit_of_the_system_a_process_trains_in_smaller_steps():
    """26 MiB are forecast, and 22 allowed: without a guard an allocation fails."""
    alone, said = started("train", NUMPY, 0, 2048, 1, 22)
    assert said["predicted"] > 26 * MIB
    assert "MemoryError" in alone.communicate("\n")[1]
    watched, _ = started("train", NUMPY, 8, 2048, 1, 22)
    found = json.loads(watched.communicate("\n")[0].splitlines()[-1])
    assert found["finite"]
    assert found["num_shortages"] >= 1
    assert 1 <= found["batch_size_first"] < 2048
    assert found["memory_predicted_bytes"] <= 15 * MIB


@pytest.fixture
def control_group():
    """A control group of the test's own, whose memory can be limited."""
    group = V1 / f"fedhp-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(2**40))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


def trained_beside_another(group: Path, reserve: int) -> tuple[int, dict]:
    """Trains within 60 MiB more than there are; another process takes 36 of them as the training goes on."""
    device, _ = started("train", NUMPY, reserve, 2048, 6, 0, group=group)
    taker, _ = started("take", group=group)
    assert device.stdin is not None
    assert device.stdout is not None
    assert taker.stdin is not None
    said, taken = {}, 0
    try:
        used = int((group / "memory.usage_in_bytes").read_text())
        (group / "memory.limit_in_bytes").write_text(str(used + 60 * MIB))
        device.stdin.write("\n")
        device.stdin.flush()
        for said in map(json.loads, device.stdout):
            if "trained" in said and taken < 36:
                taken += 2
                taker.stdin.write("\n\n")
                taker.stdin.flush()
    finally:
        device.communicate()
        taker.communicate()
    return device.returncode, said


@linux
@pytest.mark.integration
def test_a_device_outlives_a_process_that_takes_its_memory(control_group):
    """Without a guard the system ends it."""
    assert trained_beside_another(control_group, 0)[0] == -signal.SIGKILL
    (control_group / "memory.limit_in_bytes").write_text(str(2**40))
    status, said = trained_beside_another(control_group, 8)
    assert status == 0
    assert "memory is short on this device" in said.get("declined", "") or (
        said["finite"] and said["num_shortages"] >= 1 and said["batch_size_last"] < 2048
    )
