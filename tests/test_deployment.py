"""The two apps under Flower itself: real SuperNodes, and Flower's own simulation."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import golden
import numpy as np
import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid

import fedhp
from clients.client_app import app as client_app
from fedhp.data import Normalisation
from fedhp.errors import DeploymentError, ScenarioError
from fedhp.federation import flower_version, wire
from fedhp.federation.roster import read_answer
from fedhp.files.marks import DEVICES
from fedhp.records import RunResult, load_run
from fedhp.scenario.loading import load_scenario
from fedhp.simulation.identity import acting_as
from fedhp.training.method_names import PRUNING
from strategies.server_app import app as server_app

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts Flower's commands, each with a home and a log of its own, and ends them whatever happens."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(name: str, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / command, *arguments],
                cwd=tmp_path,
                env=environment(tmp_path / name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its children end with it
            )
        started.append(process)
        return process

    yield start_one
    for process in reversed(started):
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(timeout=15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def environment(home: Path) -> dict[str, str]:
    # Without PYTHONPATH: what runs must come out of the app bundle.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return inherited | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FEDHP_CACHE": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_healthy(superlink: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and superlink.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the SuperLink did not start")


def flwr_run(folder: Path, port: int, overrides: str, *arguments: str) -> RunResult:
    """Runs the app on the SuperLink at a port, as a user does, and reads its record."""
    home, out = folder / "user", folder / "run"
    home.mkdir()
    connection = f'[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection)
    config = f'scenario="quickstart" overrides="{overrides}" out="{out}"'
    done = subprocess.run(
        [BIN / "flwr", "run", ROOT, "test", "--run-config", config, "--stream", *arguments],
        cwd=folder,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    logs = [f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log"))]
    # Flower's command succeeds even where the run has failed.
    assert (out / "summary.json").is_file(), "\n".join([done.stdout[-5000:], done.stderr[-2000:], *logs])
    return load_run(out)


def documented() -> tuple[list[str], str, str]:
    """Returns the page's sample run: how its devices are configured, its overrides and how its log begins."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    _, _, sample = page.partition("### Starting a run")
    sample, begun, _ = sample.partition("; ...")
    assert begun
    (overrides,) = re.findall(r"--run-config 'overrides=\"(.*)\"'", sample)
    return re.findall(r"--node-config '(.*)'", sample), overrides, sample.rpartition("```\n")[2]


@pytest.mark.integration
def test_two_devices_train_within_their_own_budgets(start: Start, tmp_path: Path, holds_golden) -> None:
    """Those of the page: one plays a partition of the scenario's data, the other brings 90 dark samples."""
    random = np.random.default_rng(0)
    images = random.integers(0, 64, (90, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=np.arange(90) % 10)
    port, *ports = free_ports(3)
    superlink = start("superlink", "flower-superlink", "--insecure", "--port", str(port))
    wait_until_healthy(superlink, port)
    nodes, overrides, told = documented()
    for own_port, node in zip(ports, nodes, strict=True):
        node = node.replace("/data/mine.npz", str(tmp_path / "mine.npz"))
        address = ["--superlink", f"127.0.0.1:{port}", "--port", str(own_port)]
        start(f"node-{own_port}", "flower-supernode", "--insecure", *address, "--node-config", node)
    run = flwr_run(tmp_path, port, overrides)

    assert run.summary["status"] == "finished"
    events = (tmp_path / "run" / "events.log").read_text()
    assert told in events
    # Whole numbers below 64 deviate by 18.5, which is 0.0724 of 255; the digits by 0.376.
    assert "client 1: its values spread 0.19 times as widely as the server's" in events
    assert "client 0: its values" not in events
    assert list(run.rounds["round"]) == [0, 1, 2]
    clients = run.clients
    assert list(zip(clients["round"], clients["client"], strict=True)) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert list(clients["status"]) == ["ok"] * 4, list(clients["failure"])
    assert list(clients["device_class"]) == ["phone", "device 40.0 KiB"] * 2
    assert list(clients["memory_budget_bytes"]) == [98_304, 40_960] * 2
    assert list(clients["num_examples"][clients["client"] == 1]) == [90, 90]
    assert (clients["memory_predicted_bytes"] <= clients["memory_budget_bytes"]).all()
    assert (clients["memory_measured_bytes"] <= clients["memory_budget_bytes"]).all()
    # The second device's samples are its own: nobody but itself knows their labels.
    assert set(run.partition["client"]) == {0}
    assert run.partition["count"].sum() == clients["num_examples"][0]
    for own_port, name in zip(ports, ("phone", "device 40.0 KiB"), strict=True):
        lines = (tmp_path / f"node-{own_port}.log").read_text().splitlines()
        told = [text for text in lines if "fedhp round " in text]
        assert [f"fedhp round {number}: {name}, budget " in text for number, text in enumerate(told, 1)] == [
            True,
            True,
        ]
    large, small = clients["params_received"][:2]
    assert small < large  # each got a structure of its own
    holds_golden("through Flower", golden.digest(run))


@pytest.mark.integration
def test_devices_join_leave_and_come_back_while_a_run_goes_on(start: Start, tmp_path: Path) -> None:
    """Two begin; then a third starts, and the second ends and starts again, as another node of Flower's."""
    (port,) = free_ports(1)
    superlink = start("superlink", "flower-superlink", "--insecure", "--port", str(port))
    wait_until_healthy(superlink, port)

    numbers = count()

    def node(partition: int) -> subprocess.Popen[bytes]:
        told = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--runtime", "numpy"]
        told += ["--partition-id", str(partition)]
        return start(f"node-{next(numbers)}", "fedhp", "device", "run", *told)

    def change(begun: Path, second: subprocess.Popen[bytes]) -> None:
        while not begun.is_file() or "round 1: " not in begun.read_text():
            time.sleep(0.2)
        node(1)
        node(2)
        end(second)

    second = (node(0), node(1))[1]
    changing = threading.Thread(target=change, args=(tmp_path / "run" / "events.log", second), daemon=True)
    changing.start()
    run = flwr_run(tmp_path, port, "rounds=12 fleet.num_clients=3 server.min_devices=2")

    assert run.summary["status"] == "finished"
    events = (tmp_path / "run" / "events.log").read_text()
    for line in ("client 1 (phone) has left", "client 1 (phone) is back", "client 2 (camera) has joined"):
        assert line in events, events
    rows = run.clients
    assert list(rows["client"][rows["round"] == 1]) == [0, 1]
    assert (rows["status"][rows["client"] != 1] == "ok").all()
    last = rows[rows["round"] == 12]
    assert list(zip(last["client"], last["status"], strict=True)) == [(0, "ok"), (1, "ok"), (2, "ok")], events
    assert set(run.partition["client"]) == {0, 1, 2}  # who has come late is there too


@pytest.mark.integration
def test_flower_simulates_the_fleet(start: Start, tmp_path: Path) -> None:
    """As ``flwr run . local`` does, but with a SuperLink that does not outlive the test."""
    (port,) = free_ports(1)
    superlink = start("superlink", "flower-superlink", "--insecure", "--simulation", "--port", str(port))
    wait_until_healthy(superlink, port)
    fleet = "num-supernodes=4 client-resources-num-cpus=1"
    run = flwr_run(tmp_path, port, "rounds=1 fleet.num_clients=4", "--federation-config", fleet)

    assert run.summary["status"] == "finished"
    assert list(run.clients["status"]) == ["ok"] * 4, list(run.clients["failure"])
    assert list(run.clients["client"]) == [0, 1, 2, 3]
    assert list(run.clients["device_class"]) == ["gateway", "phone", "camera", "sensor"]
    assert run.partition.groupby("client")["count"].sum().tolist() == list(run.clients["num_examples"])
    assert (run.clients["memory_measured_bytes"] <= run.clients["memory_budget_bytes"]).all()
    ours = {"rounds": 1, "fleet.num_clients": 4, "simulation.num_workers": 0}
    simulated = fedhp.simulate("quickstart", tmp_path / "simulated", show=False, **ours)
    found = fedhp.compare_records(simulated, run)
    assert found.likeness.bits
    assert not found.cautions
    here, there = ({path.name for path in one.folder.iterdir()} for one in (simulated, run))
    assert there - here == {DEVICES}
    assert here <= there


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({}, "the node configuration must name a partition-id or a data-path"),
        ({"partition-id": 20}, "partition-id is 20, but the fleet has clients 0 to 19"),
        (
            {"partition-id": 0, "memory-budget": "much"},
            "node configuration: memory-budget: 'much' is not a memory size",
        ),
        ({"data-path": "nowhere.npz"}, "no file nowhere.npz"),
    ],
)
def test_a_misconfigured_device_says_so_in_one_line(node: dict[str, object], reason: str) -> None:
    answer = asked_who_it_is(node)
    assert answer.has_error()
    assert answer.error.reason.startswith("client: ")
    assert reason in answer.error.reason
    assert "\n" not in answer.error.reason


