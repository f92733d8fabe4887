"""The grids of `fedhp reproduce`: which cells each study has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedhp.errors import ScenarioError
from fedhp.pruning.criteria import CRITERIA
from fedhp.records.kept import Kept, kept_in
from fedhp.run.central import as_recorded, train_central
from fedhp.scenario.loading import given_keys, load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.studies.scratch import fresh_start
from fedhp.sweep.cell import Cell

SCENARIOS = ("mnist", "fashion_mnist", "cifar10")
TARGETS = (2.0, 5.0, 10.0, 20.0)
CRITERIA_SCENARIOS = ("fashion_mnist", "cifar10")
CRITERIA_TARGETS = (5.0, 10.0, 20.0)

# Keys that a study sets itself, cell by cell, or that name the cells' folders.
VARIED = ("name", "seed", "prune.target_compression")

# Arms of the study of DynHP, and how the tables call them.
DENSE, DYNHP, SCRATCH, ONE_CUT = "dense", "dynhp", "scratch", "one-cut"
ARMS = {
    DENSE: "dense",
    DYNHP: "DynHP",
    SCRATCH: "from scratch",
    ONE_CUT: "one cut",
}
ABOUT_ARMS = (
    "from scratch: DynHP's final network, trained from fresh weights. "
    "one cut: cut to the final size half-way through the training, the rest is fine-tuning."
)


@dataclass(frozen=True)
class Grid:
    """What every cell of a study shares.

    Attributes:
        scenarios: Names of scenarios.
        seeds: Seeds; each fixes initial weights and batches.
        overrides: Scenario values that hold in every cell, as on the command line.
        varied: Keys that the study sets itself, beside `VARIED`.

    Raises:
        ScenarioError: If an override cannot be read, or is of a key that the study sets itself.
    """

    scenarios: Sequence[str]
    seeds: Sequence[int]
    overrides: Sequence[str] = ()
    varied: Sequence[str] = ()

    def __post_init__(self) -> None:
        varied = [key for key in given_keys(self.overrides) if key in (*VARIED, *self.varied)]
        if varied:
            raise ScenarioError(
                f"{', '.join(varied)}: the study sets this itself, in each of its runs; leave it out "
                "(--seeds and --scenarios choose among its runs)"
            )

    def scenario(self, name: str, values: Mapping[str, Any]) -> Scenario:
        """Returns a cell's scenario, in the form in which it is recorded."""
        return as_recorded(load_scenario(name, self.overrides, values))


def dynhp_cells(grid: Grid, targets: Sequence[float] = TARGETS) -> list[Cell]:
    """Returns the cells that hold DynHP against the dense network and the controls of its kind.

    Those are the final network of DynHP trained from scratch (Liu et al. 2019, arXiv 1810.05270), and one
    cut to the final size half-way through the training, with the rest to recover; epochs are equal.
    """
    cells = []
    for name in grid.scenarios:
        for seed in grid.seeds:
            cells.append(_dense(grid, name, seed))
            for target in targets:
                dynhp = _cell(grid, name, DYNHP, target, seed, {"prune.target_compression": target})
                cut = {"prune.target_compression": target, "prune.start": 0.0, "prune.end": 0.5}
                cells.append(dynhp)
                cells.append(_cell(grid, name, ONE_CUT, target, seed, {**cut, "prune.cuts": 1}))
                scratch = _cell(grid, name, SCRATCH, target, seed, _NO_PRUNING, from_scratch)
                cells.append(replace(scratch, after=(dynhp.name,)))
    return cells


def criteria_cells(
    grid: Grid, targets: Sequence[float] = CRITERIA_TARGETS, criteria: Sequence[str] = tuple(CRITERIA)
) -> list[Cell]:
    """Returns the cells that hold the criteria against each other, and the dense network for comparison."""
    return [cell for name in grid.scenarios for cell in _criteria_of(grid, name, targets, criteria)]


def _criteria_of(grid: Grid, name: str, targets: Sequence[float], criteria: Sequence[str]) -> Iterator[Cell]:
    for seed in grid.seeds:
        yield _dense(grid, name, seed)
        for criterion in criteria:
            for target in targets:
                values = {"prune.criterion": criterion, "prune.target_compression": target}
                yield _cell(grid, name, criterion, target, seed, values)


_NO_PRUNING = {"prune.target_compression": 1.0, "prune.marginal": 0.0}


def _dense(grid: Grid, name: str, seed: int) -> Cell:
    return _cell(grid, name, DENSE, 1.0, seed, {**_NO_PRUNING, "memory.budget": ""})


def train(cell: Cell, root: Path) -> None:
    """Runs a cell on one device."""
    folder = root / cell.name
    train_central(cell.scenario, folder, show=False, kept=_kept(folder))


def from_scratch(cell: Cell, root: Path) -> None:
    """Trains the final network of the cell before, from fresh weights."""
    folder = root / cell.name
    start = fresh_start(cell.scenario, root / cell.after[0])
    train_central(cell.scenario, folder, start, show=False, kept=_kept(folder))


def _kept(folder: Path) -> Kept | None:
    """Returns where a cell goes on that was cut short."""
    return kept_in(folder) if folder.exists() else None


def _cell(
    grid: Grid,
    name: str,
    arm: str,
    target: float,
    seed: int,
    values: Mapping[str, Any],
    run: Callable[[Cell, Path], None] = train,
) -> Cell:
    scenario = grid.scenario(name, {**values, "seed": seed})
    place = arm if arm == DENSE else f"{arm}-{target:g}x"
    labels = {"scenario": scenario.name, "arm": arm, "target": target, "seed": seed}
    return Cell(f"{scenario.name}/{place}/seed-{seed}", scenario, run, labels)
