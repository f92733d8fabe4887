"""`fedhp compare-records`, over records whose ratios are known."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import KEPT, failed_row, make_plan, make_report, make_state, ok_row
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.errors import RecordError
from fedhp.files.marks import DEVICES
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records import RunRecord, RunTotals
from fedhp.records.rows import ClientReport
from fedhp.twins.result import RecordComparison

Change = Callable[[ClientReport], ClientReport]


def recorded(
    folder: Path,
    change: Change = lambda row: row,
    rounds: int = 2,
    state: ModelState | None = None,
    simulated: bool = False,
    **scenario,
) -> Path:
    """Records rounds in which a big and a small client train, 1,000 and 800 bytes, 0.1 seconds each."""
    plan = make_plan()
    plan = replace(plan, scenario=replace(plan.scenario, **scenario))
    record, totals = RunRecord(folder), RunTotals(plan)
    record.on_start(plan)
    for number in range(rounds + 1):
        rows = (ok_row(number, 0, "big", 4096, 1000), ok_row(number, 2, "small", 1024, 800))
        report = replace(
            make_report(min(number, 2)), round=number, clients=tuple(map(change, rows)) if number else ()
        )
        totals.add(report)
        record.on_round(report, state or make_state(report.structure))
    record.on_finish(totals.summary())
    record.close()
    if not simulated:
        (folder / DEVICES).write_text("{}")
    return folder


def measured(row: ClientReport, **figures) -> ClientReport:
    assert row.statistics is not None
    return replace(row, statistics=replace(row.statistics, **figures))


def slower(row: ClientReport) -> ClientReport:
    """Half as much memory again, half the bytes, and four times the seconds in round 1, twice in round 2."""
    assert row.statistics is not None
    measure = row.statistics.memory_measured_bytes * 3 // 2
    row = measured(
        row, memory_measured_bytes=measure, seconds=0.4 / row.round, num_shortages=1, memory_left_bytes=9
    )
    return replace(row, bytes_up=row.bytes_up // 2)


@pytest.fixture
def simulated(tmp_path: Path) -> Path:
    return recorded(tmp_path / "simulated", simulated=True)


def figure(found: RecordComparison, name: str, device_class: str = "whole fleet") -> dict:
    table: Any = found.figures
    (row,) = table[(table["figure"] == name) & (table["device_class"] == device_class)].to_dict("records")
    return row


def test_each_figure_of_the_devices_is_given_by_that_of_the_simulation(simulated, tmp_path):
    """Seconds of the four client rounds are 4, 4, 2 and 2 times those simulated: 3, deviation 2 / sqrt(3)."""
    found = fedhp.compare_records(simulated, recorded(tmp_path / "real", slower))
    seconds = figure(found, "seconds")
    assert seconds["simulated"] == pytest.approx(0.1)
    assert seconds["real"] == pytest.approx(0.3)
    assert (seconds["ratio"], seconds["ratio_deviation"]) == pytest.approx((3, 2 / math.sqrt(3)))
    assert seconds["pairs"] == 4
    assert figure(found, "memory_measured")["ratio"] == 1.5
    assert figure(found, "memory_measured", "small")["simulated"] == 800
    assert figure(found, "memory_peak", "big")["real"] == 1500
    assert figure(found, "memory_of_budget", "small")["real"] == 1200 / 1024  # more than it has
    assert figure(found, "memory_predicted")["ratio"] == 1
    assert figure(found, "bytes_up", "big")["ratio"] == 0.5
    assert figure(found, "bytes_up_total")["real"] == 200
    assert figure(found, "shortages")["real"] == 4
    assert figure(found, "memory_left", "big")["real"] == 9
    assert math.isnan(figure(found, "shortages")["simulated"])  # none watched
    assert not found.cautions


def test_two_records_of_one_run_are_the_same_to_the_bit(simulated, tmp_path):
    found = fedhp.compare_records(simulated, recorded(tmp_path / "real"))
    assert set(found.figures["ratio"].dropna()) == {1}
    assert found.likeness.bits
    assert found.likeness.rounds == 3  # round 0 is one
    assert found.failures.empty


def test_how_far_models_differ_is_told(simulated, tmp_path):
    kept = make_state(KEPT)
    weights = {name: array + np.float32(0.25) * (name == "a.bias") for name, array in kept.weights.items()}
    moved = recorded(tmp_path / "moved", state=ModelState(weights, KEPT))
    assert fedhp.compare_records(simulated, moved).likeness.difference == 0.25
    # Units 1, 4, 9 of the one, and 1, 2 of the other: one of four is in both.
    other = Structure({"hidden": np.isin(np.arange(10), [1, 2])})
    cut = fedhp.compare_records(simulated, recorded(tmp_path / "cut", state=make_state(other))).likeness
    assert cut.units == pytest.approx(0.25)
    assert cut.difference is None
    (moved / "model.safetensors").unlink()
    assert fedhp.compare_records(simulated, moved).likeness.units is None


def test_a_class_that_was_not_simulated_is_held_against_the_clients_of_its_numbers(simulated, tmp_path):
    real = recorded(tmp_path / "real", lambda row: replace(row, device_class=f"pi {row.client}"))
    found = fedhp.compare_records(simulated, real)
    assert figure(found, "memory_measured", "pi 2")["simulated"] == 800
    assert list(dict.fromkeys(found.figures["device_class"])) == ["whole fleet", "pi 0", "pi 2"]
    assert any("pi 0, pi 2" in caution for caution in found.cautions)


def test_reasons_of_failures_are_counted_of_both(simulated, tmp_path):
    def fail(row: ClientReport) -> ClientReport:
        return failed_row(row.round, 2) if row.client else row

    found = fedhp.compare_records(simulated, recorded(tmp_path / "real", fail))
    (row,) = found.failures.to_dict("records")
    assert (row["device_class"], row["simulated"], row["real"]) == ("small", 0, 2)
    assert figure(found, "failed", "small")["real"] == 2
    assert figure(found, "seconds", "big")["pairs"] == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 8}, "seed: 7, now 8"),
        ({"rounds": 1}, "1 round compared"),
        ({"simulated": True}, "real, which comes second, is of no federation"),
        ({"change": lambda row: replace(row, client=0)}, "clients simulated: 2; devices asked: 1"),
        (
            {"change": lambda row: replace(row, num_examples=51)},
            "numbers of samples than simulated: client 0, 2",
        ),
        (
            {"change": lambda row: replace(row, device_class="small" if row.client == 0 else "big")},
            "another class than simulated: client 0 (big simulated, small real), 2 (small",
        ),
    ],
)
def test_what_makes_figures_say_little_is_warned_of(simulated, tmp_path, changed, said):
    found = fedhp.compare_records(simulated, recorded(tmp_path / "real", **changed))
    assert any(said in caution for caution in found.cautions), found.cautions


def test_means_and_their_ratio_are_over_the_same_client_rounds(simulated, tmp_path):
    """The device of client 2 failed in round 1: what was simulated of that is of no pair."""

    def fail(row: ClientReport) -> ClientReport:
        return failed_row(1, 2) if (row.round, row.client) == (1, 2) else row

    found = fedhp.compare_records(simulated, recorded(tmp_path / "real", fail))
    memory = figure(found, "memory_measured")
    assert memory["simulated"] == memory["real"] == pytest.approx((1000 + 1000 + 800) / 3)
    assert (memory["ratio"], memory["pairs"]) == (1, 3)


def test_where_no_client_round_is_in_both_the_one_mean_is_by_the_other_and_marked(simulated, tmp_path):
    """The classes have changed places: no client of either is in the other run's."""

    def swap(row: ClientReport) -> ClientReport:
        return replace(row, device_class="small" if row.client == 0 else "big")

    real = recorded(tmp_path / "real", swap)
    memory = figure(fedhp.compare_records(simulated, real), "memory_measured", "small")
    assert (memory["simulated"], memory["real"], memory["ratio"], memory["pairs"]) == (800, 1000, 1.25, 0)
    told = run(simulated, real).output
    assert re.search(r"memory, measured +800 B +1000 B +1\.25 \*", told)
    assert "*: there are none" in " ".join(told.split())


