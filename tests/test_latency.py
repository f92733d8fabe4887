"""Widths by the time that networks take: by what that is modelled, what is chosen, what a run makes of it.

Times are made up but for those of one test: what a machine takes is measured by commands.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.comparison.cells import comparison_cells
from fedhp.comparison.grid import Comparison
from fedhp.comparison.settings import common_settings, differences
from fedhp.errors import DataError, ScenarioError
from fedhp.exports.formats import FORMATS
from fedhp.latency.candidates import to_choose_from, to_measure
from fedhp.latency.choosing import Measured, choose
from fedhp.latency.measuring import Stopwatch, some_units
from fedhp.latency.model import fit
from fedhp.latency.target import Timing, with_widths
from fedhp.latency.work import Work
from fedhp.model.options import ModelConfig
from fedhp.model.shrinking import Shape
from fedhp.model.zoo import architecture
from fedhp.pruning.options import RUNTIMES
from fedhp.records.load import load_state
from fedhp.run.central import prepare_central
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.sizes import format_duration
from fedhp.sweep.cell import is_finished, run_cell

CNN = architecture(ModelConfig("cnn", [16, 24, 40], 1), (3, 8, 8), 4)
SHAPE = Shape(CNN.layout, dict.fromkeys(CNN.layout.widths, 1.0))
WORK = Work(CNN)
# Microseconds of one of each term: products in whole blocks are cheaper by far.
TRUTH = np.array([5.0, 0.0, 1e-4, 0.02, 1e-4, 4e-4, 1e-3])
SMALL = {"data.max_train": 60, "train.epochs": 2, "rounds": 2, "fleet.num_clients": 2}


def by_truth(counts):
    return float(WORK.terms(counts, 8) @ TRUTH)


def runtime_that(takes) -> Any:
    """A runtime that takes so long, and remembers what it was asked for."""
    asked = []

    def times(counts, tell=None):
        asked.extend(counts)
        return [takes(one) for one in counts]

    return SimpleNamespace(arch=CNN, runtime="onnx", times=times, asked=asked)


def known(takes):
    candidates = to_measure(SHAPE)
    return Measured(candidates, [takes(one.counts) for one in candidates])


def test_the_work_of_a_network_by_hand():
    """The first convolution is applied at 8 x 8 places, the second, after pooling, at 4 x 4; 2 x 2 are left.

    64 * 9 * 3 * 8 products in whole blocks, 16 * 9 * 8 * 12 others, whose 12 outputs count as 16; and
    48 * 10 + 10 * 4 of the dense layers.
    """
    terms = WORK.terms({"conv1": 8, "conv2": 12, "fc1": 10}, 8)
    assert terms.tolist() == [1, 0, 520, 14, 13_824, 16 * 9 * 8 * 16, 64 * 8 + 16 * 16]
    assert WORK.terms({"conv1": 8, "conv2": 16, "fc1": 10}, 8)[4:6].tolist() == [13_824 + 16 * 9 * 8 * 16, 0]


def test_inputs_that_are_picked_are_work():
    mlp = Work(architecture(ModelConfig("mlp", [8, 6], 1), (1, 4, 4), 3))
    assert mlp.terms({"inputs": 5, "fc1": 4, "fc2": 2}, 1)[:4].tolist() == [1, 5, 34, 9]
    assert mlp.terms({"inputs": 16, "fc1": 4, "fc2": 2}, 1)[1] == 0


def test_a_runtime_that_is_a_sum_of_terms_is_found_again():
    model = known(by_truth).model(WORK)
    assert (model.block, model.error) == (8, pytest.approx(0, abs=1e-6))
    others = to_choose_from(SHAPE)[::7]
    predicted = [model.predict(one.counts) for one in others]
    assert predicted == pytest.approx([by_truth(one.counts) for one in others])


def test_the_error_is_that_of_networks_that_were_left_out():
    """One of twelve takes twice as long as any sum of terms has it: no fit to the others foresees it."""
    counts = [one.counts for one in to_measure(SHAPE)]
    taken = [by_truth(one) for one in counts]
    taken[3] *= 2
    assert fit(WORK, counts, taken).error >= 0.5 / np.sqrt(len(counts))


@pytest.mark.parametrize("times", [0.95, 1.0, 1.3], ids=["faster", "as-modelled", "slower"])
def test_the_largest_network_within_the_target_is_chosen(times):
    """Though the machine is faster or slower by now than when it was measured."""
    target = 0.9 * by_truth(CNN.layout.widths)
    stopwatch = runtime_that(lambda counts: times * by_truth(counts))
    found, took = choose(stopwatch, SHAPE, known(by_truth), target)
    within = [one for one in to_choose_from(SHAPE) if times * by_truth(one.counts) <= target]
    assert found.num_parameters == max(one.num_parameters for one in within)
    assert took == times * by_truth(found.counts)
    assert len(stopwatch.asked) <= 5


def test_more_parameters_may_take_less_time():
    """In whole blocks; a target in milliseconds finds them, one in parameters does not."""
    target = 0.9 * by_truth(CNN.layout.widths)
    found, _ = choose(runtime_that(by_truth), SHAPE, known(by_truth), target)
    plain = [one for one in to_choose_from(SHAPE) if one.channels == 1 and by_truth(one.counts) <= target]
    assert found.num_parameters > max(one.num_parameters for one in plain)
    assert found.channels >= 8


def test_a_target_that_all_keep_leaves_the_network_whole():
    found, _ = choose(runtime_that(by_truth), SHAPE, known(by_truth), 1e6)
    assert found.counts == CNN.layout.widths


@pytest.mark.parametrize("times", [1.0, 1.3], ids=["as-modelled", "slower"])
def test_a_target_out_of_reach_is_refused_by_what_the_fastest_takes_now(times):
    """Though it was within before, when the machine was faster."""
    fastest = min(by_truth(one.counts) for one in to_choose_from(SHAPE))
    stopwatch = runtime_that(lambda counts: times * by_truth(counts))
    said = f"is not reached .* and {format_duration(times * fastest)} in the fastest"
    with pytest.raises(ScenarioError, match=said):
        choose(stopwatch, SHAPE, known(by_truth), (1.1 if times > 1 else 0.9) * fastest)


def test_what_was_fast_enough_before_is_tried_once_more():
    """Though the model, of a runtime that is no sum of terms, thinks nothing of it."""
    odd = to_measure(SHAPE)[2]

    def takes(counts):
        return 1.0 if counts == odd.counts else by_truth(counts)

    assert choose(runtime_that(takes), SHAPE, known(takes), 2.0) == (odd, 1.0)


def test_of_those_that_were_fast_enough_before_the_largest_is_taken():
    """And no smaller one that is faster still."""
    _, large, small, *_ = sorted(to_measure(SHAPE), key=lambda one: -one.num_parameters)

    def takes(counts):
        return {tuple(large.counts.values()): 1.5, tuple(small.counts.values()): 1.0}.get(
            tuple(counts.values()), by_truth(counts)
        )

    assert choose(runtime_that(takes), SHAPE, known(takes), 2.0) == (large, 1.5)


@pytest.mark.parametrize("damaged", [lambda one: -one, lambda one: one * np.nan, lambda one: one[:2]])
def test_damaged_measurements_are_named(damaged, tmp_path, made_up_times):
    timing = Timing(load_scenario("quickstart", values={"data.max_train": 60}), "torch")
    times = timing.measured().microseconds
    (file,) = (tmp_path / "cache" / "latency").glob("*/networks/microseconds.npy")
    np.save(file, damaged(np.array(times)))
    (file.parent / "contents.json").write_text(json.dumps({"microseconds": file.stat().st_size}))
    with pytest.raises(DataError, match=r"measurements in .* are damaged; delete that folder"):
        timing.measured()


OWN = """
from torch import nn

