"""A fleet of four on data made here, with PyTorch and no other extra: CI tries it on every system."""

import tempfile
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord

from fedhp.federation import wire
from fedhp.federation.roster import Places, find_fleet
from fedhp.references import CLIENT_APP
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.simulation.opening import open_grid

ROUNDS, CLIENTS, SECONDS = 3, 4, 60.0


def main() -> None:
    """Trains two classes of points that a network can tell apart, and checks that it learns and is pruned."""
    labels = np.arange(400) % 2
    points = np.random.default_rng(0).normal(4.0 * labels[:, None] - 2.0, 1.0, (400, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, x_train=points, y_train=labels, x_test=points[:2], y_test=labels[:2])
        values = {"data.name": "npz", "data.root": str(data), "data.partition.name": "iid"}
        values |= {"rounds": ROUNDS, "fleet.num_clients": CLIENTS, "simulation.num_workers": 0}
        setup = prepare(load_scenario("quickstart", values=values))
    strategy = setup.strategy
    with open_grid(setup.scenario.simulation, CLIENT_APP, CLIENTS, SECONDS) as grid:
        found = find_fleet(grid, strategy.brief, Places(CLIENTS), SECONDS)
        assert not found.left_out, found.left_out
        strategy.enlist(found.devices)
        strategy.start(
            grid,
            wire.pack_state(strategy.state),
            num_rounds=ROUNDS,
            timeout=SECONDS,
            train_config=ConfigRecord(),
        )
    failures = [row.failure for row in strategy.outcome.rows if row.status != "ok"]
    assert not failures, failures
    accuracy = sum(row.value("accuracy") for row in strategy.outcome.rows) / CLIENTS
    left = strategy.state.num_parameters() / strategy.layout.num_parameters(strategy.layout.widths)
    assert accuracy > 0.9
    assert left < 0.5


if __name__ == "__main__":
    main()
