"""Studies: cells that run once, fail alone and wait for each other; figures against hand-computed ones."""

import csv
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console
from small_models import ARCHITECTURES, random_structure
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.errors import DataError, MissingExtraError, RecordError, ScenarioError
from fedhp.files import locks
from fedhp.model.building import fresh_state, initial_state
from fedhp.pruning.criteria import CRITERIA, Criterion
from fedhp.records import load_state
from fedhp.records.record import is_taken
from fedhp.scenario.schema import SimulationConfig
from fedhp.studies import table
from fedhp.studies.figure import draw
from fedhp.studies.grids import ARMS, Grid, criteria_cells, dynhp_cells, train
from fedhp.studies.study import run_study
from fedhp.studies.writing import show_tables, write_tables
from fedhp.sweep.cell import Cell, Outcome, Study
from fedhp.sweep.folder import held
from fedhp.sweep.running import run_cells

ROOT = Path(__file__).parent.parent
TINY = ("train.epochs=1", "data.max_train=200", "model.widths=[24,16]")
HERE = SimulationConfig(num_workers=0)
ON_RAY = SimulationConfig(num_workers=2)


def grid(*overrides: str, seeds: tuple[int, ...] = (0,)) -> Grid:
    return Grid(("quickstart",), seeds, (*TINY, *overrides))


def quiet(cell: Cell, outcome: Outcome) -> None:
    pass


def by_name(cells: list[Cell]) -> dict[str, Cell]:
    return {cell.name: cell for cell in cells}


# --- the grids -------------------------------------------------------------------------------


def test_the_grid_of_dynhp_has_every_arm_at_every_target_and_seed():
    cells = by_name(dynhp_cells(grid(seeds=(0, 1)), (5.0, 10.0)))
    arms = [f"{arm}-{target}x" for arm in ("dynhp", "one-cut", "scratch") for target in (5, 10)]
    assert set(cells) == {f"quickstart/{arm}/seed-{seed}" for arm in ("dense", *arms) for seed in (0, 1)}
    assert cells["quickstart/scratch-5x/seed-1"].after == ("quickstart/dynhp-5x/seed-1",)
    assert {cell.scenario.train.epochs for cell in cells.values()} == {1}
    assert cells["quickstart/dense/seed-1"].scenario.prune.target_compression == 1
    assert cells["quickstart/dynhp-10x/seed-1"].scenario.prune.target_compression == 10
    assert all(cell.scenario.seed == cell.labels["seed"] for cell in cells.values())


def test_the_grid_of_criteria_has_every_entry_of_the_registry():
    cells = criteria_cells(grid(), (5.0,))
    assert [cell.labels["arm"] for cell in cells] == ["dense", *CRITERIA]
    assert [cell.scenario.prune.criterion for cell in cells][1:] == list(CRITERIA)


@pytest.mark.parametrize("override", ["seed=3", "prune.target_compression=4", "name=mine"])
def test_what_a_study_varies_cannot_be_overridden(override):
    with pytest.raises(ScenarioError, match=r"the study sets this itself.*--seeds"):
        grid(override)


# --- running them ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A whole small study of DynHP at one target."""
    root, cells = tmp_path_factory.mktemp("study"), dynhp_cells(grid(), (5.0,))
    return SimpleNamespace(root=root, cells=cells, outcomes=run_cells(cells, root, HERE, quiet))