def net(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""


def test_a_network_of_ones_own_is_measured_again_once_its_code_is_another(
    tmp_path, monkeypatch, made_up_times
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_to_time.py").write_text(OWN.replace("width", ""))
    scenario = load_scenario("quickstart", values={"model.target": "own_to_time:net", "data.max_train": 60})
    Timing(scenario, "torch").measured()
    Timing(scenario, "torch").measured()
    assert len(made_up_times) == 1
    (tmp_path / "own_to_time.py").write_text(OWN.replace("width", "").replace("ReLU", "Tanh"))
    monkeypatch.delitem(sys.modules, "own_to_time")
    Timing(scenario, "torch").measured()
    assert len(made_up_times) == 2


def test_auto_rounds_the_end_where_it_is_wide_enough_and_no_parts_on_the_way():
    """Parts of small devices would be of other shapes: dense layers grow into what rounding leaves."""
    for name, rounded in (("cnn", True), ("resnet20", False)):
        scenario = load_scenario("cifar10", values={"model.name": name, "model.widths": []})
        recipe = recipe_of(scenario, (3, 32, 32), 10)
        end = recipe.schedule.counts(1.0)
        assert all(end[group] % 8 == 0 for group in end if "conv" in group) is rounded
        assert recipe.shape.steps == recipe.without_pruning().shape.steps == {}


def test_widths_of_the_whole_network_leave_nothing_to_go_ahead_of():
    prune = {"widths": [64, 128, 64], "marginal": 0.5}
    recipe = recipe_of(load_scenario("quickstart", values={"prune": prune}), (1, 8, 8), 10)
    assert (recipe.prune.target_compression, recipe.prune.marginal) == (1.0, 0.0)


def test_a_target_may_be_for_every_format_that_there_is():
    assert {*RUNTIMES} == {"", *FORMATS}


def test_units_are_spread_and_as_many_as_asked_for():
    structure = some_units({"a": 100, "b": 7}, {"a": 10, "b": 7})
    assert structure.counts == {"a": 10, "b": 7}
    assert np.ptp(structure.kept("a")) > 20


@pytest.fixture
def made_up_times(monkeypatch, tmp_path):
    """Takes the place of a runtime: a microsecond for a call, one for a hundred parameters."""
    asked = []

    def times(self, counts, tell=None):
        asked.append(len(counts))
        return [1 + self.arch.layout.num_parameters(one) / 100 for one in counts]

    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Stopwatch, "times", times)
    monkeypatch.setattr(Stopwatch, "check", lambda self: None)
    return asked


TARGET = {"prune": {"target_latency": "31us", "runtime": "torch"}}


def kept_widths(folder):
    return list(load_state(folder)[0].structure.counts.values())


def test_a_device_trains_down_to_what_a_target_allows(tmp_path, made_up_times):
    """Of 17,226 parameters 3,000 take 31 us; by the record's widths a run needs no measuring."""
    run = fedhp.train("quickstart", tmp_path / "run", **SMALL, **TARGET)
    prune = run.config.prune
    assert 2_850 <= run.summary["params_final"] <= 3_000
    assert kept_widths(tmp_path / "run") == prune.widths
    assert prune.target_compression == 17_226 / run.summary["params_final"]
    assert (prune.target_latency, prune.runtime) == ("31us", "torch")  # what they were chosen for
    events = (tmp_path / "run" / "events.log").read_text()
    assert "prune.target_latency=31us in torch: inputs " in events
    before = len(made_up_times)
    again = fedhp.train(str(tmp_path / "run" / "config.yaml"), tmp_path / "again")
    assert len(made_up_times) == before
    assert again.summary["final_accuracy"] == run.summary["final_accuracy"]


def test_what_was_measured_is_kept_for_other_runs(tmp_path, made_up_times):
    for seed in (0, 1):
        fedhp.train("quickstart", tmp_path / f"{seed}", seed=seed, **SMALL, **TARGET)
    assert kept_widths(tmp_path / "0") == kept_widths(tmp_path / "1")
    assert sum(one > 1 for one in made_up_times) == 1


def test_a_fleet_comes_to_the_widths_of_its_target(tmp_path, made_up_times):
    values = {**SMALL, **TARGET, "simulation.num_workers": 0}
    run = fedhp.simulate("quickstart", tmp_path / "run", show=False, **values)
    assert kept_widths(tmp_path / "run") == run.config.prune.widths
    assert run.summary["params_final"] <= 3_000


def test_a_comparison_measures_before_its_runs_and_once(tmp_path, made_up_times):
    """And knows them again: with widths, the records' target is another than the scenario's."""
    overrides = [f"{key}={value}" for key, value in SMALL.items() if key != "train.epochs"]
    overrides += ["prune.target_latency=31us", "prune.runtime=torch"]
    names = ["mask_intersection", "dense"]
    cells = comparison_cells(Comparison("quickstart", names, range(2), {}, overrides))
    assert len([one for one in made_up_times if one > 1]) == 1
    assert [bool(cell.scenario.prune.widths) for cell in cells] == [True, True, False, False]
    assert cells[0].scenario.prune.widths == cells[1].scenario.prune.widths
    both = [common_settings(cell.scenario) for cell in (cells[0], cells[2])]
    assert not differences(*both)
    run_cell(cells[0], tmp_path)
    assert kept_widths(tmp_path / cells[0].name) == cells[0].scenario.prune.widths
    assert is_finished(cells[0], tmp_path)
    events = (tmp_path / cells[0].name / "events.log").read_text()
    assert "prune.target_latency=31us in torch: inputs " in events


def test_a_target_in_parameters_has_no_say_beside_one_in_milliseconds(tmp_path, made_up_times):
    chosen = []
    for number in (3, 10):
        said = f"{{target_compression: {number}, target_latency: 31us, runtime: torch}}"
        (tmp_path / "mine.yaml").write_text(f"extends: quickstart\ndata: {{max_train: 60}}\nprune: {said}\n")
        chosen.append(with_widths(load_scenario(tmp_path / "mine.yaml"), None).scenario)
    assert chosen[0].prune.widths == chosen[1].prune.widths
    assert sum(one > 1 for one in made_up_times) == 1


def test_a_time_that_hardly_depends_on_widths_is_noted(monkeypatch, made_up_times):
    monkeypatch.setattr(
        Stopwatch,
        "times",
        lambda self, counts, tell=None: [7 + self.arch.layout.num_parameters(one) / 1e5 for one in counts],
    )
    values = {"prune": {"target_latency": "7.1us", "runtime": "torch"}, "data.max_train": 60}
    *_, note = with_widths(load_scenario("quickstart", values=values), None).notes
    assert "in torch the fastest network takes 0.98 of the whole one's time" in note


def test_a_strategy_that_prunes_nothing_has_no_use_for_a_target(tmp_path, made_up_times):
    values = {**SMALL, **TARGET, "strategy.name": "dense", "simulation.num_workers": 0}
    run = fedhp.simulate("quickstart", tmp_path / "run", show=False, **values)
    assert run.summary["params_final"] == 17_226
    assert not made_up_times


def test_widths_given_by_hand_are_kept_in_the_end(tmp_path):
    run = fedhp.train("quickstart", tmp_path / "run", **SMALL, prune={"widths": [40, 20, 7]})
    assert kept_widths(tmp_path / "run") == [40, 20, 7]
    assert run.config.prune.target_compression == 17_226 / run.summary["params_final"]


def test_the_smallest_widths_are_within_reach():
    """Of 42 parameters, and 1,535: 42 times what they come to is more, by the rounding of a division."""
    values = {"model.widths": [21, 5], "model.floor": 2, "prune.widths": [2, 2, 2]}
    central = prepare_central(load_scenario("quickstart", values=values))
    target = central.recipe.prune.target_compression
    assert 42 * target > 1535
    assert central.recipe.schedule.counts(1.0) == {"inputs": 2, "fc1": 2, "fc2": 2}


def test_a_record_takes_another_target_where_its_widths_are_left_out(tmp_path):
    """Its file has both, of which the widths would win in silence."""
    prune = {"widths": [40, 20, 7], "target_compression": 5.17}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"extends": "quickstart", "prune": prune}))
    assert load_scenario(file, ["seed=1"]).prune.widths == [40, 20, 7]
    with pytest.raises(ScenarioError, match=r"or give prune.widths=\[\] too"):
        load_scenario(file, ["prune.target_compression=9"])
    assert load_scenario(file, ["prune.target_compression=9", "prune.widths=[]"]).prune.widths == []


