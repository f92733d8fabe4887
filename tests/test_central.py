"""Training on one device: the client's loop, recorded like a fleet's run, within the budget."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import fedhp
from fedhp.data import test_shard as held_out
from fedhp.data import train_shard
from fedhp.errors import BudgetError, RecordError, ScenarioError
from fedhp.model.building import initial_state
from fedhp.records import load_state
from fedhp.records.rows import ROUNDS
from fedhp.run.central import prepare_central
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.training.evaluation import evaluate
from fedhp.training.trainer import train_locally
from fedhp.training.update import RoundTask

SMALL = {"model.widths": [24, 16], "data.max_train": 400, "train.epochs": 4}


def train(out, **overrides) -> fedhp.records.RunResult:
    return fedhp.train("quickstart", out, **{**SMALL, **overrides})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("central") / "run")


def fingerprint(run: fedhp.records.RunResult) -> list:
    """What must be the same in every run: all but times; None, unlike NaN, is equal to itself."""
    rounds = run.rounds.drop(columns=["seconds", "evaluation_seconds"]).astype(object)
    clients = run.clients.drop(columns="seconds").astype(object)
    return [table.where(table.notna(), None).to_dict("list") for table in (rounds, clients)]


def test_the_record_is_that_of_a_run_with_a_round_per_epoch(run):
    """A perceptron 64-24-16-10 has 24*65 + 16*25 + 10*17 = 2,130 parameters; the target is a sixth."""
    assert list(run.rounds.columns) == list(ROUNDS)
    assert run.rounds["round"].tolist() == [0, 1, 2, 3, 4]
    assert run.clients["round"].tolist() == [1, 2, 3, 4]
    assert run.summary["status"] == "finished"
    assert (run.summary["rounds"], run.summary["params_full"]) == (4, 2130)
    assert run.rounds["params"].iloc[0] == 2130
    assert run.summary["params_final"] <= 2130 / 6
    assert run.rounds["accuracy"].iloc[-1] > 0.5 > 0.2 > run.rounds["accuracy"].iloc[0]
    assert (run.config.rounds, run.config.train.epochs, run.config.train.local_epochs) == (4, 4, 1)
    assert {file.name for file in run.folder.iterdir()} == {
        *("config.yaml", "events.log", "summary.json"),
        *("rounds.parquet", "clients.parquet", "model.safetensors"),
    }


def test_an_epochs_row_tells_of_that_epoch(run):
    """Peaks fall with the model; the mean of an epoch lies between its end's bytes and its peak."""
    clients, rounds = run.clients, run.rounds.set_index("round")
    assert clients["params_received"].tolist() == rounds["params"].tolist()[:-1]
    assert clients["params_sent"].tolist() == rounds["params"].tolist()[1:]
    assert clients["memory_predicted_bytes"].is_monotonic_decreasing
    assert clients["memory_measured_bytes"].iloc[-1] < clients["memory_measured_bytes"].iloc[0]
    assert (clients["memory_mean_bytes"] <= clients["memory_predicted_bytes"]).all()
    assert (clients["memory_mean_bytes"].to_numpy() >= rounds["training_bytes"].to_numpy()[1:]).all()
    assert clients["memory_predicted_bytes"].iloc[0] == run.summary["training_bytes_full"]


def test_it_is_the_loop_of_a_client(run):
    """One task of one round with all epochs, on all training rows, gives the recorded weights to the bit."""
    scenario = load_scenario("quickstart", values=SMALL)
    shard = train_shard(scenario.data)
    prune = replace(scenario.prune, blend=0.0)
    recipe = replace(
        recipe_of(scenario, shard.input_shape, shard.num_classes),
        rounds=1,
        train=replace(scenario.train, local_epochs=4),
        prune=prune,
    )
    profile = prepare_central(scenario).profile
    start = initial_state(recipe.architecture, scenario.seed)
    update = train_locally(recipe, RoundTask(1, 0, profile, start), shard)
    recorded, _ = load_state(run.folder)
    assert recorded.structure == update.state.structure
    for name, weights in update.state.weights.items():
        assert np.array_equal(recorded.weights[name], weights)
    assert update.statistics.memory_mean_bytes == pytest.approx(
        run.clients["memory_mean_bytes"].mean(), abs=1
    )
    assert update.statistics.memory_predicted_bytes == run.clients["memory_predicted_bytes"].max()
    assert update.statistics.memory_measured_bytes == run.clients["memory_measured_bytes"].max()
    accuracy, _ = evaluate(recipe.architecture, update.state, held_out(scenario.data))
    assert run.summary["final_accuracy"] == accuracy