def test_a_run_that_goes_on_is_compared_as_far_as_it_came(simulated, tmp_path):
    real = recorded(tmp_path / "real", rounds=1)
    (real / "summary.json").unlink()
    found = fedhp.compare_records(simulated, real)
    assert found.rounds == 1
    assert "real is unfinished, and held 1 round" in found.cautions
    assert figure(found, "seconds")["pairs"] == 2


def test_what_is_nothing_to_compare_is_refused(simulated, tmp_path):
    with pytest.raises(RecordError, match="no such folder"):
        fedhp.compare_records(simulated, tmp_path / "nowhere")
    with pytest.raises(RecordError, match="has held no round yet"):
        fedhp.compare_records(recorded(tmp_path / "begun", rounds=0), simulated)
    with pytest.raises(RecordError, match="is a record, with a report of its own"):
        fedhp.compare_records(simulated, simulated, out=simulated)


def run(*arguments: object):
    return CliRunner().invoke(app, ["compare-records", *map(str, arguments)], env={"COLUMNS": "80"})


def test_the_terminal_shows_it_in_80_columns(simulated, tmp_path):
    told = run(simulated, recorded(tmp_path / "real", slower)).output
    assert max(map(len, told.splitlines())) <= 80
    assert re.search(r"training +0\.10 s +0\.30 s +3\.00 ± 1\.15", told)
    assert re.search(r"memory, predicted +892 B +892 B +same", told)
    assert "the same to the bit, structure and weights" in " ".join(told.split())


