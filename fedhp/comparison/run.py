"""A whole comparison: its runs, its tables, its report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedhp.comparison.grid import Comparison
from fedhp.comparison.manifest import Entry, Manifest, read_manifest, write_manifest
from fedhp.comparison.settings import common_settings, differences
from fedhp.errors import RecordError, require
from fedhp.files.marks import COMPARISON
from fedhp.records.load import has_finished
from fedhp.scenario.schema import Scenario, SimulationConfig, WandbConfig
from fedhp.sweep.cell import Cell, Outcome
from fedhp.sweep.folder import claim, held
from fedhp.sweep.progress import shown
from fedhp.sweep.running import check_outcomes, run_cells
from fedhp.tracking.wandb_tracker import log_comparison

if TYPE_CHECKING:
    from fedhp.comparison.result import Result

_logger = logging.getLogger("fedhp")


def run_comparison(
    comparison: Comparison, cells: Sequence[Cell], root: Path, config: SimulationConfig
) -> dict[str, Outcome]:
    """Runs what is not finished yet, and writes tables and a report over all.

    Args:
        comparison: What is compared.
        cells: Its runs.
        root: Its folder; a comparison that was cut short goes on there, and one with other strategies, seeds
            or values of the same key is extended.
        config: How many runs go on at a time, and where.

    Returns:
        What became of each run, by its folder below ``root``.

    Raises:
        FedhpError: If scenario or strategies are not as they must be, the folder holds something else,
            another process is at work there, or the workers do not start.
        TrainingError: If all runs failed.
        MissingExtraError: If what reads records is not installed.
    """
    with require("a comparison", "server"):
        from fedhp.comparison.loading import load_result
    console = Console()
    with held(root):
        manifest = _extended(root, _manifest(comparison, cells))
        claim(root, manifest.title)
        write_manifest(root, manifest)  # what is there can be told, however this ends
        with shown(console, len(cells)) as on_done:
            outcomes = run_cells(cells, root, config, on_done)
        write_manifest(root, _ended(manifest, outcomes))
        if not any(outcome.has_record for outcome in outcomes.values()):
            check_outcomes(outcomes)
        if comparison.export:
            _export(root, manifest, console)
        _conclude(load_result(root), console, cells[0].scenario.tracking.wandb)
    return outcomes


def _export(root: Path, manifest: Manifest, console: Console) -> None:
    from fedhp.comparison.exported import export_all

    with console.status("exporting") as status:
        tell = status.update if console.is_terminal else _logger.info
        export_all(root, manifest.runs, manifest.export, tell)


def _conclude(result: "Result", console: Console, wandb: WandbConfig) -> None:
    """Writes and shows what has come out."""
    from fedhp.comparison.report import write_comparison_report
    from fedhp.comparison.terminal import show
    from fedhp.comparison.writing import write
    from fedhp.report.writing import report_on

    write(result)
    show(console, result)
    _logger.info("comparison: %s", result.root)
    try:
        report_on(result.root, lambda _: write_comparison_report(result))
    finally:
        if wandb.mode != "none":
            _track(result, wandb)


def _track(result: "Result", wandb: WandbConfig) -> None:
    """Logs the comparison to Weights & Biases; nothing that fails here fails what is on the disk."""
    tables = {"table": result.tables.arms, "classes": result.tables.classes, "pairs": result.tables.pairs}
    figures = {path.stem: path.read_bytes() for path in sorted((result.root / "figures").glob("*.png"))}
    compared = {"title": result.manifest.title, "seeds": result.seeds, **result.settings}
    try:
        log_comparison(wandb, result.manifest.tracked_as, result.root, compared, tables, figures)
    except Exception as error:
        _logger.warning("not on Weights & Biases: %s: %s", type(error).__name__, error)


def _manifest(comparison: Comparison, cells: Sequence[Cell]) -> Manifest:
    runs = [Entry(cell.name, **cell.labels) for cell in cells]
    keys = list(comparison.over)
    scenario = cells[0].scenario
    settings = common_settings(scenario, keys)
    name = Path(comparison.scenario).stem if scenario.name == Scenario.name else scenario.name
    given = list(comparison.overrides)
    return Manifest(comparison.scenario, keys, given, runs, settings, name=name, export=comparison.export)


def _extended(root: Path, manifest: Manifest) -> Manifest:
    """Returns a comparison with the finished runs of an earlier one in the same folder, however that ended.

    Raises:
        RecordError: If the two differ in more than strategies, seeds and values.
    """
    if not (root / COMPARISON).is_file():
        return manifest
    earlier = read_manifest(root)
    if different := _differences(earlier, manifest):
        raise RecordError(
            f"{root} holds another comparison ({', '.join(different)}), and nothing is overwritten; choose "
            "another --out or remove it (more seeds, strategies or values of the same key would extend it)"
        )
    own = {entry.folder for entry in manifest.runs}
    kept = [
        replace(entry, status="finished", reason="")  # an earlier one that was killed could not say so
        for entry in earlier.runs
        if entry.folder not in own and has_finished(root / entry.folder)
    ]
    if kept:
        _logger.info("%s is extended: %d runs are there from before", root, len(kept))
    runs = [*kept, *manifest.runs]
    export = manifest.export or earlier.export
    return replace(manifest, runs=runs, tracked_as=earlier.tracked_as, name=earlier.name, export=export)


def _differences(earlier: Manifest, now: Manifest) -> list[str]:
    different = differences(
        {"scenario": earlier.scenario, "--over": " and ".join(earlier.keys) or "nothing"},
        {"scenario": now.scenario, "--over": " and ".join(now.keys) or "nothing"},
    )
    different += differences(earlier.settings, now.settings)
    was, is_now = _given(earlier), _given(now)
    return different + differences(
        {key: was.get(key, "not given") for key in (*was, *is_now)},
        {key: is_now.get(key, "not given") for key in (*was, *is_now)},
    )


def _given(manifest: Manifest) -> dict[str, str]:
    """Returns what was given of strategies and models that the settings, which all runs have, do not tell."""
    given = [entry.partition("=") for entry in manifest.overrides]
    return {
        key: value
        for key, _, value in given
        if key.startswith(("strategy.", "model.")) and key not in manifest.settings
    }


def _ended(manifest: Manifest, outcomes: Mapping[str, Outcome]) -> Manifest:
    """Returns a comparison with what became of its runs."""

    def ended(entry: Entry) -> Entry:
        outcome = outcomes.get(entry.folder)
        if outcome is None:
            return entry
        # Whether a run was finished now or by an earlier command is nothing that tables ask.
        return replace(
            entry, status="finished" if outcome.has_record else outcome.status, reason=outcome.reason
        )

    return replace(manifest, runs=[ended(entry) for entry in manifest.runs])
