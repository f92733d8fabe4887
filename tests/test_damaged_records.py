"""Records that were damaged, or written by others: each is refused in one line that names what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from recorded_runs import LAYOUT, make_plan, make_report, make_state
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.errors import RecordError
from fedhp.records import RunRecord, RunTotals, load_run

pd = pytest.importorskip("pandas", reason="reading records needs the extra 'server'")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A whole record of two rounds."""
    folder, plan = tmp_path / "record", make_plan()
    written, totals = RunRecord(folder), RunTotals(plan)
    written.on_start(plan)
    for number in range(2):
        totals.add(make_report(number))
        written.on_round(make_report(number), make_state(LAYOUT.full()))
    written.on_finish(totals.summary())
    written.close()
    return folder


def change(record: Path, table: str, column: str, value) -> None:
    path = record / f"{table}.parquet"
    frame = pd.read_parquet(path)
    frame[column] = value
    frame.to_parquet(path, index=False)


TABLES = [("rounds", "accuracy"), ("rounds", "params"), ("clients", "memory_measured_bytes")]


@pytest.mark.parametrize(("table", "column"), TABLES)
def test_a_column_of_another_type_is_named(record, table, column):
    change(record, table, column, "many")
    with pytest.raises(RecordError, match=rf"{table}\.parquet is damaged: column '{column}' .* holds"):
        getattr(load_run(record), table)


def test_whole_numbers_may_stand_for_fractions(record):
    """As where another program wrote the table anew, whose losses were all whole."""
    change(record, "rounds", "loss", np.int64(1))
    assert load_run(record).rounds["loss"].tolist() == [1, 1]


DAMAGE = {
    "a text for numbers": lambda record: change(record, "rounds", "accuracy", "high"),
    "structures that are no JSON": lambda record: change(record, "rounds", "structure", "{"),
    "structures of another kind": lambda record: change(record, "rounds", "structure", "[1, 2]"),
    "structures of other bits": lambda record: change(record, "rounds", "structure", '{"hidden": "zz"}'),
    "votes that are no JSON": lambda record: change(record, "rounds", "votes", "\x1b[31m"),
    "structures without end": lambda record: change(record, "rounds", "structure", "[" * 10_000),
    "no table": lambda record: (record / "rounds.parquet").unlink(),
    "half a table": lambda record: (record / "clients.parquet").write_bytes(b"PAR1"),
    "a summary of texts": lambda record: (record / "summary.json").write_text(
        json.dumps(dict.fromkeys(load_run(record).summary, "x"))
    ),
    "a summary that is a list": lambda record: (record / "summary.json").write_text("[]"),
    "a summary of nested lists": lambda record: (record / "summary.json").write_text("[" * 10_000),
    "a configuration of bytes": lambda record: (record / "config.yaml").write_bytes(b"\xff\xfe\x00\x00\x01"),
    "a configuration with a name of many": lambda record: (record / "config.yaml").write_text(
        f"name: {'x' * 9000}\n"
    ),
    "a configuration that forges a line": lambda record: (record / "config.yaml").write_text(
        'name: "a\\nfinished: 40 rounds"\n'
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_report_of_a_damaged_record_is_one_line(record, damage):
    DAMAGE[damage](record)
    result = CliRunner().invoke(app, ["report", str(record)])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output[-500:]
    assert result.stderr.startswith("error: ")
    assert "\x1b" not in result.stderr
    assert len(result.stderr) < 1200


def test_a_summary_of_wrong_types_names_the_key(record):
    summary = json.loads((record / "summary.json").read_text())
    (record / "summary.json").write_text(json.dumps({**summary, "status": "well"}))
    with pytest.raises(RecordError, match=r"summary\.json is damaged: status is 'well'"):
        load_run(record)
    (record / "summary.json").write_text(json.dumps({**summary, "rounds": None}))
    with pytest.raises(RecordError, match=r"summary\.json is damaged: rounds is None"):
        load_run(record)
