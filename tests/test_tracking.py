"""Trackers: the terminal is shown a run as it goes on, and a failing tracker stops nobody."""

import dataclasses
import io
import logging
import re
from pathlib import Path

import pytest
from recorded_runs import KEPT, LAYOUT, PARAMS_FULL, make_plan, make_report, make_state, ok_row

from fedhp.errors import RecordError
from fedhp.model.options import ModelConfig
from fedhp.records import RunRecord, RunTotals, load_run, wording
from fedhp.tracking.console import ConsoleTracker, plain_line
from fedhp.tracking.progress import Progress, Trace
from fedhp.tracking.tracker import Trackers

pytest.importorskip("pandas", reason="reading records needs the extra 'server'")
pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")


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


def test_a_plain_line_names_classes_that_have_joined_since_the_run_began_behind_the_others() -> None:
    progress, report = Progress(make_plan(), lambda: 0.0), make_report(1)
    known = ok_row(1, 1, next(iter(make_plan().devices)), 2048, 1014)
    report = dataclasses.replace(report, clients=(ok_row(1, 0, "late", 2048, 1000), known))
    progress.add(report)
    assert ", late 1000 B" in plain_line(report, progress)


def test_one_round_is_no_rounds() -> None:
    totals = RunTotals(make_plan())
    totals.add(make_report(1))
    said = wording.finish(totals.summary())
    assert said.startswith("finished: 1 round in ")
    assert "on the clients' own samples 25.0% as received and 75.0% as trained, compression" in said
    assert wording.rounds(2) == "2 rounds"