def asked_who_it_is(node: dict[str, object]) -> Message:
    scenario = load_scenario("quickstart").to_json()
    brief = wire.Brief(scenario, (1, 8, 8), 10, Normalisation((0.3,), (0.4,)), methods=PRUNING, budgeted=True)
    node_id = 2**64 - 1  # real node ids use all 64 bits
    with acting_as(0):
        question = Message(wire.pack_query(brief), node_id, MessageType.QUERY)
    context = Context(1, node_id, node, RecordDict(), {})  # type: ignore[arg-type]
    with acting_as(node_id):
        return client_app(question, context)


def test_a_device_with_another_flower_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Started by hand, where no `fedhp device run` refuses it; the server's app looks at its own."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    monkeypatch.setattr(flower_version, "version", {"flwr": "1.43.0", "fedhp": "1.0"}.get)
    answer = read_answer(asked_who_it_is({"partition-id": 0}), 7)
    said = "Flower 1.43.0 is installed here, and fedhp 1.0 takes 1.41 and 1.42"
    assert f"client: DeploymentError: {said}" in str(answer)
    assert f"fedhp: refused to query: {said}" in caplog.text
    with pytest.raises(DeploymentError, match=said):
        server_app(Grid, Context(1, 0, {}, RecordDict(), {}))  # type: ignore[arg-type]


@pytest.mark.parametrize("overrides", ["nope", "name='unclosed"])
def test_what_the_server_refuses_is_one_line_in_flowers_log(
    overrides: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("flwr")
    monkeypatch.setattr(log, "propagate", True)
    context = Context(1, 0, {}, RecordDict(), {"overrides": overrides})  # type: ignore[arg-type]
    try:
        server_app(Grid, context)  # type: ignore[arg-type]
    except ScenarioError as error:
        log.error("ServerApp raised an exception", exc_info=error)
    (record,) = caplog.records
    assert record.exc_info is None
    assert overrides in record.getMessage()


def test_overrides_may_hold_blanks(tmp_path: Path) -> None:
    """The run is refused for its strategy, which shows that what stood before it was understood."""
    config = {"overrides": "description='two words' strategy.name=unknown", "out": str(tmp_path / "run")}
    context = Context(1, 0, {}, RecordDict(), config)  # type: ignore[arg-type]
    with pytest.raises(ScenarioError, match="must be one of mask_intersection"):
        server_app(Grid, context)  # type: ignore[arg-type]
