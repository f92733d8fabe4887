"""What Weights & Biases is told of a run."""

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import CLIENT_COLUMNS, KEPT, make_plan, make_report, make_state
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.errors import MissingExtraError
from fedhp.records import RunTotals, load_run
from fedhp.report import write_report
from fedhp.scenario.schema import WandbConfig
from fedhp.tracking.wandb_tracker import WandbTracker

pytest.importorskip("pandas", reason="reading records needs the extra 'server'")
pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")


def test_wandb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedhp\[wandb\]'.*-e '\.\[wandb\]'"):
        WandbTracker(WandbConfig(mode="offline"), tmp_path)


def wandb_payloads(path: Path) -> list[bytes]:
    """Reads a W&B transaction log: 7 bytes of header, then LevelDB's log format.

    Blocks of 32 KiB; in them chunks of checksum (4 bytes), length (2), type (1: whole; 2, 3, 4:
    first, middle and last piece) and data.
    """
    data, position = path.read_bytes(), 7
    payloads, pieces = [], b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            break  # still being written
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            payloads.append(pieces)
            pieces = b""
    return payloads


def wandb_records(folder: Path, patience_seconds: float = 30.0) -> list[Any]:
    """Returns the records of the log once W&B, a process of its own, has written the last of them."""
    from wandb.proto.wandb_internal_pb2 import Record

    *_, log = sorted(folder.glob("wandb/offline-run-*/*.wandb"))  # the last, of a run that went on
    until = time.monotonic() + patience_seconds
    while True:
        records = [Record.FromString(payload) for payload in wandb_payloads(log)]
        if any(record.HasField("exit") for record in records) or time.monotonic() > until:
            return records
        time.sleep(0.1)


def wandb_history(folder: Path) -> list[dict[str, object]]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(folder)
        if record.HasField("history")
    ]


