"""The memory of a device, all its processes together, beside that of a SuperNode as Flower starts it."""

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from fedhp.bench.loopback import Started, device, serving, write_samples

_LOOK_SECONDS = 0.2
_WAIT_SECONDS = 15.0  # of a phase in which nothing happens
_REST_SECONDS = 75.0  # after which a device's client process has ended
_BEFORE, _NOW = "flower-supernode, PyTorch", "fedhp device run, NumPy"


def run_device_memory(rounds: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains the MLP 784-300-100-10 on two devices of this machine, with 600 samples each, in one run.

    One is a SuperNode as Flower starts it, with PyTorch, the other what ``fedhp device run`` starts, with
    NumPy. Looked at is the proportional set size of all processes of each, five times a second.

    Args:
        rounds: How many rounds.
        say: Told what happens.

    Returns:
        One row per device, and one of ratios, in MiB: ``waiting`` before any run (median), ``in_a_run``
        (median), ``training`` (the most), and ``waiting_after`` the run, when it has rested (median).

    Raises:
        FedhpError: If the system is not Linux, or the run does not come to its end.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        data = write_samples(place, 2, 600, 28, 10)
        server = stack.enter_context(serving(place, 2))
        devices = {
            _BEFORE: stack.enter_context(device(server, 0, plain=True, runtime="torch", budget="64MiB")),
            _NOW: stack.enter_context(device(server, 1, runtime="numpy", budget="64MiB")),
        }
        say("two devices start")
        devices[_BEFORE].wait_for("SuperNode ID")
        devices[_NOW].wait_for("connected to")
        time.sleep(_WAIT_SECONDS)
        looked = {"waiting": _watched(devices, lambda: time.sleep(_WAIT_SECONDS))}
        say("they train")
        words = ["quickstart", "data.name=npz", f"data.root={data}", "model.widths=[300,100]"]
        words += ["train.batch_size=10", "train.local_epochs=1", f"rounds={rounds}"]
        record = place / "record"
        looked["run"] = _watched(devices, lambda: server.run(record, *words, "--out", str(record)))
        say("they rest")
        time.sleep(_REST_SECONDS)
        looked["after"] = _watched(devices, lambda: time.sleep(_WAIT_SECONDS))
    rows = [_row(name, {phase: seen[name] for phase, seen in looked.items()}) for name in devices]
    return {"rows": [*rows, _ratios(*rows)]}


def _watched(devices: Mapping[str, Started], act: Callable[[], object]) -> dict[str, list[float]]:
    """Returns what each device took while something was done."""
    seen: dict[str, list[float]] = {name: [] for name in devices}
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            for name, one in devices.items():
                seen[name].append(one.taken())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        act()
    finally:
        over.set()
        looking.join()
    return seen


def _row(name: str, seen: Mapping[str, list[float]]) -> dict[str, Any]:
    return {
        "device": name,
        "waiting": median(seen["waiting"]),
        "in_a_run": median(seen["run"]),
        "training": max(seen["run"]),
        "waiting_after": median(seen["after"]),
    }


def _ratios(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {key: "ratio" if key == "device" else now[key] / before[key] for key in before}
