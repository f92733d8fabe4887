"""Benchmarks of what a run leaves on a device: their arithmetic, and the cut of the package beside us."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedhp
from fedhp.bench import int8, torch_pruned
from fedhp.bench.int8 import run_int8
from fedhp.bench.one_shot import one_shot
from fedhp.bench.torch_pruned import run_torch_pruned
from fedhp.cli import app
from fedhp.data import open_dataset
from fedhp.errors import ExportError, ScenarioError
from fedhp.exports.formats import FORMATS
from fedhp.exports.formats.torch_program import TorchProgram
from fedhp.exports.loaded import load_trained
from fedhp.exports.network import DeviceNetwork, raw_sample
from fedhp.model.inference import to_plain_module
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture


def test_without_the_package_its_install_line_is_shown_and_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "kept"
    result = CliRunner().invoke(app, ["bench", "torch-pruning", "--quick", "--out", str(out)])
    assert result.exit_code == 2
    assert "pip install torch-pruning==1.6.1" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("plan", ["0", "1", "0.0", "half", "0.5:linear", "0.5:global:constant", ""])
def test_what_is_no_plan_is_refused(plan, tmp_path):
    with pytest.raises(ScenarioError, match="give the share of epochs before the cut"):
        run_torch_pruned(["quickstart"], [0], [plan], tmp_path)


def _scaled(arch, seed, factors):
    """The weights before training, those of some units much larger than others'."""
    weights = {name: array.copy() for name, array in arch.initial(seed).items()}
    for name, units in factors.items():
        weights[name][units] *= 100
    return ModelState(weights, arch.layout.full())


def test_of_a_dense_network_the_units_of_large_weights_are_kept():
    """8 of 16, of each of which 4 + 1 + 3 parameters go; 3 biases stay: 16 * 8 + 3 become 8 * 8 + 3."""
    arch = architecture(ModelConfig(name="mlp", widths=[16], prune_inputs=False), (1, 2, 2), 3)
    large = [0, 2, 3, 7, 8, 11, 13, 15]
    cut = one_shot(arch, _scaled(arch, 0, {"fc1.weight": large}), 67)
    assert cut.structure.kept("fc1").tolist() == large
    assert cut.num_parameters() == 67


@pytest.mark.parametrize(
    ("model", "target", "over_all"), [("cnn", 700, False), ("cnn", 700, True), ("resnet20", 3000, True)]
)
def test_a_cut_network_answers_as_the_full_one_whose_other_units_are_zero(model, target, over_all):
    """Their weights and biases, the scales of norms included."""
    shape = 3, 8, 8
    arch = architecture(ModelConfig(name=model, widths=[8, 12, 16]), shape, 10)
    state = ModelState(dict(arch.initial(0)), arch.layout.full())
    cut = one_shot(arch, state, target, over_all)
    masked = {name: array.copy() for name, array in state.weights.items()}
    for name, array in masked.items():
        for place in arch.layout.places(name, state.structure.counts):
            place.rows(array)[~cut.structure.masks[place.group]] = 0
    samples = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    whole = to_plain_module(arch, ModelState(masked, state.structure)).eval()
    with torch.no_grad():
        wanted, found = whole(samples), to_plain_module(arch, cut).eval()(samples)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert arch.layout.num_parameters(cut.structure.counts) == pytest.approx(target, rel=0.05)


def test_group_normalisation_which_the_package_cuts_otherwise_is_refused():
    arch = architecture(ModelConfig(name="resnet20", norm="group"), (3, 8, 8), 10)
    with pytest.raises(ScenarioError, match="keeps the number of groups"):
        one_shot(arch, ModelState(dict(arch.initial(0)), arch.layout.full()), 20_000)


