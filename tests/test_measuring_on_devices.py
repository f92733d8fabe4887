"""Files that are measured on devices: what goes there, what is refused on either side, what comes back."""

import copy
import json
import os
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from factories import MemoryGrid
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from small_onnx import dense
from test_serving import flwr_that, running
from typer.testing import CliRunner

from clients import measuring as on_device
from clients.client_app import app
from fedhp.cli import app as commands
from fedhp.deployment import flower
from fedhp.deployment import measuring as from_server
from fedhp.deployment.device import DeviceOptions
from fedhp.deployment.folder import make_folder
from fedhp.errors import WireError
from fedhp.exports.measured import Measured, Measurement, Ratios
from fedhp.exports.reading import read_measurement
from fedhp.federation import measuring as wire
from fedhp.federation.measuring import MEASURE, MeasuringTask, pack_measuring
from fedhp.files.locks import locked
from fedhp.run.measuring import asked, measure_on_devices
from fedhp.simulation.identity import RUN_ID, acting_as

NODE = 7
LETS = {"measures": True}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="measures in a process group")


def task(tmp_path: Path, **changes) -> MeasuringTask:
    file = dense(tmp_path / "made.onnx", 4).read_bytes()
    given = {"files": {"0.onnx": file}, "against": "", "threads": 1, "seconds": 0.05, "limit": 60.0}
    return MeasuringTask(**(given | changes))


def answer(content: RecordDict, node: dict, number: int = NODE) -> Message:
    with acting_as(0):
        message = Message(content, number, MEASURE)
    with acting_as(number):
        return app(message, Context(RUN_ID, number, node, RecordDict(), {}))


def refusal(content: RecordDict, node: dict = LETS) -> str:
    return answer(content, node).error.reason or ""


# On a device


def test_a_device_measures_what_it_is_sent_in_a_process_of_its_own(tmp_path, monkeypatch):
    """One that runs, one that is none, and one whose runtime may be missing; nothing of it stays."""
    places = tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(places))
    files = {
        "0.onnx": dense(tmp_path / "a.onnx", 400).read_bytes(),
        "1.onnx": dense(tmp_path / "b.onnx", 4).read_bytes(),
        "2.onnx": b"no model",
        "3.tflite": b"no model either",
    }
    reply = answer(pack_measuring(task(tmp_path, files=files, against="0.onnx")), LETS)
    found = read_measurement(wire.unpack_measured(reply.content))
    assert [(one.file, one.num_bytes, one.shape) for one in found.files] == [
        ("0.onnx", len(files["0.onnx"]), (1, 6)),
        ("1.onnx", len(files["1.onnx"]), (1, 6)),
    ]
    itself, other = (one.against for one in found.files)
    assert itself == Ratios(1.0, (1.0, 1.0), 1.0, 1.0)
    assert other is not None
    assert other.size == round(len(files["1.onnx"]) / len(files["0.onnx"]), 4)
    assert found.failures["2.onnx"].startswith("2.onnx cannot be run by onnxruntime: ")
    missing = find_spec("ai_edge_litert") is None
    assert ("pip install ai-edge-litert" in found.failures["3.tflite"]) == missing
    assert not list(places.iterdir())


@pytest.mark.parametrize("node", [{}, {"measures": False}, {"measures": "true"}, {"measures": 1}])
def test_a_device_measures_nothing_unless_its_owner_lets_it(node, tmp_path, monkeypatch):
    monkeypatch.setattr(on_device, "measure_apart", None)
    assert refusal(pack_measuring(task(tmp_path)), node) == (
        "client: DeploymentError: this device was not told that servers may have files measured on it; start "
        "it by 'fedhp device run --measures', or its SuperNode with --node-config 'measures=true'"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {"0.pt2": b"x"}}, "0.pt2: devices measure files of .onnx, .pte, .tflite alone"),
        ({"files": {"../0.onnx": b"x"}}, "files: expected names such as 0.onnx, got '../0.onnx'"),
        ({"files": {"0.onnx": b"x" * 1025}}, "a device takes files of 1.0 KiB in all at a time, got 1.0 KiB"),
        (
            {"files": {f"{n}.onnx": b"x" for n in range(33)}},
            "a device measures 1 to 32 files at a time, got 33",
        ),
        ({"files": {"0.onnx": b""}}, "sizes: expected numbers of bytes, got [0]"),
        ({"against": "1.onnx"}, "against: no such file was sent: '1.onnx'"),
        ({"threads": 257}, "threads must be from 1 to 256, got 257"),
        ({"seconds": float("nan")}, "seconds must be from 0.05 to 600.0, got nan"),
        ({"limit": 1e9}, "limit must be from 0.05 to 600.0, got 1000000000.0"),
        ({"limit": 60}, "limit: expected float, got 60"),
    ],
)
def test_what_a_device_is_sent_is_held_to_bounds(changes, said, tmp_path, monkeypatch):
    monkeypatch.setattr(on_device, "measure_apart", None)
    monkeypatch.setattr(wire, "MOST_BYTES", 1024)
    assert refusal(pack_measuring(task(tmp_path, **changes))) == f"client: WireError: {said}"


