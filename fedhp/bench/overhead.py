"""What a federation costs beside the clients' own training: dispatch, transport, aggregation, records."""

import tempfile
from pathlib import Path
from typing import Any

from fedhp.api import simulate

_SETTLED = 2  # the first rounds pay for imports and first measurements


def run_overhead(num_workers: int = 2, rounds: int = 8) -> dict[str, Any]:
    """Runs 100 clients of the MLP, all in every round, and compares the rounds with the training in them.

    A round's overhead is the time of all workers that was not spent in clients' training, as a share of
    the training: waiting for the last client of a round counts, the server's evaluation does not.

    Returns:
        ``overhead`` (median over rounds), and per round ``seconds`` and ``training_seconds``.
    """
    with tempfile.TemporaryDirectory(prefix="fedhp-bench-") as folder:
        run = simulate(
            "fashion_mnist_fleet",
            Path(folder) / "run",
            **{
                "rounds": rounds + _SETTLED,
                "strategy.name": "dense",
                "server.clients_per_round": 100,
                "simulation.num_workers": num_workers,
            },
        )
        table = run.rounds.set_index("round").loc[_SETTLED + 1 :]
        training = run.clients.groupby("round").seconds.sum().loc[_SETTLED + 1 :] / num_workers
    spent = table.seconds - table.evaluation_seconds
    return {
        "workers": num_workers,
        "clients": 100,
        "overhead": float((spent / training - 1).median()),
        "seconds": [float(value) for value in spent],
        "training_seconds": [float(value) for value in training],
    }
