"""A whole study: its cells run, its table shown and written, its picture drawn."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from fedhp.errors import MissingExtraError
from fedhp.scenario.schema import SimulationConfig
from fedhp.studies.figure import draw
from fedhp.studies.table import arm_rows, cell_rows
from fedhp.studies.writing import show_tables, write_tables
from fedhp.sweep.cell import Outcome, Study
from fedhp.sweep.folder import claim, held
from fedhp.sweep.progress import shown
from fedhp.sweep.running import run_cells

_logger = logging.getLogger("fedhp")

Conclude = Callable[[Study, Mapping[str, Outcome], Path, Console], None]


def conclude(study: Study, outcomes: Mapping[str, Outcome], root: Path, console: Console) -> None:
    """Writes and shows what has come out of arms that were trained on one device."""
    rows = cell_rows(study.cells, outcomes, root)
    arms = arm_rows(rows)
    write_tables(root, study, rows, arms)
    show_tables(console, study, arms)
    try:
        draw(root, arms, study.names)
    except MissingExtraError as error:
        _logger.warning("%s", error)
    _logger.info("study: %s", root)


def run_study(
    study: Study, root: Path, config: SimulationConfig, conclude: Conclude = conclude
) -> dict[str, Outcome]:
    """Runs the cells that are not finished yet, and writes tables and pictures over all of them.

    Args:
        study: The study.
        root: Its folder; a study that was cut short goes on there.
        config: How many cells run at a time, and where.
        conclude: Writes and shows what has come out.

    Returns:
        What became of each cell, by name.

    Raises:
        FedhpError: If the folder holds something else, another process is at work there, or the workers do
            not start.
    """
    console = Console()
    with held(root):
        claim(root, study.title)
        with shown(console, len(study.cells)) as on_done:
            outcomes = run_cells(study.cells, root, config, on_done)
        conclude(study, outcomes, root, console)
    return outcomes
