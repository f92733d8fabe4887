"""Where a record is written, by one run alone, and what becomes of a run whose record cannot be written."""

import contextlib
import io
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from recorded_runs import LAYOUT, make_plan, make_report, make_state
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.data import partition_rows
from fedhp.errors import RecordError
from fedhp.records import RunRecord, RunTotals, load_run, load_state, run_folder
from fedhp.scenario.loading import load_scenario
from fedhp.terminal import OutputHandler
from fedhp.tracking.tracker import Trackers

SMALL = {"fleet.num_clients": 2, "server.clients_per_round": 0, "simulation.num_workers": 0, "rounds": 1}


def test_folders_of_the_same_second_are_made_for_one_run_each(tmp_path):
    start, both_done = threading.Barrier(8), threading.Barrier(8)

    def begin(_):
        start.wait(10)
        with run_folder("same", root=tmp_path) as folder:
            both_done.wait(10)
            return folder

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(begin, range(8)))
    assert len(set(folders)) == 8
    assert list(tmp_path.iterdir()) == []  # nothing was written into any


def test_runs_that_begin_in_the_same_second_have_a_record_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = threading.Barrier(2)

    def train(seed):
        start.wait(10)
        return fedhp.train("quickstart", seed=seed, **{"train.epochs": 1, "data.max_train": 200})

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(train, (1, 2)))
    assert [(run.config.seed, run.summary["seed"], len(run.rounds)) for run in runs] == [(1, 1, 2), (2, 2, 2)]
    assert runs[0].folder != runs[1].folder


def test_of_two_runs_with_the_same_out_one_is_refused_and_the_other_whole(tmp_path):
    first, second = RunRecord(tmp_path), RunRecord(tmp_path)  # both found the folder empty
    first.on_start(make_plan())
    with pytest.raises(RecordError, match="exists already and nothing is overwritten"):
        second.on_start(make_plan())
    second.close()
    first.on_round(make_report(0), make_state(LAYOUT.full()))
    first.close()
    assert len(load_run(tmp_path).rounds) == 1


def test_notes_go_into_the_record_of_their_own_run(tmp_path):
    """Two runs in two threads; each logs a note while the other goes on, too."""
    scenario = load_scenario("quickstart")
    start = threading.Barrier(2)

    def note(name):
        from fedhp.run.reporting import reporting

        with reporting(scenario, tmp_path / name, show=False) as trackers:
            trackers.on_start(make_plan())
            start.wait(10)
            logging.getLogger("fedhp.notes").warning("a note of %s", name)
            start.wait(10)
        return (tmp_path / name / "events.log").read_text()

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(note, ("one", "two"))
    assert ("a note of one" in one, "a note of two" in one) == (True, False)
    assert ("a note of one" in two, "a note of two" in two) == (False, True)


@pytest.mark.parametrize("name", ["x" * 5000, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 100, "...", ""])
def test_a_folder_can_be_made_whatever_the_scenario_is_called(name, tmp_path):
    with run_folder(name, root=tmp_path) as folder:
        assert folder.is_dir()
        assert len(folder.name.encode()) <= 255


@pytest.fixture
def full_disk(monkeypatch):
    """Fills the disk: from then on no file below the name that is given can be written."""

    def fill(name):
        opened = io.open

        def refuse(file, mode="r", *args, **kwargs):
            if name in Path(str(file)).name and set(mode) & set("wax"):
                raise OSError(28, "No space left on device", str(file))
            return opened(file, mode, *args, **kwargs)

        monkeypatch.setattr(io, "open", refuse)

    return fill


def test_a_round_that_cannot_be_written_ends_the_run_and_what_was_written_reads(tmp_path, full_disk, caplog):
    trackers = Trackers([RunRecord(tmp_path)])
    trackers.on_start(make_plan())
    before = make_state(LAYOUT.full())
    trackers.on_round(make_report(0), before)
    full_disk("model")
    with pytest.raises(RecordError, match=r"cannot be written to any more: .*No space left"):
        trackers.on_round(make_report(1), make_state(LAYOUT.full()))
    trackers.on_failure("the disk is full")
    trackers.close()
    run = load_run(tmp_path)
    assert (run.summary["status"], run.summary["cause"], run.summary["rounds"]) == (
        "failed",
        "the disk is full",
        0,
    )
    assert run.rounds["round"].tolist()[0] == 0
    assert load_state(tmp_path)[0].weights.keys() == before.weights.keys()
    assert not list(tmp_path.glob(".*"))  # nothing unfinished takes room


