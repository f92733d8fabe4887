"""Memory as the operating system sees it: one device's training in a process of its own, under a hard limit.

The model's bytes and the live tensors say what training takes. Here the process itself is measured: its peak
of resident memory above what it held before, and whether training ends at all where the system allows it no
more than the budget.
"""

import re
from pathlib import Path
from typing import Any

from fedhp.bench.isolation import isolated
from fedhp.data.parts import client_shard
from fedhp.errors import FedhpError
from fedhp.run.central import prepare_central
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.threads import threads_of_a_process
from fedhp.training.trainer import train_locally
from fedhp.training.update import RoundTask

# A tensor has pages of its own, which the system gets back when it is freed; one thread, one pool, and in it
# Python's objects too: for them, the interpreter takes a whole MiB at a time.
_ENVIRONMENT = {
    **threads_of_a_process(1),
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONMALLOC": "malloc",
}
_MEBIBYTE = 2**20
_PAGES = 25  # a part of the memory is left to the ends of pages and the allocator's headers
_FEW = 20  # the first round has this part of the samples


def run_process(limit_bytes: int, epochs: int = 10) -> dict[str, Any]:
    """Trains dense and with DynHP on the digits, each without and with a limit of the system.

    DynHP's budget is that limit, less a twenty-fifth for what lies between tensors.

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
        _row(arm, limited, limit_bytes, epochs) for arm in ("dense", "dynhp") for limited in (False, True)
    ]
    return {"limit_mebibytes": limit_bytes / _MEBIBYTE, "rows": rows}


def _row(arm: str, limited: bool, limit: int, epochs: int) -> dict[str, Any]:
    try:
        answer = isolated(_device, arm, limited, limit, epochs, environment=_ENVIRONMENT)
    except EOFError:
        answer = {"outcome": "the process died"}
    return {"arm": arm, "limited": limited, **answer}


def _scenario(arm: str, budget: int, epochs: int) -> Scenario:
    """The digits, and a network that is large beside the scratch space of the libraries."""
    dense = {"prune.target_compression": 1.0}
    dynhp = {"prune.target_compression": 10.0, "memory.budget": f"{budget}B"}
    shared = {"model.widths": [2048, 2048], "train.epochs": epochs}
    return load_scenario("quickstart", values={**shared, **(dense if arm == "dense" else dynhp)})


def _device(arm: str, limited: bool, limit: int, epochs: int) -> dict[str, Any]:
    central = prepare_central(_scenario(arm, limit - limit // _PAGES, epochs))
    task = RoundTask(1, 0, central.profile, central.start)
    few = client_shard(central.scenario.data, _FEW, central.scenario.seed, 0)
    train_locally(
        central.recipe, task, few
    )  # a device that has trained before, and holds what libraries keep
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    if limited:
        _limit(limit)
    answer = {"params_first": central.start.num_parameters(), "held_before": before / _MEBIBYTE}
    try:
        update = train_locally(central.recipe, task, central.train)
    except (RuntimeError, MemoryError) as error:
        short = "memory" in str(error) or isinstance(error, MemoryError)
        return {**answer, "outcome": "out of memory" if short else f"failed: {error}"}
    return {
        **answer,
        "outcome": "trained",
        "params_last": update.state.num_parameters(),
        "predicted": update.statistics.memory_predicted_bytes / _MEBIBYTE,
        "live_tensors": update.statistics.memory_measured_bytes / _MEBIBYTE,
        "resident": (_status("VmHWM") - before) / _MEBIBYTE,
        "train_accuracy": update.statistics.accuracy,
    }


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