def test_a_file_that_did_not_come_as_it_was_sent_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(on_device, "measure_apart", None)
    for key, value, said in (
        ("sha256", ["0" * 64], "0.onnx: its SHA-256 is not the one that was sent with it"),
        ("sizes", [3], "0.onnx: expected uint8 of shape (3,)"),
        ("names", ["1.onnx"], "files: expected one array, size and SHA-256 of each name"),
        ("sizes", [3, 4], "files: expected one array, size and SHA-256 of each name"),
        ("names", "0.onnx", "names: expected list, got '0.onnx'"),
    ):
        content = pack_measuring(task(tmp_path))
        content.config_records["measure"][key] = value
        assert said in refusal(content)


RUNTIMES = {
    "crashes": ("os.kill(os.getpid(), 11)", "the process that measures was ended by SIGSEGV"),
    "is slow": ("time.sleep(60)", "measuring took more than 2 s, and was ended"),
    "leaves": ("sys.exit(3)", "the process that measures ended with exit status 3"),
    "forges": (
        "open('measured.json', 'w').write('[]'); os._exit(0)",
        "what was measured: expected fields, got []",
    ),
}


@pytest.mark.parametrize(("does", "said"), RUNTIMES.values(), ids=RUNTIMES)
def test_whatever_a_runtime_does_the_device_goes_on(does, said, tmp_path, monkeypatch):
    """A module in the place of the runtime; before it acts, it starts a process that would stay."""
    started = tmp_path / "started"
    (tmp_path / "onnxruntime.py").write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(started)!r}, 'w').write(str(child.pid))\n{does}\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)]))
    reason = refusal(pack_measuring(task(tmp_path, limit=2.0 if "2 s" in said else 60.0)))
    assert reason.partition(": ")[2].partition(": ")[2] == said
    # On a busy machine, the limit may come before the process did anything.
    child = int(started.read_text() or 0) if started.exists() else 0
    deadline = time.monotonic() + 10
    while (is_there := bool(child) and lives(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_there


def lives(process: int) -> bool:
    """Says whether a process runs; one that waits to be reaped does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_device_that_only_measures_needs_no_samples():
    options = DeviceOptions("127.0.0.1:1", measures=True)
    options.check()
    assert options.node_config() == {"measures": True}


# What comes back

HONEST = Measurement(
    (
        Measured(
            *("0.onnx", "onnx", (1, 6), "float32", 1, 5.25, 6.0, 100, 218, 4096, None),
            against=Ratios(1.0, (0.9, 1.1), 1.0, None),
        ),
    ),
    {"1.onnx": "1.onnx cannot be run"},
)


def test_what_is_written_is_read():
    assert read_measurement(json.dumps(HONEST.to_dict())) == HONEST


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["files", 0, "microseconds"], float("nan"), "microseconds must be finite and above 0, got nan"),
        (
            ["files", 0, "microseconds_p95"],
            float("inf"),
            "microseconds_p95 must be finite and above 0, got inf",
        ),
        (["files", 0, "microseconds"], -1.0, "microseconds must be finite and above 0, got -1.0"),
        (["files", 0, "microseconds"], 7.0, "microseconds_p95: is below the median"),
        (["files", 0, "microseconds"], "5", "microseconds: expected float, got '5'"),
        (["files", 0, "num_calls"], True, "num_calls: expected int, got True"),
        (["files", 0, "num_bytes"], 2**60, f"num_bytes must be at most {2**46}, got {2**60}"),
        (["files", 0, "memory_bytes"], -1, "memory_bytes must be 0 or more, got -1"),
        (["files", 0, "microjoules"], [1.0], "microjoules: expected float, got [1.0]"),
        (["files", 0, "shape"], [1, 0], "shape: expected sizes of at most 8 axes, got [1, 0]"),
        (
            ["files", 0, "dtype"],
            "\x1b[2J",
            "dtype: expected a line of at most 300 characters, got '\\x1b[2J'",
        ),
        (["files", 0, "dtype"], "any thing", "dtype: expected a type of numbers, got 'any thing'"),
        (["files", 0, "extra"], 1, "a file: fields missing [], unknown ['extra']"),
        (["files", 0, "against", "time"], None, "time: expected float, got None"),
        (["files", 0, "against", "time_quartiles"], [1.0], "time_quartiles: expected two numbers, got [1.0]"),
        (["files", 0, "against"], 3, "against: expected fields, got 3"),
        (["files", 0], [], "a file: expected fields, got []"),
        (["files"], {}, "what was measured: expected a list of files, and failures by file"),
        (["failures"], {"0.onnx": 3}, "failures: expected a text for each file"),
        (["failures"], {str(n): "" for n in range(200)}, "what was measured: expected at most 100 files"),
    ],
)
def test_a_reply_with_anything_wrong_is_refused_by_field(path, value, said):
    told = copy.deepcopy(json.loads(json.dumps(HONEST.to_dict())))
    place = told
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(WireError) as refused:
        read_measurement(json.dumps(told))
    assert str(refused.value) == said


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "3", '{"files": []}'])
def test_a_reply_that_is_no_measurement_is_refused(text):
    with pytest.raises(WireError, match="what was measured"):
        read_measurement(text)


def replied(message: Message, told: str | Error) -> Message:
    node = message.metadata.dst_node_id
    with acting_as(node):
        if isinstance(told, Error):
            return Message(told, reply_to=message)
        return Message(RecordDict({"measured": ConfigRecord({"json": told})}), reply_to=message)


def test_the_server_takes_answers_to_what_it_asked_and_names_who_gave_none():
    """Ten nodes: only the first answers as it should."""
    (file,), bad = HONEST.files, HONEST.failures
    sent = MeasuringTask({"0.onnx": b"x" * 218, "1.onnx": b"y"}, "0.onnx", 1, 0.05, 60.0)

    def having(**changes) -> str:
        told = HONEST.to_dict()
        told["files"][0] |= changes
        return json.dumps(told)

    answers: dict[int, str | Error | None] = {
        1: json.dumps(HONEST.to_dict()),
        2: json.dumps(Measurement((file,), {}).to_dict()),
        3: json.dumps(Measurement((file, file), bad).to_dict()),
        4: having(num_bytes=217),
        5: having(format="litert"),
        6: having(against=None),
        7: "garbage",
        8: "x" * 2**19,
        9: Error(0, "client: ExportError: measuring took more than 60 s, and was ended"),
        10: None,
    }

    def one(message: Message) -> Message | None:
        told = answers[message.metadata.dst_node_id]
        return None if told is None else replied(message, told)

    with acting_as(0):
        found = asked(MemoryGrid(one), sent, answers)
    assert found == {
        1: HONEST,
        2: "reply: it tells of other files than were sent",
        3: "reply: it tells of other files than were sent",
        4: "reply: 0.onnx: num_bytes is not that of the file that was sent",
        5: "reply: 0.onnx: format is not that of the file that was sent",
        6: "reply: 0.onnx: is held against no file, or against one that was not named",
        7: "reply: what was measured is no JSON: 'garbage'",
        8: "reply: json: expected at most 262144 characters, got 524288",
        9: "measuring took more than 60 s, and was ended",
        10: "no answer within 90 s",
    }


# From the server's machine


@contextmanager
def fleet(tmp_path: Path, monkeypatch, nodes: dict[int, dict], states: dict[str, str]):
    """A server that runs, whose devices answer in this process; yields its folder."""
    folder, _ = make_folder(tmp_path / "fleet", ("server.example",), [])
    folder.keep_registered({name: number for number, name in enumerate(states, 1)})
    listed = [
        {"node-id": str(number), "status": state, "offline-at": ""}
        for number, state in enumerate(states.values(), 1)
    ]
    monkeypatch.setattr(flower, "asked", lambda home, *said: {"nodes": listed})

    def run(folder, staged) -> None:
        def one(message: Message) -> Message:
            node = message.metadata.dst_node_id
            with acting_as(node):
                return app(message, Context(RUN_ID, node, nodes[node], RecordDict(), {}))

        with acting_as(0):
            measure_on_devices(MemoryGrid(one), staged)

    monkeypatch.setattr(from_server, "_run", run)
    (folder.root / "serving.json").write_text('{"host": "127.0.0.1", "port": 1, "insecure": false}')
    with locked(folder.root / ".lock"):
        yield folder


def test_a_server_has_its_devices_measure_and_shows_a_row_for_each_and_file(tmp_path, monkeypatch):
    small, large = dense(tmp_path / "small.onnx", 4), dense(tmp_path / "large.onnx", 400)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    nodes, states = {1: LETS, 2: {}}, {"door": "online", "window": "online", "gate": "offline"}
    with fleet(tmp_path, monkeypatch, nodes, states) as folder:
        words = ["serve", "measure", str(folder.root), str(small), str(bad), "--against", str(large)]
        told = CliRunner().invoke(commands, [*words, "--seconds", "0.05", "--json"])
        named = CliRunner().invoke(
            commands,
            [*words[:4], "--seconds", "0.05", "--devices", "door, gate"],
            env={"COLUMNS": "300"},
        )
    assert (told.exit_code, named.exit_code) == (2, 2)
    assert told.stderr.splitlines()[-1] == "error: not all could be measured on door, window; see above"
    door, window = json.loads(told.stdout)
    assert [one["file"] for one in door["files"]] == [str(large), str(small)]
    assert door["files"][1]["against"]["size"] == round(small.stat().st_size / large.stat().st_size, 4)
    assert door["failures"][str(bad)].startswith(f"{bad} cannot be run by onnxruntime: ")
    assert (window["device"], window["files"]) == ("window", [])
    assert window["failure"].startswith("this device was not told that servers may have files measured")
    assert "gate: it is not connected" in named.stdout
    (row,) = [line for line in named.stdout.splitlines() if line.startswith("door")]
    assert str(small) in row
    assert not list(folder.root.glob("measuring-*"))


def test_what_a_device_says_of_files_has_the_names_that_they_have_here(tmp_path, monkeypatch):
    """Where the file that others are held against cannot be run, nothing is measured."""
    small, bad = dense(tmp_path / "small.onnx", 4), tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    with fleet(tmp_path, monkeypatch, {1: LETS}, {"door": "online"}) as folder:
        words = ["serve", "measure", str(folder.root), str(small), "--against", str(bad)]
        result = CliRunner().invoke(commands, words)
    assert result.exit_code == 2
    assert result.stdout.startswith(f"door: {bad} cannot be run by onnxruntime: ")


def test_a_run_is_told_of_the_files_and_leaves_its_answers_beside_them(tmp_path, monkeypatch):
    """A command in the place of Flower's: one that keeps what it was told, and answers nothing."""
    folder, _ = make_folder(tmp_path / "fleet", ("server.example",), [])
    staged, kept = folder.root / "staged", tmp_path / "kept"
    flwr_that(f'printf "%s\\n" "$@" > {kept}', folder, monkeypatch)
    with running(folder, monkeypatch, None):
        from_server._run(folder, staged)
    assert f'measure="{staged}"' in kept.read_text()
    assert "--stream" in kept.read_text().split()
    with fleet(tmp_path, monkeypatch, {}, {"door": "online"}):
        monkeypatch.setattr(from_server, "_run", lambda folder, staged: None)
        words = ["serve", "measure", str(folder.root), str(dense(tmp_path / "small.onnx", 4))]
        result = CliRunner().invoke(commands, words)
    assert result.stderr.splitlines()[-1].startswith("error: no device was asked: ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model.pt2"], "model.pt2: devices measure files of .onnx, .pte, .tflite alone"),
        (["nowhere.onnx"], "there is no file nowhere.onnx"),
        (
            ["small.onnx", "--devices", "cellar"],
            "there is no device 'cellar'; 'fedhp serve devices' lists them",
        ),
        (["small.onnx", "--devices", "gate"], "none of these devices is connected"),
        (["small.onnx", "large.onnx"], "a device takes files of 1.0 KiB in all at a time, got "),
    ],
)
def test_what_the_server_does_not_send(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wire, "MOST_BYTES", 1024)
    (tmp_path / "model.pt2").touch()
    dense(tmp_path / "small.onnx", 4)
    dense(tmp_path / "large.onnx", 400)
    with fleet(tmp_path, monkeypatch, {}, {"door": "online", "gate": "offline"}) as folder:
        result = CliRunner().invoke(commands, ["serve", "measure", str(folder.root), *given])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {said}")
