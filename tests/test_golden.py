"""Golden runs: figures, structures and weights of fixed runs stay as they are, to the bit."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import golden
import pytest
from flwr.serverapp import Grid

import fedhp
from fedhp.references import CLIENT_APP, COHORT_APP
from fedhp.run.fleet_run import run_fleet
from fedhp.run.reporting import reporting
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.simulation.opening import open_grid
from strategies import STRATEGIES

LITTLE = {"train.epochs": 2, "data.max_train": 300, "prune.target_compression": 3}
NETWORKS: dict[str, Mapping[str, Any]] = {
    "mlp": {},
    "cnn": {"model.name": "cnn", "model.widths": [6, 8, 16], "train.batch_size": 4},
    "conv1d": {"model.name": "conv1d", "model.widths": [8, 12, 16]},
    # At a rate at which rounding alone decides no cut: at the scenario's own, weights that differ by 1e-7
    # come to losses that differ by 5 %, on one machine too.
    "resnet20": {"model.name": "resnet20", "model.widths": [6, 8, 12], "train.learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Grid]:
    """Two workers that all fleets of this file share: their start takes longer than a run."""
    chosen = scenario("dense")
    num_clients, timeout = chosen.fleet.num_clients, chosen.server.timeout_seconds
    simulation = replace(chosen.simulation, num_workers=2)
    with open_grid(simulation, CLIENT_APP, num_clients, timeout, cohort_app=COHORT_APP) as grid:
        yield grid


def scenario(strategy: str) -> Scenario:
    values = {"rounds": 3, "strategy.name": strategy, "simulation.num_workers": 0}
    return load_scenario("quickstart", values=values)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_fleet_in_one_process(strategy, tmp_path, holds_golden):
    run = fedhp.simulate(scenario(strategy), tmp_path / "run", show=False)
    holds_golden(f"run {strategy}", golden.digest(run))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_fleet_with_two_workers(strategy, tmp_path, holds_golden, workers):
    """Under the same name: results do not depend on the number of workers."""
    folder = tmp_path / "run"
    setup = prepare(scenario(strategy))
    with reporting(setup.scenario, folder, show=False) as trackers:
        run_fleet(workers, setup, trackers)
    holds_golden(f"run {strategy}", golden.digest(fedhp.load_run(folder)))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_without_a_fleet(network, tmp_path, holds_golden):
    trained = fedhp.train("quickstart", tmp_path / "run", **{**LITTLE, **NETWORKS[network]})
    holds_golden(f"train {network}", golden.digest(trained))


KEPT = {"structure": "aa", "weights": "bb", "parameters": [90, 40], "losses": [2.5, 1.0]}


@pytest.mark.parametrize(
    ("change", "to_the_bit", "told"),
    [
        ({}, True, []),
        (
            {"losses": [2.5, 1.0000000000000002]},
            True,
            ["losses:\n  was 2.5, 1\n  is  2.5, 1.0000000000000002"],
        ),
        ({"weights": "cc"}, True, ["weights:\n  was bb\n  is  cc"]),
        ({"weights": "cc", "losses": [2.5, 1.01]}, False, []),
        ({"losses": [2.5, 1.03]}, False, ["losses:\n  was 2.5, 1\n  is  2.5, 1.03"]),
        ({"parameters": [90, 41]}, False, ["parameters:\n  was 90, 40\n  is  90, 41"]),
        ({"losses": [2.5]}, False, ["losses:\n  was 2.5, 1\n  is  2.5"]),
    ],
)
def test_figures_that_differ_are_told_beside_each_other(change, to_the_bit, told):
    assert golden.differences(KEPT, {**KEPT, **change}, to_the_bit) == told
