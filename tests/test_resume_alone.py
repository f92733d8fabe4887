"""A training on one device, cut short, goes on after any epoch, to the end that it would have had."""

import os
import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cut_short import outcome, snapshots
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.errors import RecordError, ScenarioError, TrainingError
from fedhp.records import checkpoint, kept
from fedhp.studies.grids import Grid, dynhp_cells
from fedhp.sweep.cell import run_cell
from fedhp.training.method import ClientRun, Method

pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")

# Momentum, cuts in the first three epochs, and scores of units that are averaged over steps.
SMALL: dict[str, Any] = {"data.max_train": 300, "train.epochs": 4, "model.widths": [24, 16]}

# What else a training may carry from epoch to epoch: moments of two kinds, a count and noise; what a penalty
# keeps for each weight; a stream of random numbers; running statistics; sums over activations; layers' draws.
KINDS: dict[str, dict[str, Any]] = {
    "adam and noise": {"train.optimizer": "adam", "memory.batch_policy": "noise", "memory.max_batch": 64},
    "a penalty": {"prune.regularizer": "group_lasso", "train.clip_norm": 1.0},
    "a pattern by magnitude": {"prune.pattern.name": "nm:2:4", "prune.end": 0.5},
    "a learned pattern": {"prune.pattern.name": "nm:4:8", "prune.pattern.by": "learned", "prune.end": 0.5},
    "a pattern that is held": {"prune.pattern.name": "nm:2:4", "prune.end": 0.5, "prune.pattern.end": 0.5},
    "random scores": {"prune.criterion": "random", "prune.end": 1.0},
    "statistics": {"model.norm": "batch", "train.lr_schedule": "cosine"},
    "activations": {"prune.criterion": "activation", "prune.target_compression": 3},
    "sparse, grown by gradients": {"train.method": "rigl", "train.sparse.every": 5},
    "sparse, grown at random": {"train.method": "set", "train.sparse.every": 5, "train.optimizer": "adam"},
    "sparse for good": {"train.method": "static"},
    "convolutions": {"model.name": "cnn", "model.widths": [8, 12, 16]},
    "filters that lose elements": {
        "model.name": "cnn",
        "model.widths": [8, 12, 16],
        "train.dropfilter.rate": 0.2,
    },
    "dropout": {
        "model.target": "test_draws:drop_channels",
        "model.widths": [],
        "prune.target_compression": 2,
    },
}


def after_each_epoch(place: Path, values: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """What a training comes to, and what a kill would have left just after each checkpoint."""
    with snapshots(place / "run", place) as taken:
        fedhp.train("quickstart", place / "run", **values)
    newest = {folder: checkpoint.found(folder)[:1] for folder in taken}
    first = {found[0].name: folder for folder, found in reversed(newest.items()) if found}
    return outcome(place / "run"), [first[name] for name in sorted(first)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Path]]:
    return after_each_epoch(tmp_path_factory.mktemp("alone"), SMALL)


@pytest.fixture
def cut_short(undisturbed: tuple[dict[str, Any], list[Path]], tmp_path: Path) -> Path:
    """A copy of the record as it was after two epochs."""
    return Path(shutil.copytree(undisturbed[1][1], tmp_path / "run"))


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_it_goes_on_after_any_epoch_to_the_same_end(undisturbed, tmp_path, epoch):
    expected, folders = undisturbed
    assert len(folders) == 4
    folder = Path(shutil.copytree(folders[epoch - 1], tmp_path / "run"))
    fedhp.resume(folder)
    assert ("goes on at round" if epoch < 4 else "goes on to its end") in (folder / "events.log").read_text()
    assert outcome(folder) == expected


@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_whatever_a_training_carries_from_epoch_to_epoch_is_handed_on(values, tmp_path):
    expected, folders = after_each_epoch(tmp_path, {**SMALL, "train.epochs": 3, **values})
    fedhp.resume(folders[1])
    assert outcome(folders[1]) == expected


def test_a_cell_of_a_study_goes_on_inside(undisturbed, cut_short, tmp_path):
    """And not from its beginning, from which nothing is evaluated; `from scratch` needs its start no more."""
    overrides = ["data.max_train=300", "train.epochs=4", "model.widths=[24, 16]"]
    cell = next(
        one for one in dynhp_cells(Grid(["quickstart"], [0], overrides), [6.0]) if "dynhp" in one.name
    )
    begun = tmp_path / "study" / cell.name
    shutil.copytree(cut_short, begun)
    _, result = run_cell(cell, tmp_path / "study")
    assert (result.status, result.reason) == ("finished", "")
    assert "goes on at round 3 of 4" in (begun / "events.log").read_text()
    assert outcome(begun)["weights"] == undisturbed[0]["weights"]


class Silent(Method):
    """Keeps something that it does not hand on."""

    def begin(self, run: ClientRun) -> None:
        self.steps = 0


class Plain(Method):
    """Keeps nothing."""


