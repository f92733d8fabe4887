"""Trackers: what a run leaves on disk, in the terminal and in W&B, and reading it back."""

import dataclasses
import io
import json
import logging
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.errors import MissingExtraError, RecordError
from fedhp.fleet.devices import DeviceClassConfig, FleetConfig
from fedhp.model.layout import AxisRef, Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.model.zoo import ModelConfig
from fedhp.records import RunPlan, RunRecord, RunTotals, load_run, load_state, run_folder, wording
from fedhp.records.rows import ClientReport, RoundReport
from fedhp.report import write_report
from fedhp.scenario.schema import Scenario, WandbConfig
from fedhp.tracking import ConsoleTracker, Trackers, WandbTracker
from fedhp.tracking.console import plain_line
from fedhp.tracking.progress import Progress, Trace

pd = pytest.importorskip("pandas", reason="reading records needs the extra 'server'")
pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")

ROOT = Path(__file__).parent.parent

LAYOUT = Layout(
    widths={"hidden": 10},
    shapes={"a.weight": (10, 3), "a.bias": (10,), "b.weight": (2, 10), "b.bias": (2,)},
    axes={
        "a.weight": (AxisRef("hidden"), None),
        "a.bias": (AxisRef("hidden"),),
        "b.weight": (None, AxisRef("hidden")),
        "b.bias": (None,),
    },
    floors={"hidden": 1},
)
# 10 units: 10 * 3 weights and 10 biases, then 2 * 10 weights and 2 biases.
PARAMS_FULL = 62
# Units 1, 4 and 9: bits 01001000 01000000, in hexadecimal 48 and 40.
KEPT = Structure({"hidden": np.isin(np.arange(10), [1, 4, 9])})

CLIENT_COLUMNS = [
    "round",
    "client",
    "device_class",
    "status",
    "failure",
    "num_examples",
    "memory_budget_bytes",
    "memory_predicted_bytes",
    "memory_measured_bytes",
    "memory_mean_bytes",
    "batch_size_first",
    "batch_size_last",
    "params_received",
    "params_sent",
    "units_pruned",
    "bytes_down",
    "bytes_up",
    "update_norm",
    "train_loss",
    "accuracy",
    "num_local_test",
    "local_accuracy_global",
    "local_accuracy_personal",
    "seconds",
]
ROUND_COLUMNS = [
    "round",
    "accuracy",
    "loss",
    "local_accuracy_global",
    "local_accuracy_personal",
    "params",
    "compression",
    "training_bytes",
    "num_replies",
    "num_failures",
    "budget_violations",
    "bytes_down",
    "bytes_up",
    "seconds",
    "evaluation_seconds",
    "structure",
    "votes",
]
SUMMARY_KEYS = [
    "status",
    "cause",
    "scenario",
    "seed",
    "rounds",
    "final_accuracy",
    "best_accuracy",
    "local_accuracy_global",
    "local_accuracy_personal",
    "params_full",
    "params_final",
    "compression",
    "training_bytes_full",
    "training_bytes_final",
    "budget_violations",
    "failures",
    "bytes_up",
    "bytes_down",
    "seconds",
    "client_rounds_per_second",
    "versions",
]


def make_plan() -> RunPlan:
    classes = [DeviceClassConfig("big", 1, "4KiB"), DeviceClassConfig("small", 1, "1KiB")]
    fleet = FleetConfig(num_clients=4, classes=classes)
    return RunPlan(
        scenario=Scenario(name="tiny", seed=7, rounds=2, fleet=fleet),
        layout=LAYOUT,
        devices={"big": 2, "small": 2},
        budgets={"big": 4096, "small": 1024},
        params_full=PARAMS_FULL,
        training_bytes_full=5000,
        input_shape=(3,),
        num_classes=2,
        partition={0: [30, 20], 2: [0, 50]},
        owners={2: "ann"},
    )


def make_state(structure: Structure) -> ModelState:
    shapes = {name: LAYOUT.shape(name, structure.counts) for name in LAYOUT.shapes}
    # A transposed array, as a slice may leave it, must be stored by value and not by memory order.
    return ModelState(
        {
            name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape[::-1]).T
            for name, shape in shapes.items()
        },
        structure,
    )


