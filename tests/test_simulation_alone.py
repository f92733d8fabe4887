"""Workers are this process's own: nobody else reaches a local Ray, it takes no signal, one run at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.scenario.schema import SimulationConfig
from fedhp.simulation import nursery
from fedhp.simulation.nursery import AVAILABLE
from fedhp.simulation.opening import open_grid
from fedhp.sweep.running import open_tasks

HERE = Path(__file__).parent
APP = "simulated_app:app"

LISTENING = f"""
import psutil
from fedhp.cli import app
from fedhp.scenario.schema import SimulationConfig
from fedhp.simulation.opening import open_grid

def places():
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        for place in process.net_connections(kind="inet"):
            if place.status == psutil.CONN_LISTEN:
                yield place.laddr.ip.removeprefix("::ffff:")

with open_grid(SimulationConfig(num_workers=1, address="local"), "{APP}", 1, 60.0):
    print(*places())
import os
print(os.environ.get("RAY_AUTH_MODE"))
"""


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return {**os.environ, "PYTHONPATH": path, "FLWR_TELEMETRY_ENABLED": "0", **more}


@pytest.mark.integration
def test_a_local_ray_listens_on_the_loopback_alone_and_asks_for_a_token(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("psutil")
    code = [sys.executable, "-c", LISTENING]
    environment = _environment(HOME=str(tmp_path))
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=120, check=True)
    places, mode = done.stdout.splitlines()[-2:]
    assert len(places.split()) >= 3  # its two daemons and the worker, at the least
    assert set(places.split()) == {"127.0.0.1"}
    assert mode == "token"


def test_joining_a_cluster_elsewhere_changes_nothing_of_where_ray_listens(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray._private import ray_constants

    from fedhp.simulation.cluster import join_ray, leave_ray

    seen = []
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", "as it was")
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(ray_constants.ENABLE_RAY_CLUSTER))
    join_ray(SimulationConfig(num_workers=1), 1, 0)
    join_ray(SimulationConfig(num_workers=1, address="auto"), 1, 0)
    leave_ray()
    assert seen == [False, "as it was"]
    assert ray_constants.ENABLE_RAY_CLUSTER == "as it was"


def test_ray_takes_no_signal_while_it_starts_or_ends(monkeypatch):
    """Ray 2.60 sets a handler of its own at the beginning of ``init``, which would raise within it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray._private import utils

    from fedhp.simulation.cluster import join_ray, leave_ray

    heard: list[object] = []

    def busy(**_: object) -> None:
        utils.set_sigterm_handler(lambda *_: heard.append("Ray"))
        signal.raise_signal(signal.SIGTERM)
        heard.append("done")

    monkeypatch.setattr(ray, "init", busy)
    monkeypatch.setattr(ray, "shutdown", busy)
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("ours"))
    try:
        join_ray(SimulationConfig(num_workers=1), 1, 0)
        leave_ray()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["done", "ours", "done", "ours"]


GROUPED = """
import os, signal, subprocess, sys
from fedhp.simulation.process_group import OwnGroup
ours = OwnGroup()
# One that would not go by itself, and knows nothing of who started it.
member = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, process_group=ours.group)
print(member.pid, flush=True)
if sys.argv[1] == "ends it":
    ours.end()
    print(member.wait(60))
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
@pytest.mark.parametrize("how", ["ends it", "is killed"])
def test_a_group_of_processes_ends_with_who_keeps_it(how):
    psutil = pytest.importorskip("psutil")
    code = [sys.executable, "-c", GROUPED, how]
    done = subprocess.run(code, env=_environment(), capture_output=True, text=True, timeout=60, check=False)
    member, *status = done.stdout.split()
    assert (done.returncode, status) == ((0, ["-9"]) if how == "ends it" else (-9, []))
    left = [psutil.Process(int(member))] if psutil.pid_exists(int(member)) else []
    assert psutil.wait_procs(left, timeout=10)[1] == []


@pytest.mark.integration
@pytest.mark.parametrize("address", ["local", ""])
def test_a_sigterm_within_a_start_ends_the_command(address, tmp_path):
    """Of Ray, which takes seconds to start, and of processes of our own.

    The signal goes to the whole process group, as `timeout` and service managers send it; the others are to
    be ended by the command.
    """
    if address:
        pytest.importorskip("ray", reason="Ray is not installed")
    psutil = pytest.importorskip("psutil")
    keys = ["simulation.num_workers=1", f"simulation.address='{address}'", "rounds=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhp", "run", "quickstart", *keys, "--out", str(tmp_path / "record")],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while process.poll() is None and "starting the workers" not in process.stdout.readline():
        pass
    time.sleep(1.0)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=90)
    assert (process.returncode, errors) == (143, "interrupted by SIGTERM\n")
    assert psutil.wait_procs(family, timeout=20)[1] == []


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.integration)])
def test_simulations_of_two_threads_take_turns(num_workers):
    if num_workers and not AVAILABLE:
        pytest.importorskip("ray", reason="Ray is not installed")
    together, most = [0], [0]
    start = threading.Barrier(2)

    def simulate(_):
        start.wait(10)
        with open_grid(SimulationConfig(num_workers=num_workers), APP, 2, 60.0) as grid:
            together[0] += 1
            most[0] = max(most[0], together[0])
            messages = [
                Message(RecordDict({"order": ConfigRecord({"do": "echo"})}), n, "train") for n in (1, 2)
            ]
            replies = [reply.metadata.src_node_id for reply in grid.send_and_receive(messages)]
            together[0] -= 1
        return replies

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(simulate, range(2))) == [[1, 2], [1, 2]]
    assert most == [1]


def test_one_thread_may_open_what_it_likes_at_once():
    with (
        open_tasks(SimulationConfig(num_workers=0), 1),
        open_grid(SimulationConfig(num_workers=0), APP, 1, 60.0) as one,
        open_grid(SimulationConfig(num_workers=0), APP, 2, 60.0) as two,
    ):
        assert (one.get_node_ids(), two.get_node_ids()) == ([1], [1, 2])


@pytest.mark.skipif(not AVAILABLE, reason="workers are Ray's here")
@pytest.mark.parametrize("wrong", ["rounds=0", "prune.target_compression=1000"])
def test_a_scenario_that_is_refused_ends_what_was_begun_for_its_workers(wrong, tmp_path, monkeypatch):
    """Whether it is refused as it is read, or once its data is open."""
    begun = []
    start = nursery.Nursery
    monkeypatch.setattr(nursery, "Nursery", lambda *given: begun.append(start(*given)) or begun[-1])
    done = CliRunner().invoke(app, ["run", "quickstart", wrong, "--out", str(tmp_path / "record")])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert [one._process.poll() for one in begun] == [-signal.SIGKILL]
