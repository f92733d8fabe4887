"""Reading records back, those of killed runs and of earlier versions too."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from recorded_runs import CLIENT_COLUMNS, KEPT, SUMMARY_KEYS, RecordRun, make_plan, make_report, make_state
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.errors import RecordError
from fedhp.records import RunRecord, RunTotals, load_run, load_state, wording

pd = pytest.importorskip("pandas", reason="reading records needs the extra 'server'")
pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")


ROOT = Path(__file__).parent.parent


def test_run_reads_back(record_run: RecordRun, tmp_path: Path) -> None:
    record_run(tmp_path / "run").close()
    run = load_run(tmp_path / "run")
    assert run.config == make_plan().scenario
    assert list(run.rounds["accuracy"]) == [0.1, 0.8, 0.7]
    assert run.rounds is run.rounds
    assert len(run.clients) == 5


def test_a_folder_whose_name_reads_like_a_setting_is_read(record_run: RecordRun, tmp_path: Path) -> None:
    """Whatever reads tables may take ``lr=0.1`` in a path for a column: while a run goes on, and after it."""
    record = record_run(tmp_path / "lr=0.1" / "run")
    assert len(load_run(tmp_path / "lr=0.1" / "run").clients) == 5
    record.close()
    assert len(load_run(tmp_path / "lr=0.1" / "run").clients) == 5


def read_all(folder: Path) -> int:
    run = load_run(folder)
    return len(run.clients) + len(run.rounds)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", b'{"status": "fin', "summary.json is damaged"),
        (
            "summary.json",
            b'{"status": "finished"}',
            "summary.json is incomplete: it lacks",
        ),
        ("config.yaml", None, "config.yaml is missing"),
        ("config.yaml", b"rounds: many\n", "config.yaml holds no scenario"),
        ("clients.parquet", None, "clients.parquet is missing"),
        ("clients.parquet", b"PAR1 half", "clients.parquet cannot be read"),
        ("rounds.parquet", b"", "rounds.parquet cannot be read"),
    ],
)
def test_damaged_record_is_refused_by_name(
    record_run: RecordRun, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    record_run(tmp_path).close()
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=message):
        read_all(tmp_path)


KILLED = """
import os, signal, sys
import fedhp
from fedhp.records import RunRecord

record_round = RunRecord.on_round

def die_after_round_2(self, report, state):
    record_round(self, report, state)
    if report.round == 2:
        os.kill(os.getpid(), signal.SIGKILL)

RunRecord.on_round = die_after_round_2
small = {"fleet.num_clients": 4, "data.max_train": 400, "simulation.num_workers": 0, "model.widths": [16, 8]}
fedhp.simulate("quickstart", sys.argv[1], **small)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a run that had no time for any farewell."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    command = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


def test_a_record_of_before_a_column_was_there_reads_back_with_nothing_in_it(killed, tmp_path):
    old = shutil.copytree(killed, tmp_path / "old")
    for part in sorted((old / "clients.parquet").glob("*.parquet")):
        pd.read_parquet(part).drop(columns="update_norm").to_parquet(part)
    clients = load_run(old).clients
    assert list(clients.columns) == CLIENT_COLUMNS
    assert clients["update_norm"].isna().all()
    assert (load_run(killed).clients["update_norm"] > 0).all()


def test_a_killed_run_reads_back_as_far_as_it_came(killed: Path) -> None:
    """4 clients in each of 2 rounds; 65 * 16 + 17 * 8 + 9 * 10 are 1266 parameters."""
    assert not (killed / "summary.json").exists()
    run = load_run(killed)
    assert [run.summary[key] for key in ("status", "rounds", "params_full")] == ["unfinished", 2, 1266]
    assert run.summary["final_accuracy"] == run.rounds["accuracy"].iloc[-1]
    assert run.summary["bytes_up"] == run.clients["bytes_up"].sum() > 0
    assert list(run.rounds["round"]) == [0, 1, 2]
    assert run.clients.groupby("round").size().to_dict() == {1: 4, 2: 4}
    assert "unfinished, rounds=2" in repr(run)
    last = max(path.stat().st_mtime for path in killed.rglob("*"))
    told = f"last alive at {datetime.fromtimestamp(last):%Y-%m-%d %H:%M:%S}"
    assert run.summary["cause"] == f"no end is on record; it was {told}"
    num_parameters = sum(array.size for array in load_state(killed)[0].weights.values())
    assert num_parameters == run.summary["params_final"]