def ok_row(round: int, client: int, name: str, budget: int, measured: int) -> ClientReport:
    return ClientReport(
        round=round,
        client=client,
        device_class=name,
        status="ok",
        failure="",
        num_examples=50,
        memory_budget_bytes=budget,
        params_received=62,
        bytes_down=248,
        bytes_up=100,
        memory_predicted_bytes=measured - 8,
        memory_measured_bytes=measured,
        memory_mean_bytes=measured - 16,
        batch_size_first=4,
        batch_size_last=8,
        params_sent=20,
        units_pruned=7,
        train_loss=0.5,
        accuracy=0.25 if client else 0.75,
        num_local_test=1 if client else 3,
        local_accuracy_global=0.0 if client else 1 / 3,
        local_accuracy_personal=1.0 if client else 2 / 3,
        seconds=0.1,
    )


def failed_row(round: int, client: int) -> ClientReport:
    failure = "train: out of memory\n\x1b[31mboom"
    return ClientReport(round, client, "small", "failed", failure, 50, 1024, 20, 80)


def make_report(round: int) -> RoundReport:
    """Round 0 has no clients; in round 1 client 2 exceeds its budget; in round 2 all fail."""
    structure = KEPT if round else LAYOUT.full()
    params = LAYOUT.num_parameters(structure.counts)
    rows = {
        0: (),
        1: (ok_row(1, 0, "big", 4096, 2048), ok_row(1, 2, "small", 1024, 1025), failed_row(1, 3)),
        2: (failed_row(2, 1), failed_row(2, 3)),
    }[round]
    return RoundReport(
        round=round,
        accuracy=(0.1, 0.8, 0.7)[round],
        loss=1.0,
        structure=structure,
        params=params,
        compression=PARAMS_FULL / params,
        training_bytes=5000 - 1000 * round,
        clients=rows,
        seconds=0.5,
        evaluation_seconds=0.125,
        votes={"hidden": np.array([np.nan, *[0.6666] * 9])} if round == 1 else {},
    )


RecordRun = Callable[..., RunRecord]


@pytest.fixture
def record_run() -> Iterator[RecordRun]:
    """Records rounds 0 to ``rounds`` - 1 and, with ``finish``, the end; closed after the test."""
    records = []

    def run(folder: Path, rounds: int = 3, finish: bool = True) -> RunRecord:
        record, totals = RunRecord(folder), RunTotals(make_plan())
        records.append(record)
        record.on_start(make_plan())
        for number in range(rounds):
            report = make_report(number)
            totals.add(report)
            record.on_round(report, make_state(report.structure))
        if finish:
            record.on_finish(totals.summary())
        return record

    yield run
    for record in records:
        record.close()


def test_clients_table_has_one_typed_row_per_client_and_round(record_run: RecordRun, tmp_path: Path) -> None:
    record_run(tmp_path / "run").close()
    clients = pd.read_parquet(tmp_path / "run" / "clients.parquet")
    assert list(clients.columns) == CLIENT_COLUMNS
    keys = list(zip(clients["round"], clients["client"], strict=True))
    assert keys == [(1, 0), (1, 2), (1, 3), (2, 1), (2, 3)]
    for row, written in zip(
        clients.to_dict("records"), [*make_report(1).clients, *make_report(2).clients], strict=True
    ):
        for column, value in row.items():
            expected = getattr(written, column)
            assert (pd.isna(value) and expected is None) or value == expected


def test_rounds_table_holds_counts_sums_and_structure(record_run: RecordRun, tmp_path: Path) -> None:
    """Round 1: 2 replies, 1 failure; down 248 + 248 + 80 = 576, up 100 + 100 = 200 bytes.

    One violation: 1025 measured of 1024. 3 units are 3 * 3 + 3 + 2 * 3 + 2 = 20 parameters.
    """
    record_run(tmp_path / "run").close()
    rounds = pd.read_parquet(tmp_path / "run" / "rounds.parquet")
    assert list(rounds.columns) == ROUND_COLUMNS
    assert list(rounds["round"]) == [0, 1, 2]
    first = rounds.iloc[1]
    assert (first["num_replies"], first["num_failures"], first["budget_violations"]) == (2, 1, 1)
    assert (first["bytes_down"], first["bytes_up"], first["params"]) == (576, 200, 20)
    assert first["compression"] == 62 / 20
    assert json.loads(first["structure"]) == {"hidden": "4840"}
    assert json.loads(first["votes"]) == {"hidden": [None, *[0.6666] * 9]}
    assert rounds["votes"].isna().tolist() == [True, False, True]


