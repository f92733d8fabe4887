"""What a run leaves on disk: its tables, its summary, its log, its model file."""

import json
from pathlib import Path

import numpy as np
import pytest
from recorded_runs import CLIENT_COLUMNS, KEPT, SUMMARY_KEYS, RecordRun, make_report, make_state

from fedhp.errors import RecordError
from fedhp.model.structure import Structure
from fedhp.records import RunRecord, load_run, run_folder

pd = pytest.importorskip("pandas", reason="reading records needs the extra 'server'")
pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")


ROUND_COLUMNS = [
    "round",
    "accuracy",
    "loss",
    "local_accuracy_global",
    "local_accuracy_personal",
    "params",
    "compression",
    "training_bytes",
    "structure_change",
    "num_replies",
    "num_failures",
    "budget_violations",
    "bytes_down",
    "bytes_up",
    "seconds",
    "evaluation_seconds",
    "structure",
    "votes",
    "levels",
]


def test_clients_table_has_one_typed_row_per_client_and_round(record_run: RecordRun, tmp_path: Path) -> None:
    record_run(tmp_path / "run").close()
    clients = pd.read_parquet(tmp_path / "run" / "clients.parquet")
    assert list(clients.columns) == CLIENT_COLUMNS
    keys = list(zip(clients["round"], clients["client"], strict=True))
    assert keys == [(1, 0), (1, 2), (1, 3), (2, 1), (2, 3)]
    for row, written in zip(
        clients.to_dict("records"), [*make_report(1).clients, *make_report(2).clients], strict=True
    ):
        told = {**vars(written), **(vars(written.statistics) if written.statistics else {})}
        for column, value in row.items():
            expected = told.get(column)
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


def test_units_that_come_back_change_a_structure_as_those_that_go() -> None:
    """Of the units 0, 1 of a and 0 of b, one of a goes and one of b comes: 2 of 4 are of both."""
    before = Structure({"a": np.array([True, True]), "b": np.array([True, False])})
    after = Structure({"a": np.array([True, False]), "b": np.array([True, True])})
    assert before.distance(after) == after.distance(before) == 0.5
    assert before.distance(before) == 0


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