def modified(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_each_cell_leaves_a_whole_record_in_its_own_folder(study):
    assert {outcome.status for outcome in study.outcomes.values()} == {"finished"}
    for cell in study.cells:
        run = fedhp.load_run(study.root / cell.name)
        assert (run.summary["status"], run.config) == ("finished", cell.scenario)


def test_a_repeated_study_runs_nothing_again(study):
    before = modified(study.root)
    again = run_cells(study.cells, study.root, HERE, quiet)
    assert {outcome.status for outcome in again.values()} == {"skipped"}
    assert modified(study.root) == before


def test_a_cell_that_was_cut_short_is_run_again_and_no_other(tmp_path):
    cells = criteria_cells(grid(), (5.0,), ("random",))
    run_cells(cells, tmp_path, HERE, quiet)
    (tmp_path / cells[1].name / "summary.json").unlink()
    told: list[str] = []
    outcomes = run_cells(cells, tmp_path, HERE, lambda cell, outcome: told.append(cell.name))
    assert [outcomes[cell.name].status for cell in cells] == ["skipped", "finished"]
    assert told == [cell.name for cell in cells]
    assert fedhp.load_run(tmp_path / cells[1].name).summary["status"] == "finished"


HOLDING = """
import sys, time
from pathlib import Path
from fedhp.sweep.folder import held

with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_run_one_study_and_a_killed_one_leaves_no_lock(study, tmp_path):
    dense = Study("A title", [cell for cell in study.cells if cell.labels["arm"] == "dense"])
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RecordError, match=r"another process is at work in .*; wait .* another --out"):
            run_study(dense, tmp_path, HERE)
        other.kill()
    assert not modified(tmp_path)
    outcomes = run_study(dense, tmp_path, HERE)
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}


def test_where_nothing_can_be_written_beside_a_folder_its_lock_is_within(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    assert locks.of(folder) == tmp_path / ".study.lock"
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    assert locks.of(folder) == folder / ".lock"
    folder.mkdir()
    with locks.locked(locks.of(folder)):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        assert not is_taken(folder)
        with pytest.raises(BlockingIOError), locks.locked(locks.of(folder), wait=False):
            pass
    assert list(folder.iterdir()) == []


def test_a_lock_is_never_one_of_a_file_that_was_removed_meanwhile(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="elsewhere, nothing that is open is removed")
    file, lock, had = tmp_path / "lock", fcntl.flock, []

    def after_another_went(descriptor: int, how: int) -> None:
        """What may lie between opening a file and locking it."""
        if not had:
            file.unlink()
        lock(descriptor, how)
        had.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(fcntl, "flock", after_another_went)
    with locks.locked(file):
        assert len(had) == 2
        assert file.stat().st_ino == had[-1]
        with pytest.raises(BlockingIOError), locks.locked(file, wait=False):
            pass


def test_a_study_is_held_until_its_tables_are_written(study, tmp_path, monkeypatch):
    refused = []

    def write_while_another_comes(root, *rest):
        with pytest.raises(RecordError, match="another process is at work") as caught, held(root):
            pass
        refused.append(caught)
        write_tables(root, *rest)

    monkeypatch.setattr("fedhp.studies.study.write_tables", write_while_another_comes)
    run_study(Study("A title", study.cells[:1]), tmp_path, HERE)
    assert len(refused) == 1


def test_a_folder_of_other_settings_is_refused_and_left_alone(study):
    before = modified(study.root)
    others = dynhp_cells(grid("train.learning_rate=0.1"), (5.0,))
    with pytest.raises(RecordError, match=r"train.learning_rate: 0.05, now 0.1.*--out"):
        run_cells(others, study.root, HERE, quiet)
    assert modified(study.root) == before


def test_a_folder_that_is_no_record_is_refused_and_left_alone(tmp_path):
    (cell, *_) = dynhp_cells(grid(), ())
    (tmp_path / cell.name).mkdir(parents=True)
    (tmp_path / cell.name / "thesis.tex").write_text("years of work")
    with pytest.raises(RecordError, match="no run record"):
        run_cells([cell], tmp_path, HERE, quiet)
    assert (tmp_path / cell.name / "thesis.tex").exists()


def break_down(cell: Cell, root: Path) -> None:
    raise DataError("the disk is gone")


def die(cell: Cell, root: Path) -> None:
    import os

    os._exit(1)


def break_down_at_length(cell: Cell, root: Path) -> None:
    raise RuntimeError("the disk is\ngone")


def refuse(cell: Cell, root: Path) -> None:
    raise ScenarioError("there is no normalisation layer")


@pytest.mark.parametrize(
    ("fail", "status", "reason"),
    [
        (break_down, "failed", "DataError: the disk is gone"),
        (break_down_at_length, "failed", "RuntimeError: the disk is gone"),
        (refuse, "refused", "there is no normalisation layer"),
    ],
)
def test_a_cell_that_fails_is_named_and_the_others_go_on(tmp_path, fail, status, reason):
    cells = [
        replace(cell, run=fail) if cell.labels["arm"] == "dynhp" else cell
        for cell in dynhp_cells(grid(), (5.0,))
    ]
    outcomes = run_cells(cells, tmp_path, HERE, quiet)
    assert outcomes["quickstart/dynhp-5x/seed-0"] == Outcome(status, reason)
    needs = f"needs quickstart/dynhp-5x/seed-0: {reason}"
    assert outcomes["quickstart/scratch-5x/seed-0"] == Outcome(status, needs)
    assert outcomes["quickstart/dense/seed-0"].status == "finished"
    assert outcomes["quickstart/one-cut-5x/seed-0"].status == "finished"
    rows = {row["arm"]: row for row in table.arm_rows(table.cell_rows(cells, outcomes, tmp_path))}
    assert (rows["dynhp"]["seeds"], rows["dynhp"]["last"]) == (0, None)
    assert rows["dynhp"]["reason"] == reason
    assert rows["one-cut"]["seeds"] == 1


@pytest.mark.integration
def test_workers_change_no_result_and_a_death_is_told(study, tmp_path):
    dead = Cell("quickstart/dead/seed-0", study.cells[0].scenario, die)
    outcomes = run_cells([dead, *study.cells], tmp_path, ON_RAY, quiet)
    assert outcomes.pop(dead.name).status == "failed"
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    for cell in study.cells:
        here, there = (fedhp.load_run(root / cell.name) for root in (study.root, tmp_path))
        assert here.rounds["loss"].tolist() == there.rounds["loss"].tolist()
        assert here.rounds["structure"].tolist() == there.rounds["structure"].tolist()


# --- the control from scratch ----------------------------------------------------------------


def test_the_control_has_the_final_structure_and_stays_as_small(study):
    dynhp, _ = load_state(study.root / "quickstart/dynhp-5x/seed-0")
    scratch, _ = load_state(study.root / "quickstart/scratch-5x/seed-0")
    assert scratch.structure == dynhp.structure
    rounds = fedhp.load_run(study.root / "quickstart/scratch-5x/seed-0").rounds
    assert set(rounds["params"]) == {dynhp.num_parameters()}


@pytest.mark.parametrize("name", ["mlp-3-hidden", "cnn-2-convs"])
def test_fresh_weights_fit_the_small_networks_own_fan_in(name):
    """Uniform in +-1/sqrt(fan_in) of the *compact* layer: no weight is beyond, and some come near."""
    arch = ARCHITECTURES[name]
    structure = random_structure(arch.layout, 3)
    fresh = fresh_state(arch, structure, 7)
    full = initial_state(arch, 7)
    for parameter, weights in fresh.weights.items():
        assert weights.shape == arch.layout.shape(parameter, structure.counts)
        if weights.ndim > 1:
            bound = 1 / math.sqrt(math.prod(weights.shape[1:]))
            assert 0.7 * bound < np.abs(weights).max() <= bound * (1 + 1e-6)
            assert bound >= 1 / math.sqrt(math.prod(full.weights[parameter].shape[1:]))
    other = fresh_state(arch, structure, 8)
    assert not np.array_equal(fresh.weights["head.weight"], other.weights["head.weight"])


# --- the numbers -----------------------------------------------------------------------------


def write_record(folder: Path, scenario, last: float, best: float, final: int, means: list[int], seconds):
    """A finished run whose full model takes 1,000 bytes to train, and which compresses fourfold."""
    from fedhp.records import parquet
    from fedhp.records.rows import CLIENTS
    from fedhp.records.summary import Summary

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(scenario.to_yaml())
    summary = dict.fromkeys(Summary.__dataclass_fields__, 0)
    summary |= {
        "status": "finished",
        "cause": None,
        "scenario": scenario.name,
        "versions": {},
        "final_accuracy": last,
        "best_accuracy": best,
        "compression": 4.0,
    }
    summary |= {"training_bytes_full": 1000, "training_bytes_final": final}
    (folder / "summary.json").write_text(json.dumps(summary))
    clients = parquet.PartedTable(folder / "clients.parquet", CLIENTS)
    rows = [{"memory_mean_bytes": m, "seconds": s} for m, s in zip(means, seconds, strict=True)]
    clients.write(1, [{**dict.fromkeys(CLIENTS), **row} for row in rows])
    clients.merge()


@pytest.fixture
def records(tmp_path):
    """Dense at 90 and 92 %, DynHP at 89 and 90 %, on two seeds."""
    cells = criteria_cells(grid(seeds=(0, 1)), (4.0,), ("taylor",))
    for cell in cells:
        seed, folder = cell.labels["seed"], tmp_path / cell.name
        if cell.labels["arm"] == "dense":
            last = (0.90, 0.92)[seed]
            write_record(folder, cell.scenario, last, last, 1000, [1000, 1000], [2.0, 2.0])
        else:
            last = (0.89, 0.90)[seed]
            write_record(folder, cell.scenario, last, last + 0.01, 120 + 20 * seed, [600, 200], [1.0, 0.6])
    return SimpleNamespace(root=tmp_path, cells=cells)


def summed_up(records) -> tuple[list, list]:
    outcomes = {cell.name: Outcome("skipped") for cell in records.cells}
    rows = table.cell_rows(records.cells, outcomes, records.root)
    return rows, table.arm_rows(rows)


def test_an_arms_figures_are_those_computed_by_hand(records):
    """Last: (89 + 90) / 2 = 89.5, deviation 1 / sqrt(2). Below dense: 1 and 2 points. Memory at the end: 0.12
    and 0.14; mean: (600 + 200) / 2 of 1,000. Time: 1.6 of 4 seconds.
    """
    rows, (dense, pruned) = summed_up(records)
    assert [row["last"] for row in rows] == pytest.approx([90, 89, 92, 90])
    assert (dense["arm"], pruned["arm"], pruned["target"], pruned["seeds"]) == ("dense", "taylor", 4, 2)
    assert (dense["last"], dense["below_dense"], dense["time"]) == pytest.approx((91, 0, 1))
    assert pruned["last"] == pytest.approx(89.5)
    assert pruned["last_deviation"] == pytest.approx(0.5**0.5)
    assert pruned["best"] == pytest.approx(90.5)
    assert pruned["below_dense"] == pytest.approx(1.5)
    assert pruned["below_dense_deviation"] == pytest.approx(0.5**0.5)
    assert pruned["compression"] == 4
    assert (pruned["memory_end"], pruned["memory_mean"]) == pytest.approx((0.13, 0.4))
    assert pruned["time"] == pytest.approx(0.4)


def test_the_written_tables_hold_those_figures(records):
    rows, arms = summed_up(records)
    write_tables(records.root, Study("A title", records.cells, {"taylor": "Taylor's"}), rows, arms)
    with (records.root / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["last"]) for row in read] == pytest.approx([91, 89.5])
    with (records.root / "cells.csv").open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["0", "0", "1", "1"]
    page = (records.root / "table.md").read_text()
    line = "| Taylor's 4x | 2 | 89.50 ± 0.71 | 90.50 | +1.50 | 4.0x | 0.130 | 0.400 | 0.40 |"
    assert line in page.splitlines()


def test_a_table_fits_a_terminal_of_80_columns_with_a_line_per_arm():
    """The widest names, accuracies and distances that a study of percentages has."""
    wide = {"seeds": 10, "last": 98.12, "last_deviation": 10.07, "best": 98.12, "below_dense": -10.83}
    wide |= {"compression": 20.1, "memory_end": 0.262, "memory_mean": 0.377, "time": 10.68}
    for names, arms in ((ARMS, list(ARMS)), ({}, list(CRITERIA))):
        rows = [{"scenario": "mnist", "arm": arm, "target": 20.0, **wide} for arm in arms]
        console = Console(file=io.StringIO(), width=80)
        show_tables(console, Study("A title", (), names, ["a note"]), rows)
        _, _, _, *lines, note = console.file.getvalue().splitlines()
        assert [line[:16].strip() for line in lines] == [f"{names.get(arm, arm)} 20x" for arm in arms]
        figures = ["10", "98.12", "±", "10.07", "98.12", "-10.83", "20.1x", "0.262", "0.377", "10.68"]
        assert all(line[16:].split() == figures for line in lines)
        assert note == "a note"


def test_every_cause_stands_on_the_page_once_for_the_seeds_that_share_it(records):
    """A cell without a record has labels and a reason; that of seed 2 is another."""
    labels = {"scenario": "quickstart", "arm": "taylor", "status": "failed"}
    causes = [(4.0, 0, "no room"), (4.0, 1, "no room"), (8.0, 0, "no room"), (4.0, 2, "no time")]
    rows = [{**labels, "target": t, "seed": s, "reason": reason} for t, s, reason in causes]
    write_tables(records.root, Study("A title", ()), rows, table.arm_rows(rows))
    told = [line for line in (records.root / "table.md").read_text().splitlines() if line.startswith("- ")]
    assert told == [
        "- taylor 4x, seed 0, 1, failed: no room",
        "- taylor 8x, seed 0, failed: no room",
        "- taylor 4x, seed 2, failed: no time",
    ]


def test_the_figure_is_drawn_in_both_formats(records):
    _, arms = summed_up(records)
    png, svg = draw(records.root, arms, {"taylor": "Taylor's"})
    pixels = matplotlib.image.imread(png)
    assert pixels.shape[0] > 300
    assert 0.001 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.5
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert svg.stat().st_size > 5_000


def test_without_matplotlib_the_error_names_the_extra(records, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"fedhp\[plots\]"):
        draw(records.root, [], {})


# --- the commands ----------------------------------------------------------------------------


def test_the_command_leaves_tables_and_pictures_and_goes_on_where_it_was(tmp_path):
    """Of the other study, tests/test_docs.py runs the pages' command."""
    words = ["reproduce", "dynhp", "--quick", "--out", str(tmp_path), *TINY, "simulation.num_workers=0"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    made = {"study.txt", "table.md", "table.csv", "cells.csv", "figure.png", "figure.svg", "quickstart"}
    assert {path.name for path in tmp_path.iterdir()} == made
    page = (tmp_path / "table.md").read_text()
    assert "| dense | 1 |" in page
    taste = "figures of one seed and few samples mean nothing"
    assert taste in page
    assert taste in first.stdout
    for arm in ("dense", "DynHP 20x", "from scratch 20x", "one cut 20x"):  # named alike in both
        assert f"\n{arm} " in first.stdout
        assert f"\n| {arm} |" in page
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert "dense" in again.stdout


@pytest.mark.parametrize("name", ["thesis.tex", "study.txt"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    """Another study's, and what is none at all."""
    (tmp_path / name).write_text("Pruning criteria of mine", encoding="utf-8")
    (tmp_path / "table.md").write_text("years of work", encoding="utf-8")
    before = modified(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", "criteria", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "something else than the study 'Pruning criteria'" in result.stderr.replace("\n", "")
    assert modified(tmp_path) == before


def test_the_command_names_what_failed(tmp_path, monkeypatch):
    def fail(evidence):
        raise ArithmeticError("no score today")

    monkeypatch.setitem(CRITERIA, "random", Criterion(fail, tracked=False))
    words = ["reproduce", "criteria", "--quick", "--out", str(tmp_path), *TINY, "simulation.num_workers=0"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    told = [
        f"  quickstart/random-{target}x/seed-0: ArithmeticError: no score today" for target in (5, 10, 20)
    ]
    first, *causes = result.stderr.splitlines()
    assert first.startswith("error: 3 of 37 runs failed; the same command tries them again")
    assert causes == told
    page = (tmp_path / "table.md").read_text()
    assert "- random 5x, seed 0, failed: ArithmeticError: no score today\n" in page
    assert fedhp.load_run(tmp_path / "quickstart/taylor-5x/seed-0").summary["status"] == "finished"


def test_a_cell_runs_as_training_alone_does(tmp_path):
    """A cell adds nothing: `fedhp.train` with the same values gives the same record."""
    (cell, *_) = dynhp_cells(grid(), ())
    train(cell, tmp_path)
    alone = fedhp.train(cell.scenario, tmp_path / "alone")
    assert fedhp.load_run(tmp_path / cell.name).rounds["loss"].equals(alone.rounds["loss"])