def test_partition_table_has_a_row_per_client_and_label(record_run: RecordRun, tmp_path: Path) -> None:
    record_run(tmp_path / "run", 1, finish=False)
    table = load_run(tmp_path / "run").partition
    assert table.fillna("").to_dict("list") == {
        "client": [0, 0, 2, 2],
        "label": [0, 1, 0, 1],
        "count": [30, 20, 0, 50],
        "owner": ["", "", "ann", "ann"],
    }


def test_the_record_of_an_earlier_version_has_neither_votes_nor_partition(
    record_run: RecordRun, tmp_path: Path
) -> None:
    record_run(tmp_path).close()
    rounds = pd.read_parquet(tmp_path / "rounds.parquet")
    rounds.drop(columns="votes").to_parquet(tmp_path / "rounds.parquet")
    (tmp_path / "partition.parquet").unlink()
    run = load_run(tmp_path)
    assert run.partition is None
    assert list(run.rounds.columns) == ROUND_COLUMNS
    assert run.rounds["votes"].isna().all()
    assert run.rounds.drop(columns="votes").equals(rounds.drop(columns="votes"))


def test_summary_adds_up_the_rounds(record_run: RecordRun, tmp_path: Path) -> None:
    """2 client rounds succeeded in 3 * 0.5 s; 576 + 160 = 736 bytes went down in rounds 1 and 2.

    Round 1 is the last with replies: of 3 + 1 held-out samples, 1 + 0 were right before local training and
    2 + 1 after it.
    """
    record_run(tmp_path / "run").close()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary) == SUMMARY_KEYS
    assert {"python", "numpy", "torch", "flwr", "fedhp"} <= set(summary.pop("versions"))
    assert summary == {
        "status": "finished",
        "cause": None,
        "scenario": "tiny",
        "seed": 7,
        "rounds": 2,
        "final_accuracy": 0.7,
        "best_accuracy": 0.8,
        "local_accuracy_global": 1 / 4,
        "local_accuracy_personal": 3 / 4,
        "params_full": 62,
        "params_final": 20,
        "compression": 62 / 20,
        "training_bytes_full": 5000,
        "training_bytes_final": 3000,
        "budget_violations": 1,
        "failures": 3,
        "bytes_up": 200,
        "bytes_down": 736,
        "seconds": 1.5,
        "client_rounds_per_second": 2 / 1.5,
    }


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_tables_are_readable_while_the_run_goes_on(
    record_run: RecordRun, tmp_path: Path, rounds: int
) -> None:
    """As a killed run leaves it; a half-written part lies beside the others."""
    record_run(tmp_path / "run", rounds, finish=False)
    clients = tmp_path / "run" / "clients.parquet"
    (clients / ".part-000009.parquet").write_bytes(b"PAR1 half")
    table = pd.read_parquet(clients)
    assert len(table) == (0, 0, 3, 5)[rounds]
    assert list(table.columns) == CLIENT_COLUMNS
    assert len(pd.read_parquet(tmp_path / "run" / "rounds.parquet")) == rounds


