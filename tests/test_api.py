"""fedhp from Python, end to end on a small fleet: the record, the model, and the same seed's same bits."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

import fedhp
from fedhp.data import Normalisation, open_dataset, partition_rows
from fedhp.data import test_shard as held_out
from fedhp.errors import BudgetError, DataError, RecordError, ScenarioError, TrainingError
from fedhp.model.inference import normalised
from fedhp.model.structure import Structure
from fedhp.records.rows import CLIENTS, ROUNDS
from fedhp.scenario.loading import load_scenario

SMALL = {
    "rounds": 3,
    "fleet.num_clients": 8,
    "model.widths": [24, 16],
    "data.max_train": 600,
    "simulation.num_workers": 0,
    "fleet.classes": [{"name": "gateway", "memory": "256KiB"}, {"name": "sensor", "memory": "24KiB"}],
}


def simulate(out, **overrides) -> fedhp.records.RunResult:
    return fedhp.simulate("quickstart", out, **{**SMALL, **overrides})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("api") / "run")


def test_the_frames_have_the_columns_of_the_record(run):
    assert list(run.rounds.columns) == list(ROUNDS)
    assert list(run.clients.columns) == list(CLIENTS)
    assert run.rounds["round"].tolist() == [0, 1, 2, 3]
    assert run.clients["client"].tolist() == list(range(8)) * 3
    assert run.clients["device_class"].tolist() == ["gateway", "sensor"] * 12


def test_no_client_failed_and_no_budget_was_exceeded(run):
    assert set(run.clients["status"]) == {"ok"}
    assert (run.clients["memory_predicted_bytes"] <= run.clients["memory_budget_bytes"]).all()
    assert (run.clients["memory_measured_bytes"] <= run.clients["memory_budget_bytes"]).all()
    assert run.rounds["num_failures"].sum() == run.rounds["budget_violations"].sum() == 0
    assert run.summary["budget_violations"] == 0


def test_after_the_last_round_the_target_is_reached(run):
    """A perceptron 64-24-16-10 has 24*65 + 16*25 + 10*17 = 2,130 parameters; the target is a sixth."""
    assert run.summary["params_full"] == 2130
    assert run.rounds["params"].iloc[0] == 2130
    assert run.rounds["params"].iloc[-1] <= 2130 / run.config.prune.target_compression
    assert run.rounds["compression"].iloc[-1] >= run.config.prune.target_compression
    assert run.rounds["params"].is_monotonic_decreasing


WIDTHS = {"inputs": 64, "fc1": 24, "fc2": 16}


def structures_of(run) -> list[Structure]:
    structures = []
    for text in run.rounds["structure"]:
        packed = {g: np.frombuffer(bytes.fromhex(b), np.uint8) for g, b in json.loads(text).items()}
        structures.append(Structure.from_bits(packed, WIDTHS))
    return structures


def test_the_global_structure_only_shrinks(run):
    structures = structures_of(run)
    assert structures[0] == Structure.full(WIDTHS)
    assert all(a.contains(b) for a, b in pairwise(structures))


def test_the_change_of_the_structure_is_the_share_of_its_units_that_the_round_has_cut(run):
    """Where none comes back, the units of both are those after, and of either those before: 104 at first."""
    numbers = [one.num_units() for one in structures_of(run)]
    change = run.rounds["structure_change"].tolist()
    assert numbers[0] == 104
    assert np.isnan(change[0])
    assert change[1:] == [1 - after / before for before, after in pairwise(numbers)]
    assert change[1] > 0


def test_a_unit_that_went_had_lost_a_vote_and_one_that_was_gone_had_none(run):
    steps = pairwise(structures_of(run))
    assert run.rounds["votes"].isna().tolist() == [True, False, False, False]
    for (before, after), text in zip(steps, run.rounds["votes"][1:], strict=True):
        for group, shares in json.loads(text).items():
            share = np.array(shares, float)  # of every unit of the full model
            assert np.isnan(share[~before.masks[group]]).all()
            assert (share[before.masks[group] & ~after.masks[group]] < 1).all()


def test_the_partition_is_that_of_the_samples_trained_on(run):
    sizes = run.partition.groupby("client")["count"].sum()
    assert sizes.to_dict() == run.clients.groupby("client")["num_examples"].first().to_dict()
    assert run.partition["count"].sum() == 600
    assert set(run.partition["label"]) == set(range(10))


def test_small_devices_were_sent_less_than_large_ones(run):
    first = run.clients[run.clients["round"] == 1].groupby("device_class")["params_received"].max()
    assert first["gateway"] == 2130
    assert first["sensor"] < 2130


def test_the_model_learned(run):
    assert run.rounds["loss"].iloc[-1] < run.rounds["loss"].iloc[0]


def test_the_configuration_is_the_scenario_that_ran(run):
    assert run.config == load_scenario("quickstart", values=SMALL)
    assert load_scenario(run.folder / "config.yaml") == run.config


def test_a_run_loads_again(run):
    again = fedhp.load_run(run.folder)
    assert again.summary == run.summary
    assert again.rounds.equals(run.rounds)
    assert again.clients.equals(run.clients)


def test_the_report_has_the_name_that_the_readme_gives_it():
    """In a process of its own: here, some other test has imported the module already."""
    code = "import fedhp; assert 'report' in dir(fedhp); print(fedhp.report.write_report.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("write_report\n", "")


def test_the_loaded_model_has_the_accuracy_that_the_record_says(run):
    model = fedhp.load_model(run.folder)
    test = held_out(run.config.data)
    images, labels = test.batch(np.arange(len(test)))
    assert not model.training
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(run.rounds["accuracy"].iloc[-1], abs=1e-9)
    assert sum(p.numel() for p in model.parameters()) == run.summary["params_final"]


def fingerprint(run: fedhp.records.RunResult) -> list:
    """What a run's outcome is, without durations."""
    rounds = run.rounds[["accuracy", "loss", "params", "structure", "bytes_up", "bytes_down"]]
    rounds, clients = rounds.fillna(-1), run.clients.drop(columns="seconds").fillna(-1)
    return [*rounds.to_dict("list").items(), *clients.to_dict("list").items()]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run, tmp_path):
    assert fingerprint(simulate(tmp_path / "again")) == fingerprint(run)
    other = simulate(tmp_path / "other", seed=1)
    assert other.rounds["structure"].iloc[-1] != run.rounds["structure"].iloc[-1]
    assert other.rounds["loss"].iloc[-1] != run.rounds["loss"].iloc[-1]


