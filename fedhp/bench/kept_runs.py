"""Trainings on one device that a benchmark keeps, so that it goes on where it was cut short."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from fedhp.errors import TrainingError
from fedhp.model.state import ModelState
from fedhp.records.kept import kept_in
from fedhp.run.central import train_central
from fedhp.scenario.schema import SimulationConfig
from fedhp.sweep.cell import Cell, Outcome
from fedhp.sweep.folder import claim, held
from fedhp.sweep.running import run_cells

Start = Callable[[Cell, Path], ModelState]


def train_all(cells: Sequence[Cell], root: Path, title: str, say: Callable[[str], None]) -> None:
    """Trains what is not trained yet, one after another.

    Args:
        cells: What is trained.
        root: The folder of the records.
        title: What the benchmark is about, by which the folder is known again.
        say: Is told of each training that has ended.

    Raises:
        RecordError: If the folder holds something else, or another process is at work there.
        TrainingError: If a training was refused, or failed.
    """
    numbers = count(1)

    def on_done(cell: Cell, outcome: Outcome) -> None:
        say(f"{next(numbers)} of {len(cells)}: {cell.name} {outcome.status}")

    with held(root):
        claim(root, title)
        outcomes = run_cells(cells, root, SimulationConfig(num_workers=0), on_done)
    if lost := [f"{name}: {one.reason}" for name, one in outcomes.items() if not one.has_record]:
        raise TrainingError("\n  ".join([f"{len(lost)} of {len(outcomes)} trainings did not end", *lost]))


def from_fresh(cell: Cell, root: Path) -> None:
    """Trains a cell from fresh weights."""
    _train(cell, root)


def from_start(start: Start, cell: Cell, root: Path) -> None:
    """Trains a cell from a model that is made of its place and the folder of all."""
    _train(cell, root, start(cell, root))


def _train(cell: Cell, root: Path, start: ModelState | None = None) -> None:
    folder = root / cell.name
    kept = kept_in(folder) if folder.exists() else None
    train_central(cell.scenario, folder, start, show=False, kept=kept)
