"""The control from fresh weights: which network it trains, of whose weights, and what it refuses."""

import math
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fleets import enlisted
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.comparison.cells import comparison_cells
from fedhp.comparison.grid import Comparison
from fedhp.errors import BudgetError, RecordError, ScenarioError
from fedhp.model.building import initial_state
from fedhp.model.structure import Structure
from fedhp.records.load import load_state
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.seeds import derive
from fedhp.sweep.cell import is_finished
from strategies import Scratch

pytestmark = pytest.mark.usefixtures("as_the_server")

CHEAP: dict[str, Any] = {
    "rounds": 2,
    "fleet.num_clients": 6,
    "data.max_train": 300,
    "simulation.num_workers": 0,
    "prune.target_compression": 3,
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A run by mask intersection that inputs and neurons are cut in."""
    return fedhp.simulate("quickstart", tmp_path_factory.mktemp("pruned") / "run", show=False, **CHEAP)


def from_scratch(folder, run, **values):
    chosen = {**CHEAP, "strategy.name": "scratch", "strategy.structure": str(run), **values}
    return fedhp.simulate("quickstart", folder, show=False, **chosen)


# --- which network -------------------------------------------------------------------------------


def test_without_a_run_it_is_as_small_as_pruning_asks_for_and_reads_whole_samples():
    """Of 4 inputs, 8 and 6 units, 115 parameters, half: 4 * a + a + a * b + b + 3 * b + 3 of at most 57."""
    strategy = enlisted(Scratch)
    inputs, a, b = strategy.state.structure.counts.values()
    assert inputs == 4
    assert strategy.state.num_parameters() == a * 5 + (a + 1) * b + 3 * b + 3 <= 115 / 2
    assert a < 8


def test_final_widths_are_heeded_but_not_inputs_of_which_nobody_knows_which():
    widths = {"start": 0.0, "end": 1.0, "widths": [4, 5, 3]}
    assert list(enlisted(Scratch, prune=widths).state.structure.counts.values()) == [4, 5, 3]
    with pytest.raises(ScenarioError, match=r"leaves 3 of 4 inputs.*strategy\.structure=RUN"):
        enlisted(Scratch, prune={**widths, "widths": [3, 5, 3]})


def test_a_target_that_cannot_be_met_is_refused():
    with pytest.raises(ScenarioError, match=r"prune\.target_compression = 100 cannot be reached"):
        enlisted(Scratch, prune={"target_compression": 100.0})


def test_its_weights_are_of_another_draw_and_fit_their_fan_in():
    """By PyTorch's rule for dense layers, within 1 / sqrt(inputs): the second layer has 5 of 8 left."""
    strategy = enlisted(Scratch, prune={"start": 0.0, "end": 1.0, "widths": [4, 5, 3]})
    arch, seed = strategy.recipe.architecture, strategy.scenario.seed
    full = initial_state(arch, derive(seed, "from scratch")).weights
    assert np.allclose(strategy.state.weights["fc1.weight"], full["fc1.weight"][:5])
    expected = full["fc2.weight"][:3, :5] * math.sqrt(8 / 5)
    assert np.allclose(strategy.state.weights["fc2.weight"], expected)
    assert not np.array_equal(full["fc1.weight"], initial_state(arch, seed).weights["fc1.weight"])


def test_devices_that_cannot_hold_it_are_left_out():
    needed = enlisted(Scratch).memory.training_bytes(enlisted(Scratch).state.structure.counts, 1)
    strategy = enlisted(Scratch, (needed - 1, needed, None))
    assert [device.client for device in strategy.devices] == [1, 2]
    with pytest.raises(BudgetError, match="no device of the fleet"):
        enlisted(Scratch, (needed - 1,) * 2)


# --- of another run ------------------------------------------------------------------------------


def test_it_has_the_units_of_the_run_and_none_of_its_weights(tmp_path, pruned):
    run = from_scratch(tmp_path / "run", pruned.folder)
    (mine, _), (theirs, _) = load_state(run.folder), load_state(pruned.folder)
    assert mine.structure == theirs.structure
    assert mine.structure.counts["inputs"] < 64
    assert run.rounds["params"].tolist() == [theirs.num_parameters()] * 3
    assert not np.allclose(mine.weights["fc1.weight"], theirs.weights["fc1.weight"], atol=1e-2)


def test_its_record_is_whole_when_that_run_is_gone(tmp_path, pruned):
    """Run again from its own record it ends at the same bits, though the run that gave its units is gone."""
    shutil.copytree(pruned.folder, gone := tmp_path / "gone")
    run = from_scratch(tmp_path / "run", gone)
    shutil.rmtree(gone)
    again = fedhp.simulate(run.folder / "config.yaml", tmp_path / "again", show=False)
    (one, _), (two, _) = load_state(run.folder), load_state(again.folder)
    assert all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert Structure.from_text(run.config.strategy.structure, {"inputs": 64, "fc1": 128, "fc2": 64}) == (
        one.structure
    )


def test_a_run_that_has_left_out_single_weights_has_no_units_to_take(tmp_path):
    sparse = {**CHEAP, "train.method": "static"}
    run = fedhp.simulate("quickstart", tmp_path / "sparse", show=False, **sparse)
    with pytest.raises(ScenarioError, match=r"left out single weights \(train\.method = static\)"):
        from_scratch(tmp_path / "run", run.folder)


def test_in_a_comparison_over_methods_the_control_follows_dynhp():
    names = ["mask_intersection", "scratch"]
    over = {"train.method": ["dynhp", "rigl", "smcp"]}
    cells = comparison_cells(Comparison("quickstart", names, [0], over))
    assert [cell.name for cell in cells] == [
        "mask_intersection/method-dynhp/seed-0",
        "mask_intersection/method-rigl/seed-0",
        "mask_intersection/method-smcp/seed-0",
        "scratch/method-dynhp/seed-0",
    ]
    with pytest.raises(ScenarioError, match="leave scratch out of --strategies"):
        comparison_cells(Comparison("quickstart", names, [0], overrides=["train.method=smcp"]))


def test_a_run_that_is_missing_or_of_another_network_is_refused_before_anything_starts(tmp_path, pruned):
    with pytest.raises(ScenarioError, match=r"strategy\.structure takes the folder.*no such folder"):
        from_scratch(tmp_path / "run", tmp_path / "nowhere")
    with pytest.raises(
        ScenarioError, match=r"is of another network, inputs 64, fc1 128.*fc1 100.*be the same"
    ):
        from_scratch(tmp_path / "run", pruned.folder, **{"model.widths": [100, 64]})
    shutil.copytree(pruned.folder, damaged := tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ScenarioError, match=r"model\.safetensors is no safetensors file"):
        from_scratch(tmp_path / "run", damaged)
    shutil.rmtree(damaged)
    shutil.copytree(pruned.folder, damaged)
    (damaged / "summary.json").unlink()
    with pytest.raises(ScenarioError, match=r"has not finished, and so has no final network"):
        from_scratch(tmp_path / "run", damaged)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("units:ff", "expected 'units:' and 3 groups"),
        ("units:ff.ff.zz", "non-hexadecimal"),
        ("units:ff.ff.ff", "expected 8 bytes for 64 units"),
        (f"units:{'00' * 8}.{'ff' * 16}.{'ff' * 8}", r"fewer units than model\.floor of inputs"),
    ],
)
def test_units_that_are_none_of_the_network_are_refused(said, match):
    values = {"strategy.name": "scratch", "strategy.structure": said}
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", values=values))


