"""Devices on the loopback, over TLS, each killed once, and the server: what becomes of the run."""

import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedhp.bench import noting
from fedhp.bench.loopback import Server, Started, device, serving, write_samples
from fedhp.deployment.listing import devices_seen
from fedhp.errors import TrainingError
from fedhp.federation.server_state import ServerState
from fedhp.model.zoo import architecture
from fedhp.records.kept import kept_in
from fedhp.records.load import load_run

_METHOD = "fedhp_noting:Noting"
_SIDE, _CLASSES, _SAMPLES = 8, 8, 40
_WAVE = 5  # devices that start at a time
_MOST_TIMES = 12  # that a run is gone on with
_TIMEOUT = 120  # seconds that the server waits for an answer that was lost
_SERVER = -1
_Rows = Sequence[Mapping[str, Any]]


class Kill(NamedTuple):
    """A kill: of which device, or of the server, and in which round."""

    who: int
    round: int


def run_devices(
    number: int, rounds: int, seconds: float, seed: int, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Runs ``quickstart`` on devices of this machine, and kills each one's SuperNode and the SuperLink.

    Each is killed (-9) once, at a random moment, and the run is gone on with where it was cut short. Devices
    train with NumPy.

    Args:
        number: How many devices.
        rounds: How many rounds.
        seconds: Over which they are killed, from the end of the first round on.
        seed: Of the moments.
        say: Told what happens.

    Returns:
        ``run``: its rounds, the accuracy, how often devices were asked (``asked``) and have answered
        (``replies``), how often the run went on, and how many of these times from the model that it had kept,
        to the bit, by what devices were sent then (``equal``); how many devices were killed, and are
        connected in the end; ``failures`` by their cause; ``kills``, by what became of the answer of a device
        that was killed.

    Raises:
        FedhpError: If the system is not Linux, or the run does not come to its end.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place, record = Path(folder), Path(folder) / "record"
        notes, data = place / "notes", write_samples(place, number, _SAMPLES, _SIDE, _CLASSES)
        notes.mkdir()
        shutil.copy(noting.__file__, place / f"{_METHOD.partition(':')[0]}.py")
        path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
        surroundings = {"PYTHONPATH": path, noting.NOTES: str(notes)}
        server = stack.enter_context(serving(place, number, **surroundings))
        devices = list(_in_waves(stack, server, number, say))
        killed = stack.enter_context(_killing(server, devices, record, seconds, seed, say))
        words = ["quickstart", "data.name=npz", f"data.root={data}", f"rounds={rounds}"]
        words += [f"train.methods=[{_METHOD}]", "server.min_devices=0", f"server.timeout_seconds={_TIMEOUT}"]
        words += ["--out", str(record)]
        went_on = _run_to_its_end(server, record, words, say)
        connected = sum(one.state == "connected" for one in devices_seen(server.folder))
        seen = [{*notes.glob(f"{round_}-*")} == {notes / f"{round_}-{model}"} for round_, model in went_on]
        return _summary(record, killed) | {"went_on": len(seen), "equal": sum(seen), "connected": connected}


def _in_waves(stack: ExitStack, server: Server, number: int, say: Callable[[str], None]) -> Iterator[Started]:
    for first in range(0, number, _WAVE):
        wave = range(first, min(number, first + _WAVE))
        started = [
            stack.enter_context(device(server, one, runtime="numpy", budget="1MiB", methods=_METHOD))
            for one in wave
        ]
        for one in started:
            one.wait_for("connected to")
        say(f"{wave.stop} of {number} devices are connected")
        yield from started


@contextmanager
def _killing(
    server: Server,
    devices: Sequence[Started],
    record: Path,
    seconds: float,
    seed: int,
    say: Callable[[str], None],
) -> Iterator[list[Kill]]:
    """Kills each device's SuperNode and the SuperLink once meanwhile; yields the kills, as they come."""
    over, killed = threading.Event(), list[Kill]()
    whom = [*range(len(devices)), _SERVER]
    moments = np.random.default_rng(seed).uniform(0, seconds, len(whom))

    def kill() -> None:
        while _told(record) <= 1:
            if over.wait(0.5):
                return
        began = time.monotonic()
        for moment, one in sorted(zip(moments, whom, strict=True)):
            if over.wait(max(0.0, began + moment - time.monotonic())):
                return
            started = server.started if one == _SERVER else devices[one]
            while not started.kill("flower-superlink" if one == _SERVER else "flower-supernode"):
                if over.wait(1):
                    return
            killed.append(Kill(one, _told(record)))
            name = "the SuperLink" if one == _SERVER else f"device-{one}"
            say(f"{moment:.0f} s after the first round, in round {killed[-1].round}: {name} is killed")

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _told(record: Path) -> int:
    """Returns how many rounds a record holds, round 0 included: the number of the round that goes on."""
    return max(
        (int(one.stem.rpartition("-")[2]) for one in record.glob("checkpoint-*.safetensors")), default=0
    )


def _run_to_its_end(
    server: Server, record: Path, words: Sequence[str], say: Callable[[str], None]
) -> list[tuple[int, str]]:
    """Runs, and goes on as often as the run is cut short; returns in which rounds, with which model kept."""
    went_on = list[tuple[int, str]]()
    for _ in range(_MOST_TIMES):
        if server.run(record, *words):
            return went_on
        if _told(record):
            kept = kept_in(record)
            layout = architecture(kept.scenario.model, (1, _SIDE, _SIDE), _CLASSES).layout
            went_on.append((kept.told, noting.digest(ServerState.of(kept.state, layout).model)))
            words = ["--resume", str(record)]
        say(f"the run was cut short ({server.last_said()}), and goes on in round {_told(record)}")
        time.sleep(5)
    raise TrainingError(f"the run has not come to its end in {_MOST_TIMES} parts")


def _summary(record: Path, killed: Sequence[Kill]) -> dict[str, Any]:
    run = load_run(record)
    rows: _Rows = run.clients.to_dict("records")
    failures = Counter(_cause(row) for row in rows if row["status"] != "ok")
    return {
        "rounds": len(run.rounds) - 1,
        "accuracy": run.summary["final_accuracy"],
        "asked": len(rows),
        "replies": len(rows) - failures.total(),
        "devices_killed": len({kill.who for kill in killed} - {_SERVER}),
        "server_killed": sum(kill.who == _SERVER for kill in killed),
        "failures": dict(failures),
        "kills": dict(Counter(_became(kill, rows) for kill in killed if kill.who != _SERVER)),
    }


def _became(kill: Kill, rows: _Rows) -> str:
    """Says what became of a device's answer, in the round of the kill or the next."""
    own = [row for row in rows if row["client"] == kill.who and row["round"] in (kill.round, kill.round + 1)]
    if failed := [_cause(row) for row in own if row["status"] != "ok"]:
        return failed[0]
    return "none was lost" if own else "it was not asked"


def _cause(row: Mapping[str, Any]) -> str:
    """Returns the first sentence of a failure: what follows are numbers."""
    return str(row["failure"]).partition(". ")[0]
