"""Whether the server's memory grows with the number of clients or rounds."""

import tempfile
from pathlib import Path
from typing import Any

from fedhp.api import simulate
from fedhp.bench.isolation import isolated
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario

_FEW_CLIENTS, _MANY_CLIENTS = 100, 1000
_FEW_ROUNDS, _MANY_ROUNDS = 20, 100
_MEBIBYTE = 2**20


def run_growth(num_workers: int = 2) -> dict[str, Any]:
    """Measures the peak resident memory of the server's process for few and many clients and rounds.

    Each run has a process of its own, so that none inherits another's peak. Every round samples 20 clients
    of the MLP; the clients train in the workers.

    Returns:
        One row per run (``clients``, ``rounds``, ``peak_mebibytes``) and the ratios of the peaks,
        ``by_clients`` and ``by_rounds``.
    """
    for num_clients in (_FEW_CLIENTS, _MANY_CLIENTS):
        prepare(load_scenario("fashion_mnist_fleet", values=_values(num_clients, _FEW_ROUNDS, 2)))
    rows = [
        _measured(num_clients, rounds, num_workers)
        for num_clients, rounds in (
            (_FEW_CLIENTS, _FEW_ROUNDS),
            (_MANY_CLIENTS, _FEW_ROUNDS),
            (_FEW_CLIENTS, _MANY_ROUNDS),
        )
    ]
    few, more_clients, more_rounds = (row["peak_mebibytes"] for row in rows)
    return {"rows": rows, "by_clients": more_clients / few, "by_rounds": more_rounds / few}


def _values(num_clients: int, rounds: int, num_workers: int) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "fleet.num_clients": num_clients,
        "data.partition.name": "iid",
        "train.local_epochs": 1,
        "simulation.num_workers": num_workers,
    }


def _measured(num_clients: int, rounds: int, num_workers: int) -> dict[str, Any]:
    peak = isolated(_run, num_clients, rounds, num_workers)
    return {"clients": num_clients, "rounds": rounds, "peak_mebibytes": peak / _MEBIBYTE}


def _run(num_clients: int, rounds: int, num_workers: int) -> int:
    import resource  # not on every platform, and only this command needs it

    with tempfile.TemporaryDirectory(prefix="fedhp-bench-") as folder:
        simulate(
            "fashion_mnist_fleet",
            Path(folder) / "run",
            **_values(num_clients, rounds, num_workers),
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