def test_local_accuracies_keep_the_global_and_the_personal_model_apart(run, tmp_path):
    """A fifth of each client's rows, rounded down, is held out and never trained on."""
    local = simulate(tmp_path / "local", **{"data.local_test": 0.2})
    sizes = [len(rows) for rows in partition_rows(local.config.data, 8, 0)]
    for number, rows in local.clients.groupby("round"):
        assert rows["num_local_test"].tolist() == [size // 5 for size in sizes]
        assert rows["num_examples"].tolist() == [size - size // 5 for size in sizes]
        total = rows["num_local_test"].sum()
        for key in ("local_accuracy_global", "local_accuracy_personal"):
            assert rows[key].between(0, 1).all()
            right = rows[key] * rows["num_local_test"]
            assert np.allclose(right, right.round()), "shares of as many rows"
            mean = right.sum() / total
            assert local.rounds.set_index("round").loc[number, key] == pytest.approx(mean)
    assert local.rounds[["local_accuracy_global", "local_accuracy_personal"]].iloc[0].isna().all()
    last = local.rounds.iloc[-1]
    summary = local.summary
    assert summary["local_accuracy_global"] == last["local_accuracy_global"]
    assert summary["local_accuracy_personal"] == last["local_accuracy_personal"]
    assert summary["local_accuracy_global"] < summary["local_accuracy_personal"], "of skewed clients, early"
    assert local.clients["memory_measured_bytes"].le(local.clients["memory_budget_bytes"]).all()
    assert run.summary["local_accuracy_global"] is run.summary["local_accuracy_personal"] is None
    assert set(run.clients["num_local_test"]) == {0}


@pytest.mark.integration
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_no_bit(run, tmp_path, num_workers):
    with_ray = simulate(tmp_path / "ray", **{"simulation.num_workers": num_workers})
    assert fingerprint(with_ray) == fingerprint(run)


def test_sampled_rounds_are_the_same_again(tmp_path):
    sampled = {"server.clients_per_round": 3, "rounds": 2}
    one, again = simulate(tmp_path / "one", **sampled), simulate(tmp_path / "again", **sampled)
    assert fingerprint(one) == fingerprint(again)
    assert one.clients.groupby("round").size().tolist() == [3, 3]


@pytest.mark.parametrize(
    ("name", "classes"),
    [("dense", {"gateway", "sensor"}), ("exclusive", {"gateway"})],
)
def test_the_yardsticks_train_the_full_model_on_their_devices(tmp_path, name, classes):
    run = simulate(tmp_path / name, **{"strategy.name": name, "rounds": 2})
    assert set(run.clients["device_class"]) == classes
    assert set(run.clients["params_received"]) == set(run.clients["params_sent"]) == {2130}
    assert run.rounds["params"].tolist() == [2130] * 3


def test_a_scenario_object_runs_and_takes_no_overrides(tmp_path):
    scenario = load_scenario("quickstart", values={**SMALL, "rounds": 1})
    assert fedhp.simulate(scenario, tmp_path / "run").config == scenario
    with pytest.raises(TypeError, match="overrides"):
        fedhp.simulate(scenario, tmp_path / "other", rounds=2)


def test_an_existing_record_is_refused_before_anything_starts(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it would fail
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    with pytest.raises(RecordError, match=r"nothing is overwritten.*--out"):
        simulate(run.folder, **{"simulation.num_workers": 1})
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_a_run_names_its_folder_in_full(tmp_path, monkeypatch):
    """Its tables are read when asked for, perhaps from elsewhere."""
    monkeypatch.chdir(tmp_path)
    one = simulate("run", rounds=1)
    assert one.folder == tmp_path / "run"
    monkeypatch.chdir(tmp_path.parent)
    assert len(one.rounds) == 2


@pytest.mark.parametrize("load", [fedhp.load_run, fedhp.load_model])
def test_a_folder_that_is_not_there_is_refused_as_that(load, tmp_path):
    with pytest.raises(RecordError, match=r"^no run record at nope: there is no such folder; give"):
        load("nope")
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"^no run record at .*file: it is no folder; give the folder"):
        load(tmp_path / "file")


def test_classes_are_told_in_the_scenarios_order(tmp_path):
    """With shares 1 and 3, the first client is of the second class."""
    classes = [{"name": "big", "share": 1}, {"name": "tiny", "share": 3, "memory": "48KiB"}]
    one = simulate(tmp_path / "run", rounds=1, **{"fleet.classes": classes})
    assert one.clients["device_class"][0] == "tiny"
    start = (one.folder / "events.log").read_text(encoding="utf-8").splitlines()[0]
    assert "; 2 big (1.00 GiB), 6 tiny (48.0 KiB); " in start


def test_an_empty_folder_is_taken(tmp_path):
    assert simulate(tmp_path, rounds=1).folder == tmp_path


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"trian.batch_size": 3}, ScenarioError),
        ({"strategy.name": "nonsense"}, ScenarioError),
        ({"fleet.classes": [{"name": "mote", "memory": "512B"}]}, BudgetError),
    ],
)
def test_what_is_refused_leaves_no_folder_behind(tmp_path, overrides, error):
    with pytest.raises(error):
        simulate(tmp_path / "run", **overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rounds", "said", "num_in_vain"),
    [
        (1, "in round 1", 1),
        (2, "in rounds 1 to 2", 2),
        (3, "in rounds 1 to 3", 3),
        (9, "in rounds 1 to 3", 3),
    ],
)
def test_a_run_in_which_nobody_answers_stops_and_keeps_its_record(
    tmp_path, monkeypatch, rounds, said, num_in_vain
):
    """Three rounds in a row without a reply end a run, and so do all that it has; what happened can be read.

    Of eight clients, 0, 3 and 6 lose their own disk each, which is one cause, and others fail in two ways.
    """
    causes = {0: "disk 0 is gone", 3: "disk 3 is gone", 6: "disk 6 is gone", 1: "no rows", 2: "no rows"}

    def fail(_, members, __):
        own = [one.task.client for one in members]
        return [DataError(causes.get(one, f"no {'label' if one < 6 else 'file'}")) for one in own]

    monkeypatch.setattr("clients.cohort_app.train_cohort", fail)
    with pytest.raises(TrainingError) as refusal:
        simulate(tmp_path / "run", rounds=rounds)
    assert str(refusal.value) == (
        f"all clients failed {said}; the most frequent cause ({3 * num_in_vain} of {8 * num_in_vain}), of "
        f"client 0 in round 1: client: DataError: disk 0 is gone"
    )
    run = fedhp.load_run(tmp_path / "run")
    assert (run.summary["status"], run.summary["cause"]) == ("failed", str(refusal.value))
    assert list(run.rounds["num_replies"]) == [0] * (num_in_vain + 1)
    assert list(run.clients["failure"][:2]) == [
        "client: DataError: disk 0 is gone",
        "client: DataError: no rows",
    ]
    events = (tmp_path / "run" / "events.log").read_text(encoding="utf-8")
    assert f"stopped: all clients failed {said}" in events
    assert "finished" not in events