def test_the_same_seed_gives_the_same_record_and_another_seed_another(run, tmp_path):
    assert fingerprint(train(tmp_path / "again")) == fingerprint(run)
    other = train(tmp_path / "other", seed=1)
    assert other.rounds["structure"].iloc[-1] != run.rounds["structure"].iloc[-1]


def test_the_model_loads_and_has_the_accuracy_of_the_record(run):
    model = fedhp.load_model(run.folder)
    images, labels = held_out(run.config.data).batch(np.arange(360))
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(run.summary["final_accuracy"], abs=1e-9)


@pytest.mark.parametrize("policy", ["fixed", "fill"])
def test_a_budget_is_never_exceeded_and_decides_where_training_starts(tmp_path, policy):
    """16 KiB hold about half of the full model; `fill` grows the batch as far as they allow."""
    run = train(tmp_path / "run", **{"memory.budget": "16KiB", "memory.batch_policy": policy})
    assert (run.clients["memory_budget_bytes"] == 16 * 1024).all()
    assert (run.clients["memory_predicted_bytes"] <= 16 * 1024).all()
    assert (run.clients["memory_measured_bytes"] <= 16 * 1024).all()
    assert run.summary["training_bytes_full"] > 16 * 1024
    assert run.rounds["params"].iloc[0] == run.clients["params_received"].iloc[0] < 2130
    grown = run.clients["batch_size_last"].iloc[-1] > run.clients["batch_size_first"].iloc[0]
    assert grown == (policy == "fill")


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"train.epochs": 0}, ScenarioError),
        ({"memory.budget": "plenty"}, ScenarioError),
        ({"memory.budget": "512B"}, BudgetError),
        ({"prune.target_compression": 1000}, ScenarioError),
    ],
)
def test_what_is_refused_leaves_no_folder_behind(tmp_path, overrides, error):
    with pytest.raises(error):
        train(tmp_path / "run", **overrides)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_record_is_refused(run):
    with pytest.raises(RecordError, match="nothing is overwritten"):
        train(run.folder)


def test_what_a_command_has_no_use_for_is_told(run, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "fedhp")
    train(tmp_path / "run", rounds=3, **{"train": {"local_epochs": 2, "epochs": 1}})
    assert "'fedhp train' has no use for rounds, train.local_epochs, and" in caplog.text
    caplog.clear()
    for_fleets = {"train.proximal_mu": 1.0, "train.masked_loss": True, "data.local_test": 0.2}
    ignored = train(tmp_path / "ignored", **for_fleets)
    assert f"has no use for {', '.join(sorted(for_fleets))}, and" in caplog.text
    assert fingerprint(ignored) == fingerprint(run)
    small = {**SMALL, "rounds": 1, "simulation.num_workers": 0, "fleet.num_clients": 2}
    fedhp.simulate("quickstart", tmp_path / "fleet", **small)
    assert "'fedhp run' has no use for train.epochs, and" in caplog.text


def test_torch_has_its_threads_before_anything_is_built(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fedhp.run.central.prepare_central", lambda *_: seen.append(torch.get_num_threads()) or 1 / 0
    )
    before = torch.get_num_threads()
    for threads in (1, 2):
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / str(threads), **{"simulation.threads_per_worker": threads})
    assert seen == [1, 2]
    assert torch.get_num_threads() == before