def test_wandb_offline_holds_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Round 1: 'big' peaks at 2048 bytes; the only accuracy of 'small' is client 2's, 0.25."""
    pytest.importorskip("wandb", reason="tracking with W&B needs the extra 'wandb'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    plan = make_plan()
    tracker = WandbTracker(WandbConfig(mode="offline"), tmp_path)
    tracker.on_start(plan)
    for number in range(3):
        tracker.on_round(make_report(number), make_state(KEPT))
    tracker.on_finish(RunTotals(plan).summary())
    tracker.close()
    tracker.close()
    assert capfd.readouterr().out == ""
    steps = wandb_history(tmp_path)
    assert [step["round"] for step in steps] == [0, 1, 2]
    assert [step["accuracy"] for step in steps] == [0.1, 0.8, 0.7]
    assert steps[1]["class/big/memory_peak_bytes"] == 2048
    assert steps[1]["class/small/memory_budget_bytes"] == 1024
    assert steps[1]["class/small/accuracy"] == 0.25
    assert [steps[1][f"class/{name}/local_accuracy_personal"] for name in ("big", "small")] == [2 / 3, 1]
    assert [steps[1][f"class/{name}/local_accuracy_global"] for name in ("big", "small")] == [1 / 3, 0]
    assert (steps[1]["local_accuracy_global"], steps[1]["local_accuracy_personal"]) == (0.25, 0.75)
    assert not [key for key in (*steps[0], *steps[2]) if "local" in key]
    assert steps[1]["class/big/batch_size"] == 8
    assert (steps[0]["structure/hidden"], steps[1]["structure/hidden"]) == (10, 3)
    assert "clients" not in steps[0]
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/clients_1_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == CLIENT_COLUMNS
    assert [row[8] for row in table["data"]] == [2048, 1025, None]


def wandb_media(folder: Path, step: dict[str, object]) -> dict[str, Path]:
    """Returns the files of a step's images and tables by the key that they were logged under."""
    (run,) = folder.glob("wandb/offline-run-*")
    paths = {key.removesuffix("/path"): path for key, path in step.items() if key.endswith("/path")}
    return {key: run / "files" / str(path) for key, path in paths.items()}


def test_wandb_offline_holds_the_reports_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn from the record, whose summary is there by then, and logged at the last round."""
    pytest.importorskip("wandb", reason="tracking with W&B needs the extra 'wandb'")
    image = pytest.importorskip("matplotlib.image", reason="figures need the extra 'plots'")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    settings = {"rounds": 1, "fleet.num_clients": 4, "data.max_train": 200, "simulation.num_workers": 0}
    fedhp.simulate("quickstart", tmp_path, show=False, **settings, **{"tracking.wandb.mode": "offline"})
    last = wandb_history(tmp_path)[-1]
    assert last["round"] == 1
    logged = wandb_media(tmp_path, last)
    write_report(tmp_path)
    ours = {f"report/{path.stem}": path for path in tmp_path.glob("figures/*.png")}
    assert set(logged) == set(ours)
    assert len(logged) > 5
    for key, path in logged.items():
        assert (image.imread(path) == image.imread(ours[key])).all()


def test_wandb_offline_holds_a_comparison_in_the_group_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="tracking with W&B needs the extra 'wandb'")
    pytest.importorskip("matplotlib", reason="figures need the extra 'plots'")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    cheap = ["rounds=1", "data.max_train=200", "fleet.num_clients=4", "simulation.num_workers=0"]
    words = ["--strategies", "exclusive,dense", "--seeds", "1", "--out", str(tmp_path)]
    command = ["compare", "quickstart", *cheap, "tracking.wandb.mode=offline", *words]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output

    def started(folder: Path) -> Any:
        return next(record.run for record in wandb_records(folder) if record.HasField("run"))

    own, one = started(tmp_path), started(tmp_path / "dense" / "seed-0")
    assert (own.run_group, own.job_type, own.display_name) == (
        "compare-quickstart",
        "comparison",
        "comparison",
    )
    assert (one.run_group, one.job_type) == ("compare-quickstart", "")
    (step,) = wandb_history(tmp_path)
    media = wandb_media(tmp_path, step)
    assert {"table", "classes", "pairs", "report/signature", "report/memory"} <= set(media)
    table = json.loads(media["table"].read_text())
    place = table["columns"].index("last")
    logged = {row[0]: row[place] for row in table["data"]}
    accuracy = 100 * load_run(tmp_path / "dense" / "seed-0").summary["final_accuracy"]
    assert logged["dense"] == pytest.approx(accuracy)
    assert set(logged) == {"exclusive", "dense"}

    assert CliRunner().invoke(app, command).exit_code == 0
    ids = [run.name.rpartition("-")[2] for run in tmp_path.glob("wandb/offline-run-*")]
    assert ids == 2 * [own.run_id]


def test_wandb_offline_holds_the_cause_of_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the start there is no run to tell it, nor is there anything to fail of."""
    pytest.importorskip("wandb", reason="tracking with W&B needs the extra 'wandb'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    plan = make_plan()
    tracker = WandbTracker(WandbConfig(mode="offline"), tmp_path)
    tracker.on_failure("too early")
    tracker.on_start(plan)
    tracker.on_failure("all clients failed")
    tracker.close()
    items = [item for record in wandb_records(tmp_path) for item in record.summary.update]
    told = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
    assert (told["status"], told["cause"]) == ("failed", "all clients failed")


def test_a_run_that_goes_on_is_the_same_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline it has a folder more; a step is the round, so that none that was logged counts twice."""
    pytest.importorskip("wandb", reason="tracking with W&B needs the extra 'wandb'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    plan, logged = make_plan(), []
    for rounds in ((0, 1), (1, 2)):
        tracker = WandbTracker(WandbConfig(mode="offline"), tmp_path)
        tracker.on_start(plan)
        for number in rounds:
            tracker.on_round(make_report(number), make_state(KEPT))
        tracker.close()
        logged.append([(step["_step"], step["round"]) for step in wandb_history(tmp_path)])
        time.sleep(1.0)  # by which W&B names its folders
    assert logged == [[(0, 0), (1, 1)], [(1, 1), (2, 2)]]
    first, second = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert first.name != second.name
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]