def test_a_run_whose_last_rounds_alone_are_in_vain_is_finished(tmp_path, monkeypatch):
    """One round of three had replies: what it learned is there."""
    from clients import cohort_app

    train = cohort_app.train_cohort

    def train_once(recipe, members, stack):
        if members[0].task.round > 1:
            return [DataError("the disk is gone")] * len(members)
        return train(recipe, members, stack)

    monkeypatch.setattr("clients.cohort_app.train_cohort", train_once)
    run = simulate(tmp_path / "run")
    assert run.summary["status"] == "finished"
    assert list(run.rounds["num_replies"]) == [0, 8, 0, 0]


def told(folder):
    """The metadata of a model file, which are one text."""
    with safe_open(folder / "model.safetensors", "np") as file:
        (text,) = file.metadata().values()
    return json.loads(text)


def small_net(num_classes):
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, num_classes))


OWN = {"model.widths": [], "prune.target_compression": 1.5}


@pytest.mark.parametrize("model", ["mlp", "cnn", "own"])
def test_a_loaded_model_is_made_of_torchs_own_layers(model, tmp_path):
    """Quantisers match exact types, exporters read memory in its usual order; both err without a word."""
    own = {**OWN, "model.target": f"{__name__}:small_net"}
    named = {"mlp": {}, "cnn": {"model.name": "cnn", "model.widths": [8, 6]}, "own": own}[model]
    simulate(tmp_path / "run", rounds=1, **named)
    loaded = fedhp.load_model(tmp_path / "run", trust_target=True)
    assert {type(layer) for layer in loaded.modules() if list(layer.parameters(recurse=False))} <= {
        nn.Linear,
        nn.Conv2d,
        nn.BatchNorm2d,
    }
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())
    assert all(p.stride() == torch.empty(p.shape).stride() for p in loaded.parameters())