def test_a_killed_runs_folder_is_refused_to_another_run_and_left_alone(killed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*")}
    result = CliRunner().invoke(app, ["run", "rounds=1", "simulation.num_workers=0", "--out", str(killed)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {killed} exists already")
    assert "choose another --out or remove it" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("*")} == before


def test_the_added_up_summary_is_the_one_that_the_run_would_have_written(
    record_run: RecordRun, tmp_path: Path
) -> None:
    record_run(tmp_path, finish=True).close()
    written = load_run(tmp_path).summary
    (tmp_path / "summary.json").unlink()
    added_up = load_run(tmp_path).summary
    assert list(added_up) == SUMMARY_KEYS
    assert added_up["cause"].startswith("no end is on record; it was last alive at ")
    assert added_up == {**written, "status": "unfinished", "cause": added_up["cause"], "versions": {}}
    assert json.loads(json.dumps(added_up)) == added_up


def test_before_the_first_round_the_summary_says_what_it_does_not_know(
    record_run: RecordRun, tmp_path: Path
) -> None:
    record_run(tmp_path, rounds=0, finish=False)
    run = load_run(tmp_path)
    assert [run.summary[key] for key in ("scenario", "status", "rounds")] == ["tiny", "unfinished", 0]
    unknown = {key for key, value in run.summary.items() if value is None}
    assert unknown == {
        "final_accuracy",
        "best_accuracy",
        "local_accuracy_global",
        "local_accuracy_personal",
        "params_full",
        "params_final",
        "compression",
        "training_bytes_full",
        "training_bytes_final",
    }
    assert run.clients.empty


def test_without_held_out_samples_no_local_accuracy_is_made_up(tmp_path: Path) -> None:
    """A fleet that holds nothing out: neither in the summary, nor added up, nor in the last line."""
    totals, record = RunTotals(make_plan()), RunRecord(tmp_path)
    record.on_start(make_plan())
    nothing = {"num_local_test": 0, "local_accuracy_global": None, "local_accuracy_personal": None}
    for number in (0, 1):
        rows = [
            dataclasses.replace(
                row, statistics=row.statistics and dataclasses.replace(row.statistics, **nothing)
            )
            for row in make_report(number).clients
        ]
        report = dataclasses.replace(make_report(number), clients=tuple(rows))
        totals.add(report)
        record.on_round(report, make_state(KEPT))
    added_up = load_run(tmp_path).summary
    record.close()
    summary = totals.summary()
    assert summary.local_accuracy_global is summary.local_accuracy_personal is None
    assert added_up["local_accuracy_global"] is added_up["local_accuracy_personal"] is None
    assert "own samples" not in wording.finish(summary)


def test_the_training_bytes_of_a_model_that_nobody_could_hold_are_not_made_up(
    record_run: RecordRun, tmp_path: Path
) -> None:
    """Round 0 has 3 of 10 units already: its 20 parameters at compression 3.1 tell 62, and no bytes."""
    record = record_run(tmp_path, rounds=0, finish=False)
    begun = dataclasses.replace(make_report(0), structure=KEPT, params=20, compression=62 / 20)
    record.on_round(begun, make_state(KEPT))
    summary = load_run(tmp_path).summary
    assert (summary["params_full"], summary["training_bytes_full"]) == (62, None)


@pytest.mark.parametrize("content", [b"", bytes(4000)])
def test_parts_that_a_power_failure_emptied_are_left_out_and_named(
    record_run: RecordRun, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    record_run(tmp_path / "run", finish=False)
    after = shutil.copytree(tmp_path / "run", tmp_path / "after")
    (after / "rounds.parquet" / "part-000002.parquet").write_bytes(content)
    run = load_run(after)
    assert (run.summary["rounds"], run.summary["final_accuracy"]) == (1, 0.8)
    assert list(run.rounds["round"]) == [0, 1]
    assert "part-000002.parquet is damaged" in caplog.text
    for part in (after / "rounds.parquet").iterdir():
        part.write_bytes(content)
    with pytest.raises(RecordError, match=r"rounds\.parquet is missing, or no part of it is whole"):
        load_run(after)


def test_a_run_killed_between_the_renames_of_a_merge_reads_back(
    record_run: RecordRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts have left and the merged file has not come: it is there under a hidden name."""
    record, rename, done = record_run(tmp_path), Path.rename, []

    def rename_and_die(path: Path, target: Path) -> None:
        done.append(rename(path, target))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", rename_and_die)
    with pytest.raises(KeyboardInterrupt):
        record.close()
    assert not (tmp_path / "clients.parquet").exists()
    assert (len(load_run(tmp_path).clients), len(load_run(tmp_path).rounds)) == (5, 3)


def test_table_of_other_columns_is_refused(record_run: RecordRun, tmp_path: Path) -> None:
    record_run(tmp_path).close()
    pd.DataFrame({"round": [1]}).to_parquet(tmp_path / "clients.parquet")
    with pytest.raises(RecordError, match="expected the columns"):
        _ = load_run(tmp_path).clients


def test_state_reads_back_with_its_metadata(record_run: RecordRun, tmp_path: Path) -> None:
    record_run(tmp_path, finish=False)
    state, metadata = load_state(tmp_path)
    expected = make_state(KEPT)
    assert state.structure == KEPT
    assert set(state.weights) == set(expected.weights)
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(state.weights[name], array)
    assert metadata["model"] == dataclasses.asdict(make_plan().scenario.model)
    assert (metadata["input_shape"], metadata["num_classes"]) == ([3], 2)
    assert metadata["widths"] == {"hidden": 10}


def rewrite(path: Path, drop: str = "", **tensors: np.ndarray) -> None:
    """Replaces tensors of a checkpoint and drops one."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    held = {key: array for key, array in {**held, **tensors}.items() if key != drop}
    save_file(held, path, metadata)


@pytest.mark.parametrize(
    ("drop", "tensors", "message"),
    [
        ("a.bias", {}, "'a.bias' is missing"),
        ("structure.hidden", {}, "'structure.hidden' is missing"),
        ("", {"a.bias": np.zeros(4, np.float32)}, r"'a.bias'.* shape \(3,\), got .* \(4,\)"),
        ("", {"a.bias": np.zeros(3, np.float64)}, "asks for float32.*got float64"),
        ("", {"extra": np.zeros(1, np.float32)}, r"unknown tensors \['extra'\]"),
        ("", {"structure.hidden": np.array([255, 255], np.uint8)}, "beyond its 10 units"),
    ],
)
def test_unfitting_tensors_are_refused(
    record_run: RecordRun, tmp_path: Path, drop: str, tensors: dict[str, np.ndarray], message: str
) -> None:
    record_run(tmp_path, finish=False)
    rewrite(tmp_path / "model.safetensors", drop, **tensors)
    with pytest.raises(RecordError, match=message):
        load_state(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not tensors at all", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RecordError, match="no model at"):
        load_state(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(RecordError, match="no safetensors file"):
        load_state(tmp_path)
