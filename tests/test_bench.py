"""The benchmarks' arithmetic; what they measure is the documentation's business."""

import json
import sys

import pytest
from typer.testing import CliRunner

from fedhp.bench import memory, process, reconcile, step
from fedhp.bench.engine import run_engine
from fedhp.bench.fleet import run_fleet
from fedhp.bench.process import run_process
from fedhp.bench.reconcile import KINDS
from fedhp.bench.step import run_step
from fedhp.cli import app


def test_the_engine_counts_what_it_exchanged():
    """6 nodes, 2 rounds; 50 numbers of 4 bytes each way."""
    result = run_engine(6, num_workers=0, rounds=2, numbers=50)
    assert (result["messages"], result["bytes"]) == (12, 200)
    assert result["messages_per_second"] > 0


@pytest.mark.parametrize("file", ["no/folder/figures.json", ".", "taken/figures.json"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "taken").write_text("a file, no folder")
    monkeypatch.setattr("fedhp.bench.memory.run_memory", lambda _: pytest.fail("measured"))
    result = CliRunner().invoke(app, ["bench", "memory", "--json", file])
    assert result.exit_code == 2
    assert f"{file} cannot be written; give a file in a folder that exists" in result.output


def test_figures_are_written_to_a_new_file_and_over_an_old_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for figure in (1, 2):
        monkeypatch.setattr("fedhp.bench.memory.run_memory", lambda _, figure=figure: {"figure": figure})
        assert CliRunner().invoke(app, ["bench", "memory", "--json", "figures.json"]).exit_code == 0
        assert json.loads((tmp_path / "figures.json").read_text()) == {"figure": figure}


def test_the_memory_of_each_model_is_announced_before_it_is_measured(monkeypatch):
    """On the error stream: the table goes into files and pipes."""
    monkeypatch.setattr(memory, "_CASES", memory._CASES[:2])
    monkeypatch.setattr(memory, "_BATCHES", (1,))
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["bench", "memory"])
    assert result.stderr == (
        "1 of 2: mlp 300-100 on 1x28x28\n2 of 2: mlp 300-100 cut to 784-30-56 on 1x28x28\n"
    )
    assert result.stdout.count("mlp 300-100 on 1x28x28") == 5  # optimisers


def test_a_fleet_is_summed_up_over_its_seeds():
    """Two seeds: the mean is half the sum, the deviation the difference by the root of two."""
    small = {"rounds": 2, "simulation.num_workers": 0, "fleet.num_clients": 4}
    result = run_fleet("quickstart", [0, 1], ["mask_intersection", "dense"], **small)
    ours = [run for run in result["runs"] if run["strategy"] == "mask_intersection"]
    summary, dense = result["strategies"]
    assert [run["seed"] for run in ours] == [0, 1]
    assert (summary["strategy"], dense["strategy"]) == ("mask_intersection", "dense")
    first, second = (run["final_accuracy"] for run in ours)
    assert summary["last_accuracy"] == pytest.approx((first + second) / 2)
    assert summary["last_accuracy_deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    assert dense["compression"] == 1 < summary["compression"]


@pytest.mark.parametrize("apart", [False, True])
def test_reconciling_is_measured_for_every_kind_of_structures(apart, monkeypatch):
    """In processes of their own as well, which is the same for every kind: there, the last one will do."""
    if apart:
        monkeypatch.setattr(reconcile, "KINDS", dict(list(KINDS.items())[-1:]))
    else:
        monkeypatch.setattr(reconcile, "isolated", lambda function, *given: function(*given))
    rows = reconcile.run_reconcile(num_updates=10, repeats=1)["rows"]
    assert [row["structures"] for row in rows] == list(KINDS)[-1 if apart else 0 :]
    assert all(row["ratio"] == pytest.approx(row["seconds"] / row["read_seconds"]) for row in rows)


def test_a_step_is_measured_dense_and_pruned(monkeypatch):
    """Ratios are of the same turn: with one turn, of the figures shown."""
    monkeypatch.setattr(step, "SCENARIOS", ("quickstart",))
    (row,) = run_step(repeats=1, steps=2, compression=5.0)["rows"]
    assert row["scenario"] == "quickstart"
    assert row["dense_microseconds"] > 0
    assert row["ratio"] == pytest.approx(row["pruned_microseconds"] / row["dense_microseconds"])


def test_few_runs_of_many_figures_are_shown_whole_on_80_columns(monkeypatch):
    """A figure that is folded, or a word that is cut, cannot be read."""
    run = {"limited": True, "params_first": 4_349_962, "held_before": 320.25, "params_last": 434_406}
    run |= {"predicted": 49.94, "live_tensors": 49.91, "resident": 50.12, "train_accuracy": 0.8532}
    rows = [{"arm": arm, "outcome": "out of memory", **run} for arm in ("dense", "dense", "dynhp", "dynhp")]
    monkeypatch.setattr(process, "run_process", lambda *_: {"limit_mebibytes": 16.0, "rows": rows})
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(app, ["bench", "process"]).stdout.splitlines()
    assert len(lines) == 11
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["arm", "dense", "dense", "dynhp", "dynhp"]
    assert lines[1].count("out of memory") == 4
    assert lines[2].split() == ["limited", *["yes"] * 4]
    assert lines[3].split() == ["params", "first", *["4,349,962"] * 4]
    assert lines[-1].split() == ["limit", "mebibytes", "16"]


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="limits and reads memory by /proc")
def test_where_the_system_allows_the_budget_and_no_more_dynhp_trains_and_dense_does_not():
    rows = {(row["arm"], row["limited"]): row for row in run_process(16 * 2**20, epochs=2)["rows"]}
    assert rows["dense", False]["outcome"] == "trained"
    assert rows["dense", True]["outcome"] == "out of memory"
    assert rows["dynhp", True]["outcome"] == "trained"
    assert rows["dynhp", True]["params_last"] < rows["dense", False]["params_last"] / 10
    for row in (rows["dense", False], rows["dynhp", False], rows["dynhp", True]):
        assert row["resident"] == pytest.approx(row["predicted"], rel=0.1)
