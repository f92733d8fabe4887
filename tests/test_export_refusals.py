"""What an export refuses: other data, folders that it cannot use, what is installed and broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.errors import DataError, ExportError
from fedhp.exports.exporting import export
from fedhp.exports.formats import FORMATS
from fedhp.exports.formats.torch_program import TorchProgram
from fedhp.files.locks import locked, of


def classes(number, seed=0):
    """Features of which the largest tells the class, of four."""
    stream, labels = np.random.default_rng(seed), np.arange(number) % 4
    values = stream.normal(size=(number, 6)).astype(np.float32)
    values[np.arange(number), labels] += 6
    return values, labels


def save(file, values, labels):
    np.savez(file, x_train=values, y_train=labels, x_test=values[:100], y_test=labels[:100])
    return file


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    own = {"data.name": "npz", "data.root": str(save(folder / "own.npz", *classes(240)))}
    given = {"train.epochs": 4, "model.widths": [8], "prune.target_compression": 2}
    return fedhp.train("quickstart", folder / "run", **own, **given).folder


def other_data(change):
    """Returns samples and labels that are not the run's."""
    values, labels = classes(240)
    return {
        "features": (np.hstack([values, values[:, :1]]), labels),
        "classes": (values, labels + (labels == 3)),
        "labels": (values, (labels + 1) % 4),
    }[change]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("features", r"samples are of the shape \(.*7.*\), and the network takes \(.*6.*\)"),
        ("classes", "samples are of class 4, and the network has 4"),
        ("labels", r"the network gets \d+\.\d% of 100 held-out samples right, and in its run it had"),
    ],
)
def test_other_data_than_the_runs_is_refused(change, said, record, tmp_path):
    file = save(tmp_path / "other.npz", *other_data(change))
    with pytest.raises(DataError, match=f"{said}.*: this is not the data that the run had"):
        export(record, "torch", out=tmp_path / "out", data=file)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("calibration", [0, -5, 200_000])
def test_calibration_without_samples_is_refused(calibration, record, tmp_path):
    with pytest.raises(ExportError, match="calibration must be at "):
        export(record, "torch", out=tmp_path / "out", calibration=calibration)


def test_a_width_that_none_of_the_formats_has_is_refused(record):
    with pytest.raises(ExportError, match="'int8' is no width of torch; choose of onnx, executorch, litert"):
        export(record, "torch", "float32, int8")


class Broken(TorchProgram):
    """A format whose package is installed, and cannot be imported."""

    name = "broken"

    def check(self):
        raise OSError("libruntime.so.1:\n wrong ELF class")


def test_a_broken_package_is_named_and_others_are_taken_without_being_asked_for(
    record, tmp_path, monkeypatch
):
    monkeypatch.setattr("fedhp.exports.exporting.FORMATS", {"broken": Broken(), "torch": FORMATS["torch"]})
    with pytest.raises(ExportError, match=r"'broken' needs is installed, and cannot be imported .*wrong ELF"):
        export(record, "broken", out=tmp_path / "out")
    assert [file.format for file in export(record, out=tmp_path / "out").files] == ["torch"]


@pytest.mark.parametrize("place", ["file.txt/below", "link"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(place, record, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    refused = CliRunner().invoke(app, ["export", str(record), "--out", str(tmp_path / place)])
    assert refused.exit_code == 2
    assert "cannot be written: " in refused.output
    assert "choose another folder by --out" in refused.output


def test_a_folder_that_another_export_is_writing_to_is_refused(record, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(of(tmp_path / "out")), pytest.raises(ExportError, match="another export is writing to"):
        export(record, "torch", out=tmp_path / "out")


@pytest.fixture(scope="module")
def exported(record, tmp_path_factory):
    return export(record, "torch", out=tmp_path_factory.mktemp("exported") / "out").folder


@pytest.mark.parametrize(
    "damage",
    [
        {"input": None},
        {"microseconds": "fast"},
        {"name": ["model.pt2"]},
        {"remarks": None},
    ],
)
def test_facts_that_no_export_writes_are_named_and_nothing_is_lost(damage, record, exported, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    facts = json.loads((out / "export.json").read_text())
    facts["files"][0].update(damage)
    (out / "export.json").write_text(json.dumps(facts))
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ExportError, match=r"export.json is damaged: .*; remove .*, or choose another folder"):
        export(record, "torch", out=out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_what_a_killed_export_left_unfinished_is_in_nobodys_way(record, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".model.onnx").write_bytes(b"half")
    assert export(record, "torch", out=out).files


def test_a_file_that_is_gone_is_told_of_no_more(record, exported, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    facts = json.loads((out / "export.json").read_text())
    facts["files"].append({**facts["files"][0], "name": "model.onnx", "format": "onnx"})
    (out / "export.json").write_text(json.dumps(facts))
    export(record, "torch", out=out)
    assert "model.onnx" not in (out / "model_card.md").read_text()


class Full(TorchProgram):
    """A format whose files find no room on the disk."""

    def write(self, network, example, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_no_flaw_of_a_format_and_nothing_is_left(record, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "torch", Full())
    done = export(record, "torch", out=tmp_path / "out")
    assert done.failures == {
        "torch float32": "torch float32 cannot be written: [Errno 28] No space left on device"
    }
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_told_of_is_not_left(record, tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedhp.exports.card.replace_text", full)
    done = export(record, "torch", out=tmp_path / "out")
    assert "No space left" in done.failures["torch float32"]
    assert not Path(tmp_path / "out").exists()


def test_a_program_finds_no_room_either(record, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    done = export(record, "torch", out=tmp_path / "out")
    assert "No space left" in done.failures["torch float32"]
    assert not (tmp_path / "out").exists()
