"""Whether a run that is killed, at a random moment, goes on to the end that it would have had."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from fedhp.errors import FedhpError, TrainingError
from fedhp.records.load import load_run

_SCENARIO = ("quickstart", "rounds=30", "strategy.optimizer.name=fedadam")
_CREWS = {"processes": "simulation.num_workers=2", "Ray": "simulation.num_workers=2 simulation.address=local"}
_MARK = "FEDHP_BENCH_RESUME"  # in the environment of a run and of all that it starts
_GONE_SECONDS = 90.0  # after which what a killed run has started has to have ended
_POLL_SECONDS = 0.005


def run_resume(
    kills: int, with_ray: bool = True, seed: int = 0, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Kills (-9) the main process of simulations, each at a random moment, goes on with them, and compares.

    Moments are drawn evenly from the first checkpoint until the record of an undisturbed run is closed; and
    as often as not, the run goes on in one process alone.

    Args:
        kills: How many.
        with_ray: Whether every other run has its workers on Ray; otherwise all have them in processes.
        seed: Of the moments.
        say: Told of each as it ends.

    Returns:
        One row per kind of workers: ``workers``, ``kills``, those after which nothing was left to do, as the
        record was closed (``too_late``), those after which it went on (``resumed``), how many records are
        those of the undisturbed run (``equal``), the seconds until all that a killed run had started was gone
        (``gone_seconds``, the most), and the processes that were not after ``_GONE_SECONDS`` (``left``).

    Raises:
        FedhpError: If the system is not Linux.
        TrainingError: If the undisturbed run fails.
    """
    if not Path("/proc/self/environ").exists():
        raise FedhpError("this measurement reads /proc, which only Linux has")
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        expected, lasts = dict[str, str](), dict[str, float]()
        for name in _CREWS if with_ray else ["processes"]:
            expected[name], lasts[name] = _undisturbed(Path(place) / name, name)
        found: dict[str, list[_Found]] = {name: [] for name in lasts}
        for number in range(kills):
            name = list(lasts)[number % len(lasts)]
            folder, seconds = Path(place) / f"{number}", draw.random() * lasts[name]
            gone_seconds, left = _kill(folder, name, seconds)
            resumed = _resumed(folder, draw.choice(([], ["simulation.num_workers=0"])))
            one = _Found(resumed, _come_to(folder) == expected[name], gone_seconds, left)
            found[name].append(one)
            say(f"{number + 1} of {kills}, {name}, after {seconds:.1f} s: {one.said}")
    return {"rows": [_row(name, ones) for name, ones in found.items()]}


class _Found(NamedTuple):
    """What came of a kill."""

    resumed: bool
    equal: bool
    gone_seconds: float
    left: int

    @property
    def said(self) -> str:
        """It in a line."""
        went = "went on" if self.resumed else "too late"
        return f"{went}, {'equal' if self.equal else 'NOT EQUAL'}, {self.left} processes left"


def _row(name: str, found: Sequence[_Found]) -> dict[str, Any]:
    return {
        "workers": name,
        "kills": len(found),
        "too_late": sum(not one.resumed for one in found),
        "resumed": sum(one.resumed for one in found),
        "equal": sum(one.equal for one in found),
        "gone_seconds": max((one.gone_seconds for one in found), default=0.0),
        "left": sum(one.left for one in found),
    }


def _undisturbed(folder: Path, crew: str) -> tuple[str, float]:
    """Returns what a run comes to, and how long it takes after its first checkpoint until there is none."""
    process = _started(folder, crew, token_hex(8))
    _wait_for_checkpoint(folder, process)
    began = time.monotonic()
    while process.poll() is None and any(folder.glob("checkpoint-*")):
        time.sleep(_POLL_SECONDS)
    lasts = time.monotonic() - began
    if process.wait():
        raise TrainingError(f"the undisturbed run failed, with exit code {process.returncode}")
    return _come_to(folder), lasts


def _kill(folder: Path, crew: str, seconds: float) -> tuple[float, int]:
    """Kills a run so many seconds after its first checkpoint; returns what `_gone` does."""
    mark = token_hex(8)
    process = _started(folder, crew, mark)
    _wait_for_checkpoint(folder, process)
    time.sleep(seconds)
    process.kill()
    process.wait()
    return _gone(mark)


def _resumed(folder: Path, overrides: Sequence[str]) -> bool:
    """Goes on with a run; returns whether there was anything left to do."""
    if not any(folder.glob("checkpoint-*")):
        return False
    command = [sys.executable, "-m", "fedhp", "resume", str(folder), *overrides]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return True


def _started(folder: Path, crew: str, mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedhp", "run", *_SCENARIO, *_CREWS[crew].split(), "--out", str(folder)],
        env={**os.environ, _MARK: mark},
        stdout=subprocess.DEVNULL,
    )


def _wait_for_checkpoint(folder: Path, process: subprocess.Popen[bytes]) -> None:
    while not any(folder.glob("checkpoint-*")):
        if process.poll() is not None:
            raise TrainingError(f"a run ended before it began, with exit code {process.returncode}")
        time.sleep(_POLL_SECONDS)


def _come_to(folder: Path) -> str:
    """Returns a digest of what a run has come to: all of its record but what measures time."""
    run = load_run(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes())
    for table in (run.rounds, run.clients, run.partition):
        if table is not None:
            timeless = {name: list(table[name]) for name in table.columns if "seconds" not in name}
            digest.update(repr(timeless).encode())
    digest.update(repr({key: value for key, value in run.summary.items() if "second" not in key}).encode())
    return digest.hexdigest()


def _gone(mark: str) -> tuple[float, int]:
    """Waits until all that a run has started is gone; returns for how long, and how many had to be killed."""
    began = time.monotonic()
    while (left := _marked(mark)) and time.monotonic() < began + _GONE_SECONDS:
        time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - began
    for process in left:
        os.kill(process, signal.SIGKILL)
    return seconds, len(left)


def _marked(mark: str) -> list[int]:
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{_MARK}={mark}".encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found
