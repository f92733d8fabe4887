"""What a device can train: its memory, its speed, and the part of a scenario's model that fits."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedhp.aggregation.assignment import fit_counts, fit_structure, halvings
from fedhp.costs.machine import Room, own_memory, room
from fedhp.costs.memory import MemoryModel
from fedhp.data.checks import checked_images
from fedhp.data.device import device_shard
from fedhp.data.normalisation import Normalisation, measure
from fedhp.data.own import find_own
from fedhp.data.shard import Shard
from fedhp.data.sources import SOURCES
from fedhp.errors import DeploymentError
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario
from fedhp.sizes import format_size
from fedhp.threads import NUMPY, TORCH, cores, torch_threads, usual_runtime
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally
from fedhp.training.update import RoundTask, Update

# What a device takes that waits, as docs/devices.md measured it: the SuperNode, and what keeps it going.
WAITING_BYTES = 140 * 2**20
_NAMES = {TORCH: "PyTorch", NUMPY: "NumPy"}
_SHARE = 0.5  # of what is left then; the rest is for the samples, and for other programs
_MEBIBYTE = 2**20
_STEPS = 16


@dataclass(frozen=True)
class Part:
    """The largest part of a model that trains within a budget at a batch size.

    Attributes:
        batch: Samples per step; a smaller one where the smallest part does not fit with so many.
        counts: Units per group.
        parameters: Its parameters.
        share: Of the full model's.
        bytes: What training takes, by the memory model.
    """

    batch: int
    counts: dict[str, int]
    parameters: int
    share: float
    bytes: int


@dataclass(frozen=True)
class DeviceCheck:
    """What a device has, and what it can train.

    Attributes:
        machine: Architecture and Python.
        runtime: What trains, with its version.
        cores: Processor cores that may be used.
        room: Memory that is left.
        process_bytes: What this process takes that has just trained; None where the system does not tell.
        threads: Those that it trained with.
        disk_bytes: What is left where its SuperNode keeps files.
        samples: What was trained on.
        samples_per_second: Of the largest part below, at its batch.
        step_milliseconds: Of the same.
        proposed_bytes: The proposed budget; None where memory is not known.
        budget_bytes: The budget that the parts are for.
        full_bytes: What the full model takes at the scenario's batch.
        parts: What fits.
    """

    machine: str
    runtime: str
    cores: int
    threads: int
    room: Room
    process_bytes: int | None
    disk_bytes: int
    samples: str
    samples_per_second: float
    step_milliseconds: float
    proposed_bytes: int | None
    budget_bytes: int
    full_bytes: int
    parts: list[Part]


def check_device(
    scenario: Scenario,
    data: Path | None,
    budget_bytes: int | None,
    runtime: str = "",
    threads: int = 1,
    home: Path | None = None,
) -> DeviceCheck:
    """Looks at this machine, trains a few steps, and says what of a scenario's model it can train.

    Args:
        scenario: The scenario.
        data: The device's own samples; None makes some up.
        budget_bytes: The budget; None takes the proposed one.
        runtime: What trains; by default what does here usually.
        threads: How many it trains with. NumPy takes those that its process was given when it imported that.
        home: Where the SuperNode is to keep its files; None is Flower's usual place.

    Raises:
        FedhpError: If the data does not fit the scenario, or the budget holds nothing of its model.
    """
    shard = _made_up(scenario) if data is None else _own(scenario, data)
    whole = recipe_of(scenario, shard.input_shape, shard.num_classes)
    whole = replace(whole, runtime_name=runtime or usual_runtime())
    whole.runtime.check(whole, scenario.model.said)  # as a run does
    recipe = whole.without_pruning()
    memory = recipe.memory_model(shard.raw_itemsize)
    left = room()
    proposed = None if left.bytes is None else _proposed(left.bytes)
    budget = budget_bytes or proposed
    if not budget:
        raise DeploymentError(_no_room(left))
    parts = list(_parts(memory, recipe, budget))
    with torch_threads(threads) if whole.runtime_name == TORCH else nullcontext():
        update = _trained(memory, recipe, shard, budget)
    said, number = update.statistics, update.num_examples
    return DeviceCheck(
        machine=f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        runtime=f"{_NAMES[whole.runtime_name]} {version(whole.runtime_name)}",
        cores=cores(),
        threads=threads,
        room=left,
        process_bytes=own_memory(),
        disk_bytes=_disk_left(home),
        samples="made up" if data is None else f"{len(shard):,} of {data}",
        samples_per_second=number / said.seconds,
        step_milliseconds=1000 * said.seconds * said.batch_size_last / number,
        proposed_bytes=proposed,
        budget_bytes=budget,
        full_bytes=memory.training_bytes(memory.layout.widths, recipe.train.batch_size),
        parts=parts,
    )


def _disk_left(home: Path | None) -> int:
    place = home or Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr")).absolute()
    return shutil.disk_usage(next(one for one in (place, *place.parents) if one.is_dir())).free


def _proposed(left: int) -> int:
    """Returns a budget in whole MiB of two digits at most, of what is left beside a device that waits."""
    free = int((left - WAITING_BYTES) * _SHARE) // _MEBIBYTE
    rounding = 10 ** max(0, len(str(max(0, free))) - 2)
    return max(0, free) // rounding * rounding * _MEBIBYTE


def _no_room(left: Room) -> str:
    if left.bytes is None:
        return "this system does not say what memory is left; give a --budget"
    return (
        f"{format_size(left.bytes)} of memory are left, and a device that only waits takes about "
        f"{format_size(WAITING_BYTES)}; free some, or give a --budget to see what it would hold"
    )


def _parts(memory: MemoryModel, recipe: Recipe, budget: int) -> Iterator[Part]:
    """Yields what fits at the scenario's batch, at a quarter of it, and so on."""
    batches = list(halvings(recipe.train.batch_size, memory.layout.smallest_batch))
    parts = [_part(memory, recipe, batch, budget) for batch in dict.fromkeys([*batches[::2], batches[-1]])]
    yield from (part for place, part in enumerate(parts) if part not in parts[:place])


