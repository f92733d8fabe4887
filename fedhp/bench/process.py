"""Memory as the operating system sees it: one device's training in a process of its own, under a hard limit.

The model's bytes and the live tensors say what training takes. Here the process itself is measured: its peak
of resident memory above what it held before, and whether training ends at all where the system allows it no
more than the budget.
"""

import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

from fedhp.assignment import fit_structure
from fedhp.config import Scenario, load_scenario
from fedhp.data import Shard, client_shard, open_dataset
from fedhp.devices import DeviceProfile
from fedhp.errors import FedhpError
from fedhp.models import initial_state
from fedhp.recipe import Recipe
from fedhp.state import RoundTask
from fedhp.trainer import train_locally

# A tensor has pages of its own, which the system gets back when it is freed; one thread, one pool.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1"}
_MEBIBYTE = 2**20
_PAGES = 50  # a fiftieth of the memory is left to the ends of pages and the allocator's headers


def run_process(limit_bytes: int, epochs: int = 10) -> dict[str, Any]:
    """Trains dense and with DynHP on the digits, each without and with a limit of the system.

    DynHP's budget is that limit, less a fiftieth for what lies between tensors.

    Returns:
        One row per run: ``arm``, ``limited``, ``outcome``, the number of parameters at the start and the end,
        and in MiB: ``held_before``, what interpreter, libraries, data and the received model take, and above
        it ``predicted`` by the memory model, ``live_tensors`` measured and ``resident``, the process's peak.

    Raises:
        FedhpError: If the system is not Linux.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise FedhpError("this measurement reads /proc, which only Linux has")
    rows = [
        _isolated(arm, limited, limit_bytes, epochs)
        for arm in ("dense", "dynhp")
        for limited in (False, True)
    ]
    return {"limit_mebibytes": limit_bytes / _MEBIBYTE, "rows": rows}


def _scenario(arm: str, epochs: int) -> Scenario:
    """One device with all digits, and a network that is large beside the scratch space of the libraries."""
    return load_scenario(
        "quickstart",
        values={
            "rounds": 1,
            "model.widths": [2048, 2048],
            "fleet.num_clients": 1,
            "data.partition.name": "iid",
            "train.local_epochs": epochs,
            "prune.target_compression": 1.0 if arm == "dense" else 10.0,
        },
    )


def _isolated(arm: str, limited: bool, limit: int, epochs: int) -> dict[str, Any]:
    os.environ.update(_ENVIRONMENT)  # for the process to come: this one read its own when it started
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_device, args=(theirs, arm, limited, limit, epochs))
    process.start()
    theirs.close()
    try:
        return {"arm": arm, "limited": limited, **ours.recv()}
    except EOFError:
        return {"arm": arm, "limited": limited, "outcome": "the process died"}
    finally:
        process.join()


def _device(pipe: Any, arm: str, limited: bool, limit: int, epochs: int) -> None:
    budget = limit - limit // _PAGES
    recipe, task, few, shard = _prepare(_scenario(arm, epochs), None if arm == "dense" else budget)
    train_locally(recipe, task, few)  # a device that has trained before, and holds what libraries keep
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    if limited:
        _limit(limit)
    answer: dict[str, Any] = {
        "params_first": task.state.num_parameters(),
        "held_before": before / _MEBIBYTE,
    }
    try:
        update = train_locally(recipe, task, shard)
    except (RuntimeError, MemoryError) as error:
        short = "memory" in str(error) or isinstance(error, MemoryError)
        answer["outcome"] = "out of memory" if short else f"failed: {error}"
    else:
        answer |= {
            "outcome": "trained",
            "params_last": update.state.num_parameters(),
            "predicted": update.statistics.memory_predicted_bytes / _MEBIBYTE,
            "live_tensors": update.statistics.memory_measured_bytes / _MEBIBYTE,
            "resident": (_status("VmHWM") - before) / _MEBIBYTE,
            "train_accuracy": update.statistics.accuracy,
        }
    pipe.send(answer)


def _prepare(one: Scenario, budget: int | None) -> tuple[Recipe, RoundTask, Shard, Shard]:
    """Does what a server does: assigns the largest structure that the device can train within its budget."""
    dataset = open_dataset(one.data)
    recipe = one.recipe(dataset.input_shape, dataset.num_classes)
    shard, few = (client_shard(one.data, parts, one.seed, 0) for parts in (1, 20))
    memory = recipe.memory_model(shard.raw_itemsize)
    state = initial_state(recipe.architecture, one.seed)
    structure = fit_structure(memory, recipe.shape, state, budget, one.train.batch_size)
    task = RoundTask(1, 0, DeviceProfile("device", budget, len(shard)), state.cut(memory.layout, structure))
    return recipe, task, few, shard


def _limit(num_bytes: int) -> None:
    """Allows this process so much more memory of its own than it has, and no more."""
    import resource  # not on every platform

    allowed = _status("VmData") + num_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def _status(key: str) -> int:
    """Returns a figure of this process in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found, key
    return int(found[1]) * 1024
