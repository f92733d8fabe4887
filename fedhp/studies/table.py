"""From the records of a study's cells to its figures: one row per cell, one per arm over its seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fedhp.records.load import load_run
from fedhp.records.result import RunResult
from fedhp.sweep.averages import deviation_of, grouped, known, mean_of
from fedhp.sweep.cell import Cell, Outcome
from fedhp.sweep.texts import Row

_DENSE = "dense"
_ARM = ("scenario", "arm", "target")

# Figures of a cell, averaged over the seeds of its arm.
_AVERAGED = ("compression", "memory_end", "memory_mean", "time", "seconds")


def cell_rows(cells: Sequence[Cell], outcomes: Mapping[str, Outcome], root: Path) -> list[Row]:
    """Returns a row per cell: its labels, how it ended, and the figures of its record.

    ``memory_end`` and ``memory_mean`` are the memory model's bytes to train the final network, and the mean
    over the training of those of the steps taken, relative to training the full network; ``time`` is that of
    training, and ``below_dense`` the points of accuracy lost, relative to the dense cell of the same seed.
    """
    rows = []
    for cell in cells:
        outcome = outcomes[cell.name]
        figures = _figures(load_run(root / cell.name)) if outcome.has_record else {}
        rows.append({**cell.labels, "status": outcome.status, "reason": outcome.reason, **figures})
    dense = {_place(row): row for row in rows if row["arm"] == _DENSE and "last" in row}
    for row in rows:
        yardstick = dense.get(_place(row))
        if yardstick and "last" in row:
            row["below_dense"] = yardstick["last"] - row["last"]
            row["time"] = row["seconds"] / yardstick["seconds"]
    return rows


def _place(row: Row) -> tuple[Any, Any]:
    return row["scenario"], row["seed"]


def _figures(run: RunResult) -> Row:
    summary, clients = run.summary, run.clients
    full = summary["training_bytes_full"]
    return {
        "last": 100 * summary["final_accuracy"],
        "best": 100 * summary["best_accuracy"],
        "compression": summary["compression"],
        "memory_end": summary["training_bytes_final"] / full,
        "memory_mean": mean(clients["memory_mean_bytes"].tolist()) / full,
        "seconds": sum(clients["seconds"].tolist()),
    }


def arm_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns a row per scenario, arm and target: means over seeds, and deviations of the accuracies.

    What no cell of the arm has is None.
    """
    return [_arm(members) for members in grouped(rows, *_ARM)]


def _arm(members: Sequence[Row]) -> Row:
    row: Row = {key: members[0][key] for key in _ARM}
    row["seeds"] = len(known(members, "last"))
    for key in ("last", "best", "below_dense"):
        row[key], row[f"{key}_deviation"] = mean_of(members, key), deviation_of(members, key)
    row.update({key: mean_of(members, key) for key in _AVERAGED})
    row["reason"] = next((member["reason"] for member in members if member["reason"]), "")
    return row