def test_a_part_once_written_is_not_written_again(record_run: RecordRun, tmp_path: Path) -> None:
    record = record_run(tmp_path / "run", 2, finish=False)
    part = tmp_path / "run" / "clients.parquet" / "part-000001.parquet"
    before = part.stat()
    record.on_round(make_report(2), make_state(KEPT))
    after = part.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_columns_of_nulls_keep_their_types_across_parts(record_run: RecordRun, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    record = record_run(tmp_path / "run", finish=False)
    part = tmp_path / "run" / "clients.parquet" / "part-000002.parquet"
    nulls_only = pq.read_schema(part)
    record.close()
    assert pq.read_schema(tmp_path / "run" / "clients.parquet").equals(nulls_only)
    assert str(nulls_only.field("memory_measured_bytes").type) == "int64"


def test_interrupted_run_leaves_a_partial_summary(record_run: RecordRun, tmp_path: Path) -> None:
    record = record_run(tmp_path / "run", 2, finish=False)
    record.close()
    record.close()
    run = load_run(tmp_path / "run")
    assert (run.summary["status"], run.summary["rounds"]) == ("interrupted", 1)
    assert run.summary["final_accuracy"] == 0.8
    assert len(run.clients) == 3
    assert "interrupted: 1 round in" in (tmp_path / "run" / "events.log").read_text()


def test_failed_run_tells_its_cause(record_run: RecordRun, tmp_path: Path) -> None:
    record = record_run(tmp_path / "run", 2, finish=False)
    record.on_failure("all clients\nfailed")
    record.close()
    summary = load_run(tmp_path / "run").summary
    assert (summary["status"], summary["cause"], summary["rounds"]) == ("failed", "all clients failed", 1)
    texts = [line.split(" ", 1)[1] for line in (tmp_path / "run" / "events.log").read_text().splitlines()]
    assert texts[-2] == "stopped: all clients failed"
    assert texts[-1].startswith("failed: 1 round in")


def test_event_log_tells_failures_on_one_clean_line_each(record_run: RecordRun, tmp_path: Path) -> None:
    record = record_run(tmp_path / "run", finish=False)
    record.on_note("worker 1 was\nreplaced")
    lines = (tmp_path / "run" / "events.log").read_text().splitlines()
    texts = [line.split(" ", 1)[1] for line in lines]
    assert texts[0].startswith("start: scenario tiny, seed 7, 2 rounds; 2 big (4.0 KiB)")
    assert texts[3] == "round 1: client 3 (small) failed in train: out of memory [31mboom"
    assert texts[-1] == "worker 1 was replaced"
    assert all(text.isprintable() for text in texts)


@pytest.mark.parametrize(
    ("model", "said", "shown"),
    [
        (ModelConfig(), "mlp 300-100", "mlp"),
        (ModelConfig("cnn", [4, 5]), "cnn 4-5", "cnn"),
        (ModelConfig(target="my_net:build"), "my_net:build", "my_net:build"),
        (ModelConfig(target="my_net:build", widths=[8]), "my_net:build 8", "my_net:build"),
    ],
)
def test_the_start_names_the_model(model: ModelConfig, said: str, shown: str) -> None:
    plan = make_plan()
    plan = dataclasses.replace(plan, scenario=dataclasses.replace(plan.scenario, model=model))
    assert f"; full model {said} of {PARAMS_FULL} parameters, " in wording.start(plan)
    target = console(True, 120, 40)
    tracker = ConsoleTracker(target)  # type: ignore[arg-type]
    tracker.on_start(plan)
    tracker.close()
    assert f"{shown} on digits" in re.sub(r"\x1b\[[0-9;]*m", "", written(target))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(RecordError, match="choose another --out or remove it"):
        RunRecord(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
    with pytest.raises(RecordError, match=r"cannot be written to: .*Not a directory"):
        RunRecord(tmp_path / "keep.txt")


def test_a_run_that_never_started_leaves_no_folder(tmp_path: Path) -> None:
    RunRecord(tmp_path / "deep" / "run").close()
    assert not (tmp_path / "deep" / "run").exists()


def test_a_runs_own_folder_is_free_and_one_level_deep(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        with run_folder("../my run", root=tmp_path) as folder:
            (folder / "config.yaml").touch()
        names.append(folder.name)
        assert folder.parent == tmp_path
    assert len(set(names)) == 3
    assert all(name.startswith("my-run-") for name in names)


def test_run_reads_back(record_run: RecordRun, tmp_path: Path) -> None:
    record_run(tmp_path / "run").close()
    run = load_run(tmp_path / "run")
    assert run.config == make_plan().scenario
    assert list(run.rounds["accuracy"]) == [0.1, 0.8, 0.7]
    assert run.rounds is run.rounds
    assert len(run.clients) == 5


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
    for number in (0, 1):
        rows = [
            dataclasses.replace(
                row, num_local_test=0, local_accuracy_global=None, local_accuracy_personal=None
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


class Broken:
    """A tracker that fails at everything."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> object:
        def fail(*_: object) -> None:
            raise self.error

        return fail


def test_failing_tracker_stops_neither_the_run_nor_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trackers = Trackers([Broken(OSError("disk full")), RunRecord(tmp_path)])  # type: ignore[list-item]
    trackers.on_start(make_plan())
    trackers.on_round(make_report(0), make_state(LAYOUT.full()))
    trackers.on_note("a note")
    trackers.on_finish(RunTotals(make_plan()).summary())
    trackers.close()
    assert caplog.text.count("Broken failed, and the run does not depend on it: OSError: disk full") == 5
    assert len(load_run(tmp_path).rounds) == 1


def test_record_error_at_the_start_stops_the_run() -> None:
    trackers = Trackers([Broken(RecordError("no room"))])  # type: ignore[list-item]
    with pytest.raises(RecordError, match="no room"):
        trackers.on_start(make_plan())


def test_trace_thins_itself_and_draws_the_range() -> None:
    """Of 0..8 with room for 4: 0..3, at 4 every second (0, 2, 4), 6; at 8 every fourth: 0, 4, 8."""
    trace = Trace(limit=4)
    for value in range(9):
        trace.add(float(value))
    assert trace.values == [0.0, 4.0, 8.0]
    assert trace.sparkline() == "▁▅█"
    assert Trace(values=[0.5, 0.5]).sparkline() == "▁▁"


def test_time_left_follows_the_pace_of_the_rounds() -> None:
    """Rounds 1 and 2 end at 40 s and 50 s: 10 s a round; one is left, 4 s of it gone at 54 s.

    Round 1, of 35 s, says nothing: workers start in it.
    """
    now = [0.0]
    plan = make_plan()
    plan = dataclasses.replace(plan, scenario=dataclasses.replace(plan.scenario, rounds=3))
    progress = Progress(plan, lambda: now[0])
    for number, moment in ((0, 5.0), (1, 40.0), (2, 50.0)):
        now[0] = moment
        assert progress.seconds_left() is None
        progress.add(make_report(number))
    now[0] = 54.0
    assert (progress.elapsed(), progress.seconds_left()) == (54.0, 6.0)
    now[0] = 100.0
    assert progress.seconds_left() == 0.0
    progress.add(dataclasses.replace(make_report(2), round=3))
    assert progress.seconds_left() is None


def console(terminal: bool, width: int = 80, height: int = 24) -> object:
    from rich.console import Console

    return Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"),
        force_terminal=terminal,
        width=width,
        height=height,
        color_system=None,
        _environ={"TERM": "xterm"},
    )


def written(target: object) -> str:
    file = target.file  # type: ignore[attr-defined]
    file.flush()
    return file.buffer.getvalue().decode()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 10)])
def test_live_display_shows_the_run_and_gives_the_terminal_back(width: int, height: int) -> None:
    """The last peak of 'small' is 1025 of 1024 bytes, 100 %; of 'big' 2048 of 4096, 50 %."""
    target = console(True, width, height)
    tracker = ConsoleTracker(target, Path("runs/x"))  # type: ignore[arg-type]
    tracker.on_start(make_plan())
    for number in (0, 1):
        tracker.on_round(make_report(number), make_state(KEPT))
    tracker.close()
    text = written(target)
    assert "round 1/2" in text
    assert "record: runs/x" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # cursor hidden, and shown again
    if width >= 80:
        for piece in ("tiny", "80.0%", "3.10", "50%", "100%", "4-8", "client 3 (small) failed in"):
            assert piece in text


def test_a_ctrl_c_is_echoed_on_a_line_below_the_display() -> None:
    """On the panel's last line it would wrap, and the redrawn display leave its first line behind."""
    target = console(True)
    tracker = ConsoleTracker(target, Path("runs/x"))  # type: ignore[arg-type]
    tracker.on_start(make_plan())
    tracker.on_round(make_report(0), make_state(LAYOUT.full()))
    running = written(target)
    assert running.endswith("╯\n")
    tracker.close()
    assert "╯\n\x1b[?25hrecord: " in written(target)[len(running) :]


def test_without_a_terminal_each_round_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    target = console(False)
    tracker = ConsoleTracker(target, Path("runs/x"))  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="fedhp"):
        tracker.on_start(make_plan())
        for number in (0, 1, 2):
            tracker.on_round(make_report(number), make_state(KEPT))
        tracker.on_finish(RunTotals(make_plan()).summary())
        tracker.close()
    assert written(target) == ""
    assert caplog.messages[1:4] == [
        "round 0: accuracy 10.0%, loss 1.0000, compression 1.00, replies 0",
        "round 1: client 3 (small) failed in train: out of memory [31mboom",
        "round 1: accuracy 80.0%, loss 1.0000, compression 3.10, replies 2, failures 1; "
        "memory big 50%, small 100%",
    ]
    assert caplog.messages[6].endswith("replies 0, failures 2; memory small -")
    assert caplog.messages[-1] == "record: runs/x"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failed_run_is_shown_as_failed_and_names_its_record_once(
    terminal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    target = console(terminal)
    tracker = ConsoleTracker(target, Path("runs/x"))  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="fedhp"):
        tracker.on_start(make_plan())
        tracker.on_round(make_report(0), make_state(LAYOUT.full()))
        tracker.on_failure("all clients failed")
        tracker.close()
    text = written(target) + "\n".join(caplog.messages)
    assert (text.count("record: runs/x"), "interrupted" in text) == (1, False)
    assert (" failed " in text) == terminal


def test_without_a_terminal_an_interrupted_run_names_its_record_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = ConsoleTracker(console(False), Path("runs/x"))  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="fedhp"):
        tracker.on_start(make_plan())
        tracker.on_round(make_report(0), make_state(LAYOUT.full()))
        tracker.close()
    assert caplog.messages[-1] == "record: runs/x"


def test_a_run_that_never_started_names_no_record(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fedhp"):
        ConsoleTracker(console(False), Path("runs/x")).close()  # type: ignore[arg-type]
    assert caplog.messages == []


def test_a_plain_line_names_classes_in_the_fleets_order_and_is_not_long() -> None:
    """Sampled clients come by partition id, so that a round's first may be of any class."""
    now = [0.0]
    names = ["gateway", "phone", "camera", "sensor"]
    plan = make_plan()
    scenario = dataclasses.replace(plan.scenario, rounds=1000)
    budgets = {**dict.fromkeys(names, 1024), "gateway": None}
    plan = dataclasses.replace(plan, scenario=scenario, devices=dict.fromkeys(names, 25), budgets=budgets)
    progress = Progress(plan, lambda: now[0])
    for number in (500, 501):
        now[0] += 10.0
        rows = tuple(ok_row(number, i, name, 1024, 1014) for i, name in enumerate(reversed(names)))
        report = dataclasses.replace(make_report(1), round=number, clients=rows)
        progress.add(report)
    line = plain_line(report, progress)
    assert line.endswith("memory gateway 1014 B, phone 99%, camera 99%, sensor 99%; 1:23:10 left")
    assert len(line) <= 140


def test_one_round_is_no_rounds() -> None:
    totals = RunTotals(make_plan())
    totals.add(make_report(1))
    said = wording.finish(totals.summary())
    assert said.startswith("finished: 1 round in ")
    assert "on the clients' own samples 25.0% as received and 75.0% as trained, compression" in said
    assert wording.rounds(2) == "2 rounds"


def test_a_record_whose_summary_cannot_be_written_is_whole_all_the_same(
    record_run: RecordRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_run(tmp_path, 2, finish=False)

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        record.close()
    assert (tmp_path / "clients.parquet").is_file()
    assert (tmp_path / "rounds.parquet").is_file()
    assert len(load_run(tmp_path).clients) == 3


def test_wandb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedhp\[wandb\]'.*-e '\.\[wandb\]'"):
        WandbTracker(WandbConfig(mode="offline"), make_plan().scenario, tmp_path)


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

    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
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
    tracker = WandbTracker(WandbConfig(mode="offline"), plan.scenario, tmp_path)
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
    tracker = WandbTracker(WandbConfig(mode="offline"), plan.scenario, tmp_path)
    tracker.on_failure("too early")
    tracker.on_start(plan)
    tracker.on_failure("all clients failed")
    tracker.close()
    items = [item for record in wandb_records(tmp_path) for item in record.summary.update]
    told = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
    assert (told["status"], told["cause"]) == ("failed", "all clients failed")
