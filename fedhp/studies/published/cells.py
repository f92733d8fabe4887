"""The runs of published tables, each a simulated fleet."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhp.api import resume, simulate
from fedhp.errors import ScenarioError
from fedhp.scenario.loading import given_keys, load_scenario
from fedhp.scenario.schema import SimulationConfig
from fedhp.studies.published.tables import TABLES, Line
from fedhp.sweep.cell import Cell

# What makes runs short: their figures mean nothing.
TASTE = {"rounds": 2, "data.max_train": 2000}


def chosen_lines(given: str) -> list[tuple[str, Line]]:
    """Returns lines with their tables' names, in order.

    Args:
        given: Tables (``niid``) and single lines (``heterofl/d-e``), by commas; none for all that there are.

    Raises:
        ScenarioError: If there is none of that name.
    """
    every = [(name, line) for name, table in TABLES.items() for line in table.lines]
    wanted = {name.strip(): None for name in given.split(",") if name.strip()} or dict.fromkeys(TABLES)
    for name in wanted:
        table, _, case = name.partition("/")
        if table not in TABLES:
            raise ScenarioError(f"--tables must be of {', '.join(TABLES)}, got '{name}'")
        cases = [line.case for line in TABLES[table].lines]
        if case and case not in cases:
            raise ScenarioError(f"--tables: the lines of {table} are {', '.join(cases)}; got '{name}'")
    return [(name, line) for name, line in every if name in wanted or f"{name}/{line.case}" in wanted]


def published_cells(
    lines: Sequence[tuple[str, Line]],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    is_taste: bool = False,
) -> list[Cell]:
    """Returns the runs that lines of published tables take.

    Args:
        lines: With their tables' names.
        seeds: Of each line.
        overrides: Scenario values that hold in every run, as on the command line.
        is_taste: Whether runs are to be short.

    Raises:
        ScenarioError: If an override cannot be read, or is of a key that a line sets itself.
    """
    varied = {"name", "seed"}.union(*(line.values for _, line in lines)) - TASTE.keys()
    if taken := [key for key in given_keys(overrides) if key in varied]:
        raise ScenarioError(
            f"{', '.join(taken)}: a table sets this itself, in each of its runs; leave it out"
        )
    short = TASTE if is_taste else {}
    return [_cell(name, line, seed, overrides, short) for name, line in lines for seed in seeds]


def _cell(table: str, line: Line, seed: int, overrides: Sequence[str], short: dict[str, Any]) -> Cell:
    values = {
        key: value for key, value in {**line.values, **short}.items() if key not in given_keys(overrides)
    }
    scenario = load_scenario(TABLES[table].scenario, overrides, {**values, "seed": seed})
    labels = {"table": table, "case": line.case, "seed": seed}
    return Cell(f"{table}/{line.case}/seed-{seed}", scenario, run, labels)


def run(cell: Cell, root: Path) -> None:
    """Runs a cell in this process, since cells run in parallel, or goes on with it."""
    folder = root / cell.name
    if folder.exists():
        resume(folder, show=False, simulation={"num_workers": 0})
    else:
        simulate(replace(cell.scenario, simulation=SimulationConfig(num_workers=0)), folder, show=False)
