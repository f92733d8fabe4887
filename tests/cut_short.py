"""Runs that are cut short: what a kill leaves at each moment, and what a run has come to in the end."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fedhp
from fedhp.records import load_state

# A server's optimiser, which has moments, and rounds of fewer clients than there are.
SMALL: dict[str, Any] = {
    "rounds": 3,
    "fleet.num_clients": 6,
    "server.clients_per_round": 3,
    "data.max_train": 300,
    "strategy.optimizer.name": "fedadam",
    "simulation.num_workers": 0,
}
_MEASURED = ["seconds", "evaluation_seconds"]
_TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_watchers: list[Any] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watchers and event in _TOUCHES:
        _watchers[0](event, arguments)


sys.addaudithook(_audit)  # for good: Python removes none


@contextmanager
def snapshots(folder: Path, into: Path) -> Iterator[list[Path]]:
    """Copies a folder each time just before anything in it is changed: what a kill then leaves."""
    taken: list[Path] = []

    def take(event: str, arguments: tuple[Any, ...]) -> None:
        reads = event == "open" and not set(str(arguments[1])) & set("wax")
        if reads or not str(arguments[0]).startswith(f"{folder}/"):
            return
        watcher = _watchers.pop()
        taken.append(into / f"{len(taken):03d}")
        shutil.copytree(folder, taken[-1], ignore=shutil.ignore_patterns(".lock"))
        _watchers.append(watcher)

    _watchers.append(take)
    try:
        yield taken
    finally:
        _watchers.clear()


def outcome(folder: Path) -> dict[str, Any]:
    """What a run has come to, all but what measures time."""
    run, (state, metadata) = fedhp.load_run(folder), load_state(folder)
    return {
        "rounds": run.rounds.drop(columns=_MEASURED).to_dict("list").__repr__(),
        "clients": run.clients.drop(columns="seconds").to_dict("list").__repr__(),
        "partition": "" if run.partition is None else run.partition.to_dict("list").__repr__(),
        "summary": {key: value for key, value in run.summary.items() if "second" not in key},
        "metadata": metadata,
        "weights": {name: array.tobytes() for name, array in state.weights.items()},
        "model": (folder / "model.safetensors").read_bytes(),
        "files": sorted(path.name for path in folder.iterdir() if path.name != "wandb"),
    }
