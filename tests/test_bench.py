"""The benchmarks' arithmetic; what they measure is the documentation's business."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from fedhp.bench import device_bytes, devices, memory, process, reconcile, robust, stack, step
from fedhp.bench import round as rounds
from fedhp.bench.engine import run_engine
from fedhp.bench.fleet import run_fleet
from fedhp.bench.plain import BareClient, plain_averaging, small_state
from fedhp.bench.process import run_process
from fedhp.bench.reconcile import KINDS
from fedhp.bench.round import run_round
from fedhp.bench.runtimes import run_runtimes
from fedhp.bench.stack import run_stack
from fedhp.bench.step import run_step
from fedhp.cli import app
from fedhp.data import client_shard, open_dataset
from fedhp.errors import DataError


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


def test_a_table_of_lies_has_a_row_for_each_rule_and_lie_over_its_seeds(monkeypatch):
    monkeypatch.setattr(robust, "accuracies", lambda scenario, factor: [0.5, 0.9, 0.8 - scenario.seed / 10])
    told: list[str] = []
    result = robust.run_robust(seeds=[0, 2], rules=["mean", "median"], lies=["times 100"], say=told.append)
    assert told[:2] == ["mean, times 100, seed 0", "mean, times 100, seed 2"]
    assert [row["rule"] for row in result["rows"]] == ["mean", "median"]
    assert result["rows"][0] == {
        "rule": "mean",
        "lie": "times 100",
        "last_%": 70.0,
        "±": 14.1,
        "best_%": 90.0,
    }


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
    rows = {(row["arm"], row["limited"]): row for row in run_process(16 * 2**20, epochs=1)["rows"]}
    assert rows["dense", False]["outcome"] == "trained"
    assert rows["dense", True]["outcome"] == "out of memory"
    assert rows["dynhp", True]["outcome"] == "trained"
    assert rows["dynhp", True]["params_last"] < rows["dense", False]["params_last"] / 10
    for row in (rows["dense", False], rows["dynhp", False], rows["dynhp", True]):
        assert row["resident"] == pytest.approx(row["predicted"], rel=0.1)


@pytest.fixture(scope="module")
def fashion_mnist():
    try:
        open_dataset(plain_averaging(0).data)
    except DataError:
        pytest.skip("Fashion-MNIST is not here")


@pytest.mark.usefixtures("fashion_mnist")
@pytest.mark.parametrize("compression", [1.0, 10.0])
def test_a_round_is_measured_beside_the_bare_loop(compression):
    """At a tenth the network has a tenth of 784-300-100-10's 266,610 parameters, and no more."""
    result = run_round(0, clients=1000, per_round=3, compression=compression, rounds=1, repeats=1)
    assert (result["clients"], result["clients_per_round"]) == (1000, 3)
    assert 0.99 * 266_610 / compression < result["parameters"] <= 266_610 / compression
    assert result["ratio"] == pytest.approx(result["clients_per_second"] / result["bare_clients_per_second"])
    assert result["pss_mebibytes"] > 50


@pytest.mark.parametrize(("clients", "passes"), [(50, 1), (1000, 1), (10_000, 10), (50_000, 50)])
def test_a_client_of_a_larger_fleet_passes_as_many_samples(clients, passes):
    """50,000 samples: 10,000 clients have 5 each, and pass over them 10 times."""
    assert plain_averaging(0, clients).train.local_epochs == passes


@pytest.mark.usefixtures("fashion_mnist")
def test_the_bare_client_takes_the_steps_that_a_loop_by_hand_takes():
    """Of a tenth of the network, which takes a part of the pixels."""
    scenario = plain_averaging(0, 1000)
    bare, start = BareClient(scenario, 10.0), small_state(scenario, 10.0)
    shard = client_shard(scenario.data, 1000, scenario.seed, 7)
    torch.manual_seed(0)
    assert bare.train(start.weights, 7) == len(shard) == 50
    arrays = [torch.tensor(array, requires_grad=True) for array in start.weights.values()]
    torch.manual_seed(0)
    for rows in torch.randperm(50).split(10):
        images, labels = shard.batch(rows.numpy())
        hidden = images.flatten(1)[:, : arrays[0].shape[1]]
        for place in (0, 2, 4):
            hidden = torch.nn.functional.linear(hidden, arrays[place], arrays[place + 1])
            hidden = hidden.relu() if place < 4 else hidden
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(hidden, labels), arrays)
        with torch.no_grad():
            for array, gradient in zip(arrays, gradients, strict=True):
                array -= 0.1 * gradient
    for array, parameter in zip(arrays, bare.module.parameters(), strict=True):
        torch.testing.assert_close(array, parameter)


@pytest.mark.usefixtures("fashion_mnist")
@pytest.mark.integration
def test_the_same_round_is_measured_under_flower(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(rounds, "_FLOWER_ROUNDS", 1)
    result = run_round(1, clients=20, per_round=2, compression=10.0, vs_flower=True, rounds=1, repeats=1)
    times = result["clients_per_second"] / result["flower_clients_per_second"]
    assert result["times_flower"] == pytest.approx(times)


@pytest.mark.usefixtures("fashion_mnist")
def test_stacks_are_measured_beside_the_bare_loop():
    """Ten samples of 4 clients each, dense, and tracked at a tenth with momentum."""
    cases = [stack.CASES[0], stack.CASES[5]]
    dense, tracked = run_stack(cases, stacks=(1, 3), clients=4, samples=10, turns=1)["rows"]
    assert (dense["network"], dense["tracked"], dense["momentum"]) == ("784-300-100", False, 0.0)
    assert (tracked["tracked"], tracked["momentum"]) == (True, 0.9)
    assert min(dense["x1"], dense["x3"], tracked["x1"], tracked["bare_milliseconds"]) > 0
    assert (dense["same_bits"], tracked["same_bits"]) == (True, True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_device_without_pytorch_is_measured_beside_one_with_it():
    """Its memory, that is: how long either takes is the machine's business."""
    result = run_runtimes(rounds=1)
    theirs, ours = result["rows"]
    assert (theirs["runtime"], ours["runtime"]) == ("torch", "numpy")
    assert ours["training_mebibytes"] < 0.6 * theirs["training_mebibytes"]
    assert ours["training_mebibytes"] < 96
    assert result["ratio"] > 0


def test_bytes_are_those_of_messages_beyond_what_is_compact():
    """By hand: two rounds of 100 parameters and 20 units; 15 s of polling at 2 bytes a second, and an app."""
    rows = [{"params_received": 100, "bytes_down": 450}] * 2
    run, waiting = {"down": 1000.0, "seconds": 15.0}, {"down": 20.0, "seconds": 10.0}
    row = device_bytes._row("down", rows, 20, run, waiting, bundle=100)
    assert row == {
        "way": "down",
        "compact": 806,
        "payload": 900,
        "counted": 1000,
        "polling": 30,
        "app": 100,
        "messages": 870,
        "over": pytest.approx(870 / 806 - 1),
    }


def test_a_kill_is_told_by_what_became_of_the_answer_then():
    rows = [
        {"client": 0, "round": 1, "status": "failed", "failure": "before"},
        {"client": 0, "round": 3, "status": "failed", "failure": "Node Unavailable"},
        {"client": 1, "round": 2, "status": "ok", "failure": ""},
        {"client": 2, "round": 4, "status": "ok", "failure": ""},
    ]
    became = [devices._became(devices.Kill(client, 2), rows) for client in range(3)]
    assert became == ["Node Unavailable", "none was lost", "it was not asked"]
