"""A device's client process with NumPy beside one with PyTorch: its memory, and a round's time."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedhp.costs.machine import own_memory
from fedhp.data.normalisation import Normalisation
from fedhp.errors import FedhpError
from fedhp.federation import wire
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.references import CLIENT_APP, resolve
from fedhp.scenario.loading import load_scenario
from fedhp.simulation.identity import RUN_ID, acting_as
from fedhp.threads import threads_of_a_process
from fedhp.training.method_names import PRUNING

_SHAPE, _CLASSES, _SAMPLES, _NODE = (1, 28, 28), 10, 600, 1
_RUNTIMES = ("torch", "numpy")
_MEBIBYTE = 2**20


def run_runtimes(rounds: int = 20) -> dict[str, Any]:
    """Has a device train the MLP 784-300-100-10 on 600 samples, with each runtime in a process of its own.

    The processes are those in which ``fedhp device run`` has messages answered, but not connected. They take
    turns; the ratio is the median over the rounds but the first, in which peaks of memory are measured.

    Returns:
        One row per runtime: proportional set sizes in MiB, ``idle_mebibytes`` once it said who it is and
        ``training_mebibytes`` after the rounds, and ``milliseconds`` of a round, from message to message;
        and ``ratio``, that of NumPy's round to PyTorch's.

    Raises:
        FedhpError: If the system is not Linux.
    """
    if own_memory() is None:
        raise FedhpError("this measurement reads /proc, which only Linux has")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as processes:
        data = Path(folder) / "data.npz"
        stream = np.random.default_rng(0)
        images = stream.integers(0, 256, (_SAMPLES, *_SHAPE[1:])).astype(np.uint8)
        np.savez(data, x_train=images, y_train=np.arange(_SAMPLES) % _CLASSES)
        devices = {name: processes.enter_context(_device(name, data)) for name in _RUNTIMES}
        idle = {name: _asked(one) for name, one in devices.items()}
        turns = [{name: _asked(one) for name, one in devices.items()} for _ in range(rounds + 1)][1:]
    rows = [
        {
            "runtime": name,
            "idle_mebibytes": idle[name]["pss"],
            "training_mebibytes": turns[-1][name]["pss"],
            "milliseconds": 1e3 * median(turn[name]["seconds"] for turn in turns),
        }
        for name in _RUNTIMES
    ]
    ratios = (turn["numpy"]["seconds"] / turn["torch"]["seconds"] for turn in turns)
    return {"rows": rows, "rounds": rounds, "ratio": median(ratios)}


@contextmanager
def _device(runtime: str, data: Path) -> Iterator[subprocess.Popen[str]]:
    code = f"from {__name__} import answer; answer({runtime!r}, {str(data)!r})"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],  # not what lies in the current folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **threads_of_a_process(1)},
        text=True,
    )
    with process:
        yield process
        process.communicate()  # the end of what it reads


def _asked(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def answer(runtime: str, data: str) -> None:
    """Says who it is at the first line that it reads, trains at each further one; tells what that took."""
    import_module("fedhp.deployment.client")  # what a client process holds beside the app
    logging.getLogger("flwr").setLevel(logging.WARNING)
    app: ClientApp = resolve(CLIENT_APP)
    node: dict[str, Any] = {"data-path": data, "runtime": runtime}
    scenario = load_scenario("fashion_mnist_fleet", values={"train.batch_size": 10, "train.local_epochs": 1})
    brief = wire.Brief(scenario.to_json(), _SHAPE, _CLASSES, Normalisation((0.3,), (0.4,)), PRUNING, True)
    asked = wire.pack_query(brief), MessageType.QUERY
    for _ in sys.stdin:
        started = time.perf_counter()
        with acting_as(0):
            message = Message(asked[0], _NODE, asked[1])
        with acting_as(_NODE):
            reply = app(message, Context(RUN_ID, _NODE, node, RecordDict(), {}))
        assert reply.has_content(), reply.error
        told = {"seconds": time.perf_counter() - started, "pss": (own_memory() or 0) / _MEBIBYTE}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        asked = _task(brief), MessageType.TRAIN


def _task(brief: wire.Brief) -> RecordDict:
    layout = architecture(load_scenario("fashion_mnist_fleet").model, _SHAPE, _CLASSES).layout
    stream = np.random.default_rng(0)
    drawn = {name: stream.uniform(-0.05, 0.05, shape) for name, shape in layout.shapes.items()}
    weights = {name: one.astype(np.float32) for name, one in drawn.items()}
    return wire.pack_task(wire.pack_state(ModelState(weights, layout.full())), brief, 1)