def test_the_file_holds_what_inference_needs(tmp_path):
    """Features of unlike scale, with text labels: raw rows get the answers that normalised ones get."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    rows = (rng.normal(size=(400, 5)) + labels[:, None]) * [1e-3, 1, 10, 1e3, 1e6] + [0, 5, 0, 3e7, 0]
    texts = np.array(["ant", "bee", "cat"])[labels]
    split = {"x_train": rows[:300], "y_train": texts[:300], "x_test": rows[300:], "y_test": texts[300:]}
    np.savez(tmp_path / "own.npz", **split)
    data = {"data.name": "npz", "data.root": str(tmp_path / "own.npz")}
    run = simulate(tmp_path / "run", rounds=2, **data)
    raw = fedhp.load_model(run.folder, normalise=True)
    assert raw.label_names == ("ant", "bee", "cat")
    plain = fedhp.load_model(run.folder)
    mean, std = rows[:300].mean(0), rows[:300].std(0)
    by_hand = torch.tensor((rows[300:] - mean) / std, dtype=torch.float32).reshape(100, 1, 1, 5)
    with torch.no_grad():
        torch.testing.assert_close(raw(torch.tensor(rows[300:])), plain(by_hand), atol=1e-5, rtol=1e-5)
        right = np.array(raw.label_names)[raw(torch.tensor(rows[300:])).argmax(1)] == texts[300:]
    assert right.mean() == pytest.approx(run.summary["final_accuracy"], abs=1e-9)


def test_bytes_are_scaled_before_they_are_normalised(run):
    test = open_dataset(run.config.data)
    images = torch.from_numpy(np.array(test.test_images))
    assert images.dtype == torch.uint8
    raw, plain = fedhp.load_model(run.folder, normalise=True), fedhp.load_model(run.folder)
    with torch.no_grad():
        wanted = plain(((images / 255 - test.mean.item()) / test.std.item()).float())
        torch.testing.assert_close(raw(images), wanted, atol=1e-4, rtol=1e-4)
        assert torch.equal(raw(images[:, 0]), raw(images))


@pytest.mark.parametrize(
    ("shape", "axis", "layout", "order"),
    [
        ((3, 8, 5), 0, "auto", (0, 2, 3, 1)),  # colours last
        ((1, 6, 20), 1, "auto", (0, 1, 3, 2)),  # channels of windows last
        ((1, 6, 6), 1, "channels_last", (0, 1, 3, 2)),  # whose order the shape does not tell
    ],
)
def test_raw_samples_are_taken_in_the_order_of_axes_that_the_data_has(shape, axis, layout, order):
    """Against samples that NumPy normalises in the training's order; axes of one entry may be left out."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4, *shape)) * 3 + 7
    normalisation = Normalisation(
        tuple(rng.normal(size=shape[axis])), tuple(rng.uniform(1, 2, shape[axis])), axis
    )
    mean, std = normalisation.shaped(normalisation.mean), normalisation.shaped(normalisation.std)
    wanted = ((samples - mean) / std).astype(np.float32)
    layer = normalised(torch.nn.Identity(), normalisation, shape, layout)
    as_stored = samples.transpose(order)
    for raw in (as_stored, as_stored.squeeze()):
        np.testing.assert_allclose(layer(torch.tensor(raw)).numpy(), wanted, rtol=1e-6)
    if layout == "auto":
        np.testing.assert_allclose(layer(torch.tensor(samples)).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", ">i8", "?", "f2", ">f4", "f8", "g"])
def test_raw_samples_may_be_arrays_of_any_type_that_data_has(kind):
    """Against NumPy's own arithmetic; turned about and read-only, as a part of a file may be."""
    samples = np.random.default_rng(0).integers(0, 200, (6, 4, 5)).astype(kind)[::-1]
    samples.setflags(write=False)
    layer = normalised(torch.nn.Identity(), Normalisation((0.25,), (2.0,)), (1, 4, 5))
    values = samples.astype(float) / (255 if kind == "u1" else 1)
    np.testing.assert_allclose(layer(samples)[:, 0], (values - 0.25) / 2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["U3", "c16", "O"])
def test_raw_samples_that_are_no_numbers_are_refused(kind):
    layer = normalised(torch.nn.Identity(), Normalisation((0.0,), (1.0,)), (1, 4, 5))
    with pytest.raises(TypeError, match="Cannot cast"):
        layer(np.ones((2, 4, 5)).astype(kind))


@pytest.mark.parametrize("wrong", [(8, 8), (4, 64), (4, 8, 9), (4, 8, 8, 2)])
def test_raw_samples_of_another_shape_are_refused_with_the_one_that_is_taken(run, wrong):
    """A single sample, flattened ones, other sizes; of as many entries, too: their order is not known."""
    with pytest.raises(ValueError, match=r"\('batch', 8, 8\)"):
        fedhp.load_model(run.folder, normalise=True)(torch.zeros(wrong))


def test_two_saves_of_one_model_are_one_file(run, tmp_path):
    """safetensors writes several texts in an order that it draws anew each time."""
    files = [simulate(tmp_path / name, rounds=1).folder / "model.safetensors" for name in "ab"]
    assert len({file.read_bytes() for file in files}) == 1


def test_code_that_a_record_names_is_run_only_where_it_is_trusted(tmp_path, monkeypatch):
    """The module that it names writes down that it was imported."""
    marks = tmp_path / "marks"
    code = f"import pathlib; from test_api import small_net as build; pathlib.Path({str(marks)!r}).touch()"
    (tmp_path / "strange_net.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    simulate(tmp_path / "run", rounds=1, **OWN, **{"model.target": "strange_net:build"})
    del sys.modules["strange_net"]
    marks.unlink()
    with pytest.raises(RecordError, match=r"names a network of its own, .* trust the record") as refusal:
        fedhp.load_model(tmp_path / "run")
    assert "strange_net" not in str(refusal.value)
    mine = fedhp.load_model(tmp_path / "run", target=small_net)
    assert not marks.exists()
    theirs = fedhp.load_model(tmp_path / "run", trust_target=True)
    assert marks.exists()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_file_with_values_that_are_not_finite_is_refused(run, tmp_path, value):
    tensors = load_file(run.folder / "model.safetensors")
    tensors["fc1.bias"][1] = value
    save_file(tensors, tmp_path / "model.safetensors", {"fedhp": json.dumps(told(run.folder))})
    with pytest.raises(RecordError, match=r": tensor 'fc1.bias' of the model holds values .* not finite$"):
        fedhp.load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "cnn"), ("name", "unheard"), ("widths", [3, 2]), ("colour", "red")],
)
def test_a_model_file_that_does_not_match_is_refused(run, tmp_path, key, value):
    metadata = told(run.folder)
    model = {**metadata["model"], key: value}
    tensors = load_file(run.folder / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", {"fedhp": json.dumps({**metadata, "model": model})})
    with pytest.raises(RecordError, match="load it with the version of fedhp that wrote it"):
        fedhp.load_model(tmp_path)


def test_a_model_of_before_inputs_could_be_cut_is_read(tmp_path):
    """Its record does not name the key `prune_inputs`, and each key of the metadata has a text of its own."""
    run = simulate(tmp_path / "run", rounds=1, **{"model.prune_inputs": False})
    file = run.folder / "model.safetensors"
    metadata = told(run.folder)
    del metadata["model"]["prune_inputs"], metadata["normalisation"], metadata["label_names"]
    save_file(load_file(file), file, {key: json.dumps(value) for key, value in metadata.items()})
    loaded = fedhp.load_model(run.folder)
    assert sum(p.numel() for p in loaded.parameters()) == run.summary["params_final"]
    with pytest.raises(
        RecordError, match="does not tell how samples were normalised; load it with the version"
    ):
        fedhp.load_model(run.folder, normalise=True)


def test_labels_that_count_from_one_are_noted(tmp_path):
    """Ten classes with labels 1 to 10: nothing has label 0, and the run goes on."""
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8), np.uint8)
    labels = np.arange(400) % 10 + 1
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20] - 1)
    one = simulate(tmp_path / "run", rounds=1, **{"data.name": "npz", "data.root": str(file)})
    told = (one.folder / "events.log").read_text(encoding="utf-8")
    assert "no training sample has label 0, of 0 to 10; 2 of 20 held-out samples have" in told
    assert "subtract 1" in told
    assert one.summary["status"] == "finished"