def test_a_run_whose_summary_cannot_be_written_is_none_that_has_finished(tmp_path, full_disk):
    trackers = Trackers([RunRecord(tmp_path)])
    trackers.on_start(make_plan())
    trackers.on_round(make_report(0), make_state(LAYOUT.full()))
    full_disk("summary")
    with pytest.raises(RecordError, match="No space left"):
        trackers.on_finish(RunTotals(make_plan()).summary())
    trackers.close()
    assert load_run(tmp_path).summary["status"] == "unfinished"


def test_a_figure_that_no_table_holds_ends_the_run_too(tmp_path):
    """A column takes 64-bit integers; a run of which the tables lack a round has failed."""
    record = RunRecord(tmp_path)
    record.on_start(make_plan())
    report = make_report(1)
    object.__setattr__(report.clients[0], "bytes_down", 2**70)
    with pytest.raises(RecordError, match="cannot be written to any more: "):
        record.on_round(report, make_state(LAYOUT.full()))
    record.close()


def test_a_record_that_cannot_begin_for_whatever_cause_ends_the_run(tmp_path, monkeypatch):
    """Arrow has errors of its own. A run that goes on without a record would have been for nothing."""

    def fails(*_):
        raise RuntimeError("no such codec")

    monkeypatch.setattr("fedhp.records.parquet.PartedTable.write", fails)
    trackers = Trackers([RunRecord(tmp_path / "run")])
    with pytest.raises(RecordError, match="cannot be written: no such codec"):
        trackers.on_start(make_plan())
    trackers.close()


def test_a_note_that_cannot_be_written_ends_no_run_by_itself(tmp_path):
    """Notes come from anywhere, also from where an error would be taken for a client's: the round says it."""
    record = RunRecord(tmp_path)
    record.on_start(make_plan())
    record._events._file.close()
    with Path("/dev/full").open("w", buffering=1) as full:
        record._events._file = full
        record.on_note("a worker was replaced")
        with pytest.raises(RecordError, match="No space left"):
            record.on_round(make_report(0), make_state(LAYOUT.full()))
        record._events._file = None
        with contextlib.suppress(OSError):
            full.close()
    record.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("kib", [1, 6])
def test_a_run_on_a_full_disk_ends_as_failed_in_one_line(kib, tmp_path):
    """6 KiB hold the configuration and no model; 1 does not even hold the former."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    folder = tmp_path / "record"
    partition_rows(load_scenario("quickstart").data, 2, 0)  # which the cache keeps
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, before[1]))
    try:
        result = CliRunner().invoke(app, ["run", *overrides, "--out", str(folder)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the run record ")
    assert result.stderr.count("\n") == 1
    assert "record is whole" not in result.output
    if (folder / "summary.json").exists():
        assert load_run(folder).summary["status"] == "failed"


def test_a_second_run_under_captured_output_is_shown_where_it_is_captured(tmp_path, monkeypatch):
    """The buffer of the first is closed by then, as pytest's and a notebook's are."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("fedhp"), "handlers", [])
    said = []
    for number in range(2):
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            fedhp.simulate("quickstart", out=tmp_path / str(number), **SMALL)
        said.append((out.getvalue(), err.getvalue()))
        out.close()
    assert all("round 1: accuracy" in out and "finished: 1 round" in out for out, _ in said)
    assert [err for _, err in said] == ["", ""]


def test_where_there_is_no_output_nothing_is_logged(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", None)
    OutputHandler().handle(logging.makeLogRecord({"msg": "nobody hears it"}))
    assert capfd.readouterr() == ("", "")