@pytest.mark.parametrize(("method", "keeps"), [("Silent", False), ("Plain", True)])
def test_with_a_method_that_does_not_say_what_it_keeps_there_is_no_checkpoint(method, keeps, tmp_path):
    values = {**SMALL, "train.epochs": 2, "train.methods": [f"test_resume_alone:{method}"]}
    with snapshots(tmp_path / "run", tmp_path) as taken:
        fedhp.train("quickstart", tmp_path / "run", **values)
    assert any(checkpoint.found(folder) for folder in taken) == keeps
    if not keeps:
        begun = next(folder for folder in reversed(taken) if not (folder / "summary.json").exists())
        with pytest.raises(RecordError, match="client method that does not say what it keeps"):
            fedhp.resume(begun)


class Keeps(Method):
    """Hands on what a test puts here."""

    value: Any = None

    def kept(self) -> Any:
        return type(self).value


def handed_on_with(value: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeps, "value", value)
    values = {**SMALL, "train.epochs": 1, "data.max_train": 64, "train.methods": ["test_resume_alone:Keeps"]}
    fedhp.train("quickstart", place / "run", **values)


def test_numbers_that_a_method_keeps_may_be_of_numpy(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda *of, **how: saved.append(of))
    count, mean, half = np.int64(3), np.float32(1.5), np.array([0.5], np.float16)
    handed_on_with(
        {"a": count, "b": [mean, np.True_, None], "c": {"d": half, "e": "f"}}, tmp_path, monkeypatch
    )
    kept = next(one for one in saved[0][2]["state"]["methods"] if "c" in one)
    assert kept == {"a": 3, "b": [1.5, True, None], "c": {"d": half, "e": "f"}}
    assert [type(one) for one in (kept["a"], *kept["b"])] == [int, float, bool, type(None)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": {1: 2}}, "the key 1"),
        ({"a": [{3}]}, "a value of type set"),
        ({"a": np.datetime64("2026-01-01")}, "a value of type date"),
        ({"a": np.array([None])}, "a value of type ndarray of object"),
        ([1], "list, and not a mapping"),
    ],
)
def test_what_no_checkpoint_holds_is_refused_by_the_methods_name(value, said, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match=rf"kept\(\) of client method Keeps returns {said}; expected"):
        handed_on_with(value, tmp_path, monkeypatch)


def test_checkpoints_come_as_often_as_the_scenario_says(tmp_path):
    with snapshots(tmp_path / "run", tmp_path) as taken:
        fedhp.train("quickstart", tmp_path / "run", **{**SMALL, "server.checkpoint": 2})
    assert {path.name for folder in taken for path in checkpoint.found(folder)} == {
        *("checkpoint-000003.safetensors", "checkpoint-000005.safetensors")
    }


def test_now_and_then_a_checkpoint_and_the_rows_that_it_leans_on_would_outlive_a_power_failure(
    tmp_path, monkeypatch
):
    """The clock goes on by four seconds a look: of six checkpoints, two are waited for, one is spared."""
    on_disk, lacking, save = set(), {}, checkpoint.save

    def checked(folder: Path, told: int, *given: Any, **named: Any) -> Path:
        tables = [folder / name for name in ("rounds.parquet", "clients.parquet")]
        parts = [table / f"part-{number:06d}.parquet" for table in tables for number in range(told)]
        path = save(folder, told, *given, **named)
        left = [one for one in (*tables, *parts, path) if one.stat().st_ino not in on_disk]
        lacking[told] = (left == [], [int(one.stem[-6:]) for one in checkpoint.found(folder)])
        return path

    clock = count(0.0, 4.0)
    monkeypatch.setattr(kept, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("os.fsync", lambda file: on_disk.add(os.fstat(file).st_ino))
    monkeypatch.setattr(checkpoint, "save", checked)
    fedhp.train("quickstart", tmp_path / "run", **{**SMALL, "data.max_train": 64, "train.epochs": 6})
    assert lacking == {
        2: (False, [2]),
        3: (False, [3, 2]),
        4: (True, [4, 3]),
        5: (False, [5, 4]),
        6: (False, [6, 5, 4]),
        7: (True, [7, 6]),
    }


def refill(folder: Path, **state: Any) -> None:
    for path in checkpoint.found(folder):
        values = checkpoint.load(path)
        checkpoint.save(folder, values["told"], {**values, "state": {**values["state"], **state}})


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"steps": [1, 2.0]}, "holds what no run writes"),
        ({"methods": [{}]}, "cannot go on from what another has handed on"),
        ({"moments": {}}, "cannot go on from what another has handed on"),
        ({"methods": 5}, "holds what no run writes"),
    ],
)
def test_what_no_training_hands_on_is_refused_in_a_line(state, said, cut_short):
    refill(cut_short, **state)
    result = CliRunner().invoke(app, ["resume", str(cut_short)])
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def test_a_key_that_changes_results_is_refused(cut_short):
    with pytest.raises(ScenarioError, match=r"^train\.epochs: a run goes on as it was begun"):
        fedhp.resume(cut_short, overrides=["train.epochs=9"])
