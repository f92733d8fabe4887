"""A whole comparison: its runs, its tables, its picture."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from fedhp.comparison.cells import Comparison, comparison_cells
from fedhp.comparison.figure import draw
from fedhp.comparison.rows import arm_rows, class_rows, load_records, pair_rows, run_rows
from fedhp.comparison.writing import Tables, show, write
from fedhp.config import SimulationConfig
from fedhp.errors import MissingExtraError
from fedhp.studies.cell import Cell, Outcome
from fedhp.studies.folder import claim
from fedhp.studies.progress import shown
from fedhp.studies.running import run_cells

_logger = logging.getLogger("fedhp")

MANIFEST = "comparison.json"


def run_comparison(comparison: Comparison, root: Path, config: SimulationConfig) -> dict[str, Outcome]:
    """Runs what is not finished yet, and writes tables and a picture over all.

    Args:
        comparison: What is compared.
        root: Its folder; a comparison that was cut short goes on there.
        config: How many runs go on at a time, and where.

    Returns:
        What became of each run, by its folder below ``root``.

    Raises:
        FedhpError: If scenario or strategies are not as they must be, the folder holds something else, or the
            workers do not start.
    """
    cells = comparison_cells(comparison)
    claim(root, _title(comparison))
    console = Console()
    with shown(console, len(cells)) as on_done:
        outcomes = run_cells(cells, root, config, on_done)
    _write_manifest(root, comparison, cells, outcomes)
    records = load_records(cells, outcomes, root)
    runs = run_rows(cells, outcomes, records)
    tables = Tables(runs, arm_rows(runs), class_rows(cells, records), pair_rows(runs))
    write(root, _title(comparison), tables, all(cell.scenario.data.local_test for cell in cells))
    show(console, tables)
    try:
        draw(root, tables.arms, comparison.key)
    except MissingExtraError as error:
        _logger.warning("%s", error)
    _logger.info("comparison: %s", root)
    return outcomes


def _title(comparison: Comparison) -> str:
    over = f" over {comparison.key}" if comparison.key else ""
    return f"Strategies on {comparison.scenario}{over}"


def _write_manifest(
    root: Path, comparison: Comparison, cells: list[Cell], outcomes: Mapping[str, Outcome]
) -> None:
    """Writes what was compared and where its records are: what a report starts from."""
    runs = [{"folder": cell.name, **cell.labels, "status": outcomes[cell.name].status} for cell in cells]
    manifest = {
        "scenario": comparison.scenario,
        "key": comparison.key,
        "overrides": list(comparison.overrides),
        "runs": runs,
    }
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
