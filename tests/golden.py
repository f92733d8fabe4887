"""Golden runs: what fixed runs give to the last bit, kept in golden.json beside this file.

They hold still what a refactoring must not change. Where results are meant to change, write the file anew,
and say in the commit what changed them::

    pytest tests/test_golden.py tests/test_deployment.py --write-golden
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhp.records import RunResult, load_state

FILE = Path(__file__).with_suffix(".json")

# On other kernels sums are added up in another order: losses then differ in their last digits, until a unit
# on the edge is cut here and kept there. What is sent hangs on how many are kept, not on which.
TOLERANCES = {"losses": 0.02, "train losses": 0.02, "parameters": 0.0, "bytes down": 0.0, "bytes up": 0.0}

Golden = Mapping[str, Any]


def digest(run: RunResult) -> Golden:
    """Returns the figures of a run, and digests of its structure and weights."""
    state, _ = load_state(run.folder)
    weights = hashlib.sha256()
    for name in sorted(state.weights):
        weights.update(name.encode() + state.weights[name].tobytes())
    return {
        "structure": state.structure.digest,
        "weights": weights.hexdigest(),
        "parameters": run.rounds["params"].tolist(),
        "losses": run.rounds["loss"].tolist(),
        "train losses": run.clients["train_loss"].tolist(),
        "bytes down": run.clients["bytes_down"].tolist(),
        "bytes up": run.clients["bytes_up"].tolist(),
    }


def kernels() -> str:
    """Returns what stands for the kernels that compute here: a digest of what they make of fixed numbers.

    And of the processor, as its caches decide into which blocks a library cuts a product.
    """
    source = torch.Generator().manual_seed(0)
    outcome = hashlib.sha256(processor().encode())
    for layer, shape in (
        (nn.Linear(61, 37), (16, 61)),
        (nn.Linear(128, 64), (16, 128)),
        (nn.Conv1d(5, 7, 3), (16, 5, 30)),
        (nn.Conv2d(3, 7, 3), (16, 3, 11, 9)),
        (nn.Conv2d(8, 12, 3).to(memory_format=torch.channels_last), (16, 8, 8, 8)),
        (nn.BatchNorm2d(6), (16, 6, 8, 8)),
    ):
        samples = torch.randn(shape, generator=source).requires_grad_()
        for parameter in layer.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=source))
        nn.functional.log_softmax(layer(samples).flatten(1), 1).square().mean().backward()
        for tensor in (samples, *layer.parameters()):
            assert tensor.grad is not None
            outcome.update(tensor.grad.contiguous().numpy().tobytes())
    return outcome.hexdigest()


def processor() -> str:
    """Returns which processor this is, and how large its caches are."""
    told = Path("/proc/cpuinfo")
    if not told.exists():
        return platform.processor()
    lines = told.read_text().partition("\n\n")[0].splitlines()
    keys = ("vendor_id", "cpu family", "model", "stepping", "cache size", "CPU ")
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return "\n".join([line for line in lines if line.startswith(keys)] + [one.read_text() for one in caches])


def differences(kept: Golden, found: Golden, to_the_bit: bool) -> list[str]:
    """Returns a line for each figure that is not as it was, both beside each other."""
    same = {key: kept[key] == found[key] or (not to_the_bit and _close(key, kept, found)) for key in kept}
    return [f"{key}:\n  was {_shown(kept[key])}\n  is  {_shown(found[key])}" for key in kept if not same[key]]


def _close(key: str, kept: Golden, found: Golden) -> bool:
    if key not in TOLERANCES:
        return True  # a digest
    one, other = np.array(kept[key]), np.array(found[key])
    return one.shape == other.shape and np.allclose(one, other, rtol=TOLERANCES[key], atol=0)


def _shown(value: str | Sequence[float]) -> str:
    return value if isinstance(value, str) else ", ".join(f"{number:.17g}" for number in value)


def check(name: str, found: Golden) -> None:
    """Holds a run against the file.

    Raises:
        AssertionError: With every figure that differs.
    """
    file = read()
    to_the_bit = file["kernels"] == kernels()
    lines = differences(file["runs"][name], found, to_the_bit)
    where = (
        "" if to_the_bit else f", even within {TOLERANCES}: kernels here are others than in {file['made on']}"
    )
    assert not lines, f"the golden run '{name}' is another{where}\n" + "\n".join(lines)


def read() -> dict[str, Any]:
    """Returns the file: the runs by name, and on which kernels they were made."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(name: str, found: Golden) -> None:
    """Puts a run into the file."""
    runs = {**(read()["runs"] if FILE.exists() else {}), name: found}
    made_on = f"torch {torch.__version__}, NumPy {np.__version__}, {platform.machine()}"
    lines = [f" {json.dumps(one)}: {{\n{_lines(run)}\n }}" for one, run in sorted(runs.items())]
    head = f'"made on": {json.dumps(made_on)},\n"kernels": "{kernels()}",\n"runs": {{\n'
    FILE.write_text("{\n" + head + ",\n".join(lines) + "\n}\n}\n", encoding="utf-8")


def _lines(run: Golden) -> str:
    return ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in run.items())
