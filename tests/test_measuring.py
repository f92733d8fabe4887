"""What is measured of exported files: shapes, turns, ratios, what cannot be run; never how fast they are."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from small_onnx import dense
from test_without_torch import KEPT_AWAY
from torch import nn
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.errors import ExportError, MissingExtraError
from fedhp.exports import measuring, timing
from fedhp.exports.energy import EnergyCounter
from fedhp.exports.formats import FORMATS
from fedhp.exports.loading_memory import memory_of
from fedhp.exports.measuring import measure
from fedhp.exports.quiet import quiet


@pytest.fixture
def without_memory(monkeypatch):
    """Which takes seconds: a process of its own for every file."""
    monkeypatch.setattr(measuring, "memory_of", lambda path, name, threads: None)


class Scaled(nn.Module):
    """Takes bytes, as a device's network does."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, units), nn.ReLU(), nn.Linear(units, 3))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.layers(samples.float() / 255)


def written(folder: Path, units: int = 4, name: str = "torch", file: str = "small") -> Path:
    form = FORMATS[name]
    path = folder / f"{file}{form.suffix}"
    with quiet():  # converters warn of themselves
        try:
            form.check()
        except MissingExtraError:
            pytest.skip(f"{name} is not installed")
        form.write(Scaled(units).eval(), np.zeros((1, 6), np.uint8), path)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_tells_itself_what_it_takes(name, tmp_path, without_memory):
    path = written(tmp_path, name=name)
    (found,) = measure([path], seconds=0.05).files
    assert (found.format, found.shape, found.dtype) == (name, (1, 6), "uint8")
    assert found.num_bytes == path.stat().st_size
    assert 0 < found.microseconds <= found.microseconds_p95
    assert found.num_calls >= 60


def test_files_take_turns_and_ratios_are_those_of_turns(tmp_path, monkeypatch):
    """A clock by which a call of the dense file takes 4 ms and one of the other 1 ms, and a machine that is
    half as fast from the tenth turn on: overall medians differ, and the ratio of turns stays 1/4.
    """
    dense, small = written(tmp_path, 8, file="dense"), written(tmp_path, file="small")
    clock, calls = [0.0], []

    class Slow:
        shape, dtype = (1, 6), "uint8"

        def __init__(self, path, threads):
            self.name, self.seconds = path.stem, 0.004 if path.stem == "dense" else 0.001

        def runs(self, sample):
            calls.append(self.name)
            turn = calls.count("dense") // 30
            clock[0] += self.seconds * (2 if turn > 5 else 1)

    monkeypatch.setattr(type(FORMATS["torch"]), "loaded", lambda form, path, threads: Slow(path, threads))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    memory = {"dense": 4096, "small": 1024}
    monkeypatch.setattr(measuring, "memory_of", lambda path, name, threads: memory[path.stem])
    found = measure([small], dense, seconds=1.0).files
    assert [Path(one.file).stem for one in found] == ["dense", "small"]
    itself, ratios = (asdict(one.against) for one in found if one.against)
    size = round(small.stat().st_size / dense.stat().st_size, 4)
    assert itself == {"time": 1, "time_quartiles": (1, 1), "size": 1, "memory": 1}
    assert ratios["time"] == pytest.approx(0.25)
    assert (ratios["size"], ratios["memory"]) == (size, 0.25)
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert turns == ["dense", "small"] * 21  # the first of which warms up


@pytest.mark.integration
def test_a_larger_network_takes_more_memory(tmp_path):
    """Five million float32 weights are 20 MB."""
    large, small = written(tmp_path, 500_000, file="large"), written(tmp_path, file="small")
    taken = [memory_of(path, "torch", 1) for path in (large, small)]
    if None in taken and not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell")
    assert (taken[0] or 0) - (taken[1] or 0) > 19e6