def test_arms_are_held_against_dynhp_seed_by_seed(monkeypatch, tmp_path):
    """Of two seeds: 90 and 91 beside 89 and 92 are a point more and one less, whose deviation is root two."""
    accuracies = {"DynHP": (90.0, 91.0), "dense": (92.0, 93.0), "0.5": (89.0, 92.0)}

    def run(cell, root):
        arm, seed = cell.labels["arm"], cell.labels["seed"]
        said = {"scenario": "quickstart", "arm": arm, "seed": seed, "record": cell.name}
        return {**said, "parameters": 100 + seed, "accuracy": accuracies[arm][seed]}

    monkeypatch.setattr(torch_pruned, "train_all", lambda *_: None)
    monkeypatch.setattr(torch_pruned, "check_installed", lambda: None)
    monkeypatch.setattr(torch_pruned, "_run", run)
    monkeypatch.setattr(torch_pruned, "_times", lambda runs, best, *_: [("onnx", {"dense": 1.0, best: 0.25})])
    dynhp, dense, shot = run_torch_pruned(["quickstart"], [0, 1], ["0.5"], tmp_path)["rows"]
    assert dynhp == {
        **{"scenario": "quickstart", "arm": "DynHP", "size": 100, "%": 90.5, "±": 0.71, "points": 0.0},
        "± points": 0.0,
    }
    assert dense == {**dynhp, "arm": "dense", "%": 92.5, "points": 2.0, "x onnx": 1.0}
    assert (shot["arm"], shot["%"], shot["±"]) == ("one shot 0.5", 90.5, 2.12)
    assert (shot["points"], shot["± points"], shot["x onnx"]) == (0.0, 1.41, 0.25)


def test_epochs_before_and_after_the_cut_are_those_of_dynhp():
    plans = [torch_pruned.Plan.parsed(plan) for plan in ("0.25", "0.5:constant", "0.999")]
    cells = {cell.name: cell for cell in torch_pruned._arms("fashion_mnist", [3], plans, [])}
    shots = [cell for cell in cells.values() if len(cell.after) == 2]
    epochs = [(cells[cell.after[0]].scenario.train.epochs, cell.scenario.train.epochs) for cell in shots]
    assert epochs == [(3, 9), (6, 6), (11, 1)]
    assert all(cell.scenario.seed == 3 for cell in cells.values())
    assert [cells[cell.after[0]].scenario.train.lr_schedule for cell in shots] == [
        "cosine",
        "constant",
        "cosine",
    ]


def test_what_int8_costs_is_summed_up_over_seeds(monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "train_all", lambda *_: None)
    monkeypatch.setattr(int8, "checked_formats", lambda names: list(FORMATS.values()))
    found = {"seed-0": (90.0, 89.5), "seed-1": (91.0, 91.1)}

    def accuracies(record, form, calibration):
        plain, short = found[record.name]
        return {"float32": plain, "int8": short, "same": 99.0}

    monkeypatch.setattr(int8, "_accuracies", accuracies)
    rows = run_int8(["quickstart"], [0, 1], tmp_path, say=lambda text: None)["rows"]
    assert [row["format"] for row in rows] == ["onnx", "executorch", "litert"]
    assert rows[0] == {
        **{"scenario": "quickstart", "format": "onnx", "float32_%": 90.5, "int8_%": 90.3, "points": -0.2},
        **{"±": 0.42, "worst": -0.5, "same_%": 99.0},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fedhp.train("quickstart", tmp_path_factory.mktemp("trained") / "run", **{"train.epochs": 2})


class _InTorch(TorchProgram):
    """Runs the network itself in place of a float32 file, and answers 0 to all in place of an int8 one."""

    dtypes = ("float32", "int8")

    def __init__(self, record):
        self._trained = load_trained(record)

    def opened(self, path, threads=1):
        sample = raw_sample(
            self._trained.arch.input_shape, self._trained.normalisation, np.dtype("u1"), False
        )
        network = DeviceNetwork(self._trained, sample)
        if path.name == "short":
            return lambda sample: np.eye(10, dtype=np.float32)[:1]
        with torch.no_grad():
            return lambda sample: network(torch.from_numpy(sample)).detach().numpy()


def test_the_accuracy_in_float32_is_that_of_the_record_and_all_samples_count(run, monkeypatch):
    """Training measured it on all held-out samples too; who answers 0 to all is right on those of class 0."""
    form = _InTorch(run.folder)
    files = [SimpleNamespace(name="plain"), SimpleNamespace(name="short")]
    monkeypatch.setattr(int8, "export", lambda *_, **__: SimpleNamespace(files=files, failures={}))
    found = int8._accuracies(run.folder, form, 200)
    labels = open_dataset(run.config.data).test_labels
    assert found["float32"] == pytest.approx(100 * run.summary["final_accuracy"], abs=0.006)
    assert found["int8"] == pytest.approx(100 * np.mean(labels == 0), abs=0.006)


def test_a_network_that_no_format_takes_is_named(run, monkeypatch):
    failed = SimpleNamespace(files=[], failures={"onnx int8": "cannot take this network: Odd"})
    monkeypatch.setattr(int8, "export", lambda *_, **__: failed)
    with pytest.raises(ExportError, match="onnx int8: cannot take this network: Odd"):
        int8._accuracies(run.folder, FORMATS["onnx"], 200)