def test_others_have_no_use_for_a_structure():
    with pytest.raises(
        ScenarioError, match=r"strategy\.structure: strategy 'dense' has no use for it.*scratch"
    ):
        prepare(load_scenario("quickstart", values={"strategy.name": "dense", "strategy.structure": "run"}))


# --- in a comparison -----------------------------------------------------------------------------


def cells(strategies, over=None, overrides=()):
    return comparison_cells(Comparison("quickstart", strategies, (0, 1), over or {}, overrides))


def test_it_waits_for_the_pruned_run_of_its_seed_and_values():
    """It has no use for a quorum itself, which is not set; but what it takes its units of has."""
    over = {"prune.target_compression": [2, 4], "strategy.quorum": [0.5, 1]}
    found = [cell for cell in cells(["scratch", "mask_intersection"], over) if cell.after]
    assert {cell.name: cell.after for cell in found} == {
        f"scratch/{values}/seed-{seed}": (f"mask_intersection/{values}/seed-{seed}",)
        for size in (2, 4)
        for quorum in (0.5, 1)
        for values in (f"target_compression-{size}/quorum-{quorum}",)
        for seed in (0, 1)
    }
    assert {cell.scenario.strategy.quorum for cell in found} == {1.0}


def test_without_that_run_or_with_units_given_it_waits_for_nothing():
    over = {"prune.target_compression": [2, 4]}
    alone = cells(["scratch", "dense"], over)
    assert [cell.name for cell in alone[:2]] == [
        f"scratch/target_compression-2/seed-{seed}" for seed in (0, 1)
    ]
    given = cells(["scratch", "mask_intersection"], overrides=["strategy.structure=run"])
    assert not any(cell.after for cell in (*alone, *given))


