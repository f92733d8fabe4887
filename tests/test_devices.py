"""A server and devices as their owners start them: TLS, keys, a run to its end, and who is refused why."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhp.deployment.folder import make_folder
from fedhp.records import load_run

FEDHP = [sys.executable, "-m", "fedhp"]

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts fedhp's commands, each with a log of its own, and ends them as a service's manager does."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as log:
            words = [*FEDHP, *arguments]
            process = subprocess.Popen(words, cwd=tmp_path, env=surroundings(), stdout=log, stderr=log)
        started.append(process)
        return process

    yield start_one
    for process in reversed(started):
        process.terminate()
    for process in started:
        process.wait(timeout=30)


def surroundings() -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def awaited(log: Path, text: str, seconds: float = 60.0, times: int = 1) -> None:
    deadline = time.monotonic() + seconds
    while log.read_text().count(text) < times:
        if time.monotonic() > deadline:
            pytest.fail(f"{log.name} never said {text!r}:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def descendants(process: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [*children, *(one for child in children for one in descendants(child))]


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_registered_devices_train_over_tls_and_others_are_refused(start, tmp_path, monkeypatch):
    """The SuperNode of one is ended once it is connected: it comes back, and takes part."""
    folder, _ = make_folder(tmp_path / "fleet", (), ["door", "window"])
    stranger, _ = make_folder(tmp_path / "stranger", (), ["door"])
    port = free_port()
    server = start("server", "serve", "start", "fleet", "--host", "127.0.0.1", "--port", str(port))
    awaited(tmp_path / "server.log", "serving at")

    def device(name: str, trust: list[str]) -> subprocess.Popen[bytes]:
        part = "1" if name == "window" else "0"
        address = [f"--superlink=127.0.0.1:{port}", "--runtime=numpy"]  # which starts sooner
        return start(name, "device", "run", *address, "--partition-id", part, *trust)

    door = device("door", ["--keys", str(folder.device("door")), "--budget", "96KiB"])
    window = device("window", ["--keys", str(folder.device("window"))])
    wrong = stranger.device("door")
    (wrong / "ca.crt").write_bytes(folder.authority[1].read_bytes())
    awaited(tmp_path / "window.log", "connected to")
    os.kill(descendants(window.pid)[0], signal.SIGTERM)
    for name, trust, why in (
        ("wrong-key", ["--keys", str(wrong)], "does not know this device's key"),
        ("plain-text", ["--insecure"], "it speaks with encryption only"),
    ):
        other = device(name, trust)
        awaited(tmp_path / f"{name}.log", why)
        other.terminate()  # or it tries again and again meanwhile
    awaited(tmp_path / "window.log", "connected to", times=2)  # or the run begins without it

    words = [*FEDHP, "serve", "run", "fleet", "quickstart", "rounds=1", "--out", "record"]
    done = subprocess.run(
        words, cwd=tmp_path, env=surroundings(), capture_output=True, text=True, timeout=300
    )
    logs = {log.stem: log.read_text() for log in tmp_path.glob("*.log")}
    assert done.returncode == 0, "\n".join([done.stdout[-3000:], done.stderr[-3000:], *logs.values()])
    run = load_run(tmp_path / "record")
    assert run.summary["status"] == "finished"
    assert list(run.clients["status"]) == ["ok"] * 2, list(run.clients["failure"])
    assert list(run.clients["device_class"]) == ["door", "window"]
    assert run.clients["memory_budget_bytes"][0] == 98_304

    words = [*FEDHP, "serve", "devices", "fleet", "--json"]
    listed = subprocess.run(words, cwd=tmp_path, env=surroundings(), capture_output=True, check=True).stdout
    seen = [
        (one["name"], one["state"], one["device_class"], one["memory_bytes"]) for one in json.loads(listed)
    ]
    budget = run.clients["memory_budget_bytes"][1]
    assert seen == [("door", "connected", "door", 98_304), ("window", "connected", "window", budget)]

    assert "it starts again in" in logs["window"]
    assert logs["window"].count("connected to") == 2
    assert "fedhp round 1: window" in logs["window"]
    assert "a device was refused: its key is not registered here" in logs["server"]

    flower = [process for one in (server, door, window) for process in descendants(one.pid)]
    assert len(flower) >= 4  # a SuperLink with its SuperExec, and two SuperNodes; what trains stays a while
    for one in (door, window, server):
        one.terminate()
        assert one.wait(timeout=30) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}/exe").exists() for process in flower) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [process for process in flower if Path(f"/proc/{process}/exe").exists()]