def _part(memory: MemoryModel, recipe: Recipe, batch: int, budget: int) -> Part:
    layout = memory.layout
    counts = fit_counts(memory, recipe.shape, layout.widths, budget, batch)
    least = layout.smallest_batch
    fitting = next(one for one in halvings(batch, least) if memory.training_bytes(counts, one) <= budget)
    number = layout.num_parameters(counts)
    share = number / layout.num_parameters(layout.widths)
    return Part(fitting, dict(counts), number, share, memory.training_bytes(counts, fitting))


def _trained(memory: MemoryModel, recipe: Recipe, shard: Shard, budget: int) -> Update:
    """Trains a few steps of the part of the model that fits, twice: the first time, much is loaded."""
    state, batch = _any_state(memory.layout), recipe.train.batch_size
    structure = fit_structure(memory, recipe.shape, state, budget, batch)
    rows = np.resize(np.arange(len(shard)), batch * _STEPS)
    profile = DeviceProfile("device", budget, len(rows))
    task = RoundTask(1, 0, profile, state.cut(memory.layout, structure))
    once = replace(recipe, train=replace(recipe.train, local_epochs=1))
    updates = [train_locally(once, task, shard.part(rows)) for _ in range(2)]
    return updates[-1]


def _any_state(layout: Layout) -> ModelState:
    """Returns weights that train as fast as any: those of a run are drawn by PyTorch, on the server."""
    random = np.random.default_rng(0)
    weights = {
        name: random.normal(0, 0.05, shape).astype(np.float32) for name, shape in layout.shapes.items()
    }
    return ModelState(weights, layout.full())


def _made_up(scenario: Scenario) -> Shard:
    """Returns noise in the shape of a data set that is known by name; it trains as fast as any other."""
    source = SOURCES[scenario.data.name]
    if source.input_shape is None:
        raise DeploymentError(
            f"the samples of data.name={scenario.data.name} are the user's own, of a shape that only they "
            f"tell: give some with --data"
        )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (256, *source.input_shape), np.uint8)
    labels = np.arange(256) % source.num_classes
    return Shard(images, labels, np.arange(256), num_classes=source.num_classes, mean=0.5, std=0.3)


def _own(scenario: Scenario, data: Path) -> Shard:
    """Opens the device's samples as a run would, as far as the scenario alone says what they should be."""
    source = SOURCES[scenario.data.name]
    if source.input_shape is None or source.normalisation is None:
        own = find_own(data).read(None)
        images, axis = checked_images(own.images, own.images_place, scenario.data.layout)
        names = tuple(sorted(set(own.labels.tolist()))) if own.labels.dtype.kind in "SU" else ()
        return device_shard(str(data), normalisation=measure(images, axis), label_names=names)
    mean, std = source.normalisation
    return device_shard(
        str(data),
        normalisation=Normalisation((mean,), (std,)),
        input_shape=source.input_shape,
        num_classes=source.num_classes,
        label_names=source.label_names,
        layout=scenario.data.layout,
    )