def test_what_cannot_be_measured_is_named_and_others_go_on(tmp_path, without_memory):
    good, bad, other = written(tmp_path), tmp_path / "bad.pt2", tmp_path / "notes.txt"
    bad.write_bytes(b"no archive")
    other.write_text("text", encoding="utf-8")
    given = [str(one) for one in (bad, other, tmp_path / "missing.pt2", good)]
    result = CliRunner().invoke(app, ["measure", *given, "--seconds", "0.05", "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 2
    assert [one["file"] for one in told["files"]] == [str(good)]
    assert "cannot be run by torch" in told["failures"][str(bad)]
    assert ".onnx, .pte, .tflite, .pt2" in told["failures"][str(other)]
    assert told["failures"][given[2]] == f"there is no file {given[2]}"
    assert result.stderr.splitlines()[-1] == "error: 3 of the files could not be measured; see above"
    with pytest.raises(ExportError, match=r"bad\.pt2 cannot be run"):
        measure([good], bad)


@pytest.mark.integration
def test_a_device_that_has_a_runtime_alone_measures_what_that_runs(tmp_path):
    """Neither the command nor the process that tells of memory imports PyTorch; what needs it says so."""
    (tmp_path / "sitecustomize.py").write_text(KEPT_AWAY.format(names=("torch",)), encoding="utf-8")
    small, program = dense(tmp_path / "small.onnx", 4), tmp_path / "other.pt2"
    program.touch()
    command = [sys.executable, "-m", "fedhp", "measure", str(small), str(program), "--json"]
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [*command, "--seconds", "0.05"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    (found,) = told["files"]
    assert (found["format"], found["shape"], found["dtype"]) == ("onnx", [1, 6], "float32")
    if sys.platform == "linux":
        assert found["memory_bytes"] > 0
    assert told["failures"][str(program)].endswith("No module named 'torch'): pip install 'fedhp[torch]'")


def test_the_table_has_ratios_where_there_is_something_to_hold_against(tmp_path, without_memory):
    small, dense = str(written(tmp_path)), str(written(tmp_path, 8, file="dense"))
    plain = CliRunner().invoke(app, ["measure", small, "--seconds", "0.05"])
    beside = CliRunner().invoke(app, ["measure", small, "--against", dense, "--seconds", "0.05"])
    assert (plain.exit_code, beside.exit_code) == (0, 0)
    assert "x time" not in plain.stdout
    assert "x time" in beside.stdout


def test_the_table_leaves_out_the_folders_that_all_files_share(tmp_path, without_memory):
    """Whole names would not fit beside ratios; JSON has them."""
    folders = [tmp_path / "a_folder_of_a_long_name" / name / "export" for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
    small, dense = (str(written(folder)) for folder in folders)
    command = ["measure", small, "--against", dense, "--seconds", "0.05"]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "80"}).stdout
    begins = [line.split()[0] for line in shown.splitlines()[1:]]
    assert begins == [os.path.join(name, "export", "small.pt2") for name in ("two", "one")]
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [one["file"] for one in told["files"]] == [dense, small]


def test_of_a_folder_those_files_are_measured_that_a_runtime_takes(tmp_path, without_memory):
    record, bare = tmp_path / "record", tmp_path / "bare"
    (record / "export").mkdir(parents=True)
    bare.mkdir()
    file = str(written(record / "export"))
    (record / "export" / "labels.txt").write_text("zero\n", encoding="utf-8")
    for folder in (record, record / "export"):
        found = measure([folder, file], seconds=0.05)
        assert [one.file for one in found.files] == [file]
        assert not found.failures
    found = measure([bare, file], seconds=0.05)
    assert [one.file for one in found.files] == [file]
    assert "holds no file that can be measured" in found.failures[str(bare)]


def test_a_files_name_is_shown_as_it_is(tmp_path, without_memory):
    given = [str(written(tmp_path, file="a[red]b")), str(tmp_path / "c[red]d.onnx")]
    shown = CliRunner().invoke(app, ["measure", *given, "--seconds", "0.05"], env={"COLUMNS": "300"}).output
    assert "a[red]b" in shown
    assert "there is no file" in shown
    assert shown.count("c[red]d") == 1


def test_energy_is_that_of_all_packages_and_of_no_part_of_one(tmp_path):
    for name, energy in (("intel-rapl:0", 100), ("intel-rapl:0:0", 7), ("intel-rapl:1", 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n", encoding="utf-8")
    counter = EnergyCounter(tmp_path)
    assert counter.read() == (100, 50)
    assert counter.between((100, 50), (130, 55)) == 35
    assert counter.between((100, 50), (3, 55)) is None  # a counter that began anew
    assert EnergyCounter(tmp_path / "none").read() is None


def test_a_time_that_is_no_number_is_refused():
    with pytest.raises(ExportError, match="seconds must be above 0"):
        measure(["any.onnx"], seconds=float("nan"))