def test_a_key_of_pruning_that_says_nothing_of_the_end_is_none_of_its_own():
    with pytest.raises(ScenarioError, match=r"none of scratch, dense has a use for prune\.criterion"):
        cells(["scratch", "dense"], {"prune.criterion": ["taylor", "magnitude"]})


def test_a_comparison_runs_it_on_what_pruning_left_and_goes_on_where_it_was_cut_short(tmp_path):
    words = ["compare", "quickstart", *(f"{key}={value}" for key, value in CHEAP.items()), "--seeds", "1"]
    words += ["--out", str(tmp_path / "c"), "--strategies", "scratch,mask_intersection"]
    assert CliRunner().invoke(app, words).exit_code == 0
    (mine, _), (theirs, _) = (
        load_state(tmp_path / "c" / name / "seed-0") for name in ("scratch", "mask_intersection")
    )
    assert mine.structure == theirs.structure
    before = (tmp_path / "c/scratch/seed-0/summary.json").stat().st_mtime_ns
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (tmp_path / "c/scratch/seed-0/summary.json").stat().st_mtime_ns == before
    assert set(pd.read_csv(tmp_path / "c" / "pairs.csv").columns) >= {"points", "low", "high", "p"}


def test_a_control_of_another_pruned_run_is_not_taken_for_this_ones(tmp_path, pruned):
    """The control's record stays; what it was made of is another, or gone."""
    (cell,) = (cell for cell in cells(["scratch", "mask_intersection"]) if cell.name == "scratch/seed-0")
    own = {key: value for key, value in CHEAP.items() if key != "simulation.num_workers"}
    scenario = load_scenario("quickstart", values={**own, "strategy.name": "scratch", "data.local_test": 0.2})
    cell = replace(cell, scenario=scenario)
    from_scratch(tmp_path / cell.name, pruned.folder, **{"data.local_test": 0.2})
    with pytest.raises(RecordError, match=r"whose record is not whole; remove it too"):
        is_finished(cell, tmp_path)
    shutil.copytree(pruned.folder, tmp_path / cell.after[0])
    assert is_finished(cell, tmp_path)
    shutil.rmtree(tmp_path / cell.after[0])
    fedhp.simulate("quickstart", tmp_path / cell.after[0], show=False, **{**CHEAP, "seed": 1})
    with pytest.raises(RecordError, match=r"other settings \(strategy\.structure"):
        is_finished(cell, tmp_path)