@pytest.mark.parametrize(
    ("microseconds", "written"),
    [
        (1.934, "1.93 us"),
        (123.4, "123 us"),
        (999.6, "1.00 ms"),
        (1934, "1.93 ms"),
        (999_600, "1.00 s"),
        (6e7, "60.0 s"),
    ],
)
def test_times_are_written_with_three_digits(microseconds, written):
    assert format_duration(microseconds) == written


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["prune.widths=[40,20]"], "does not fit the model, whose groups may keep: inputs 2 to 64, fc1 2 to"),
        (["prune.widths=[40,20,65]"], "fc2 2 to 64"),
        (["prune.widths=[40,20,1]"], "fc2 2 to 64"),
        (["prune.target_latency=2ms"], "needs prune.runtime"),
        (["prune.target_latency=2ms", "prune.runtime=tvm"], "prune.runtime must be one of"),
        (["prune.target_latency=fast", "prune.runtime=onnx"], "'fast' is not the time of a sample"),
        (["prune.target_latency=0us", "prune.runtime=onnx"], "write a positive number and a unit"),
        (
            ["prune.target_latency=2ms", "prune.runtime=onnx", "prune.widths=[4,4,4]"],
            "prune.target_latency has no effect beside prune.widths = [4, 4, 4]",
        ),
        (["prune.target_compression=4", "prune.widths=[4,4,4]"], "no effect beside prune.widths = [4, 4, 4]"),
        (
            ["prune.target_compression=4", "prune.target_latency=2ms", "prune.runtime=onnx"],
            "no effect beside prune.target_latency = 2ms",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(values, said, tmp_path):
    done = CliRunner().invoke(app, ["train", *values, "data.max_train=60", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "run").exists()


def test_a_command_tells_what_networks_take(made_up_times):
    asked = ["latency", "quickstart", "prune.target_latency=31us", "prune.runtime=torch", "--json", "--again"]
    done = CliRunner().invoke(app, asked)
    found = json.loads(done.stdout)
    largest, *_, smallest = found["networks"]
    assert (largest["parameters"], largest["microseconds"]) == (17_226, 173.26)
    assert smallest["widths"] == {"inputs": 2, "fc1": 2, "fc2": 2}
    assert "prune.target_latency=31us in torch" in found["notes"][0]
    plain = json.loads(
        CliRunner().invoke(app, ["latency", "quickstart", "--runtime", "torch", "--json"]).stdout
    )
    (beside,) = [one for one in plain["networks"] if one not in found["networks"]]
    assert 0.98 * 17_226 / 6 < beside["parameters"] <= 17_226 / 6  # quickstart's own target
    shown = CliRunner().invoke(app, asked[:-2]).output
    assert "17,226" in shown
    assert "one sample on one thread" in shown
    assert CliRunner().invoke(app, ["latency"]).exit_code == 2


def test_networks_are_timed_in_a_runtime(tmp_path):
    """In that of ``torch.export``, which every environment has: some time, for each."""
    scenario = load_scenario("quickstart", values=SMALL)
    stopwatch = Timing(scenario, "torch").stopwatch
    told = []
    taken = stopwatch.times([{"inputs": 9, "fc1": 4, "fc2": 2}], lambda done, of: told.append((done, of)))
    assert len(taken) == 1
    assert 0 < taken[0] < 1e6
    assert told == [(0, 1), (1, 1)]