@pytest.mark.parametrize("start", [fedhp.simulate, fedhp.train])
@pytest.mark.parametrize("out", ["rounds=3", "train.learning_rate=0.1"])
def test_a_folder_that_reads_like_an_override_is_refused_before_anything_is_run(
    tmp_path, monkeypatch, start, out
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError, match=rf"reads like an override: '{out}'.*by name.*'\./{out}'"):
        start("quickstart", out)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_be_named_like_an_override_where_it_is_plainly_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("./rounds=1", Path("alpha=1")):
        assert simulate(folder, rounds=1).folder == (tmp_path / folder).resolve()


@pytest.mark.parametrize(("key", "section"), [("model.target", "model"), ("strategy.name", "strategy")])
@pytest.mark.parametrize("reference", ["nets:", ":build", "no_such_module_of_mine:build", "nets.py:build"])
def test_a_wrong_reference_is_told_with_its_key(tmp_path, key, section, reference):
    with pytest.raises(ScenarioError, match=f"^{re.escape(key)}: "):
        simulate(tmp_path / section, **{key: reference})


@pytest.mark.parametrize(("strategy", "warned"), [("heterofl", True), ("mask_intersection", False)])
def test_pruning_that_a_strategy_ignores_is_warned_of(strategy, warned, caplog, tmp_path):
    values = {"strategy.name": strategy, "prune": {"cuts": 5}, "simulation.num_workers": 0, "rounds": 1}
    fedhp.simulate("quickstart", tmp_path / "run", show=False, **values)
    said = f"strategy '{strategy}' prunes nothing: it ignores prune.cuts"
    assert (said in caplog.text) is warned