def test_of_one_client_in_one_round_nothing_has_a_deviation(tmp_path):
    def alone(row: ClientReport) -> ClientReport:
        return failed_row(row.round, 2) if row.client else row

    simulated, real = (recorded(tmp_path / name, alone, rounds=1) for name in ("simulated", "real"))
    assert not fedhp.compare_records(simulated, real).figures["ratio_deviation"].notna().any()
    result = run(simulated, real)
    assert result.exit_code == 0, result.exception
    assert re.search(r"training +0\.10 s +0\.10 s +same", result.output)
    pytest.importorskip("matplotlib")
    assert run(simulated, real, "--out", tmp_path / "page").exit_code == 0


def test_json_holds_all_of_it_and_nothing_else(simulated, tmp_path):
    def refuse(word: str) -> None:
        raise AssertionError(word)

    told = json.loads(
        run(simulated, recorded(tmp_path / "real", slower), "--json").stdout, parse_constant=refuse
    )
    assert [row["ratio"] for row in told["figures"] if row["figure"] == "memory_measured"] == [1.5, 1.5, 1.5]
    assert told["likeness"]["bits"]


def test_a_page_figures_and_tables_are_written(simulated, tmp_path):
    pytest.importorskip("matplotlib")
    real = recorded(tmp_path / "real", lambda row: replace(slower(row), device_class="<b>pi</b>"))
    out = tmp_path / "page"
    assert run(simulated, real, "--out", out).exit_code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 4
    assert "&lt;b&gt;pi&lt;/b&gt;" in page
    assert "<b>pi" not in page
    assert "3.00 ± 1.15" in page
    assert {path.stem for path in (out / "figures").glob("*.svg")} == {
        "ratios",
        "accuracy",
        "memory",
        "seconds",
    }
    assert "seconds" in (out / "figures.csv").read_text()


def test_a_folder_that_is_no_record_is_one_line_on_the_command_line(simulated, tmp_path):
    result = run(simulated, tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
