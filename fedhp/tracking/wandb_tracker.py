"""Weights & Biases: one W&B run per experiment, and one per comparison."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhp.errors import MissingExtraError, RecordError, require
from fedhp.model.state import ModelState
from fedhp.records.classes import by_class
from fedhp.records.plan import RunPlan
from fedhp.records.rows import CLIENTS, ROUNDS, RoundReport
from fedhp.records.summary import Summary

if TYPE_CHECKING:
    from fedhp.scenario.schema import WandbConfig

_PURPOSE = "tracking with Weights & Biases"


class WandbTracker:
    """Reports a run to W&B, silently.

    Args:
        config: Mode, project, entity and group; its mode is not "none".
        folder: The run record; W&B keeps its own files in ``wandb`` inside it.
        draw: Draws the figures of a record, as PNG by name; by default there are none.

    Raises:
        MissingExtraError: If wandb is not installed.
    """

    def __init__(
        self,
        config: "WandbConfig",
        folder: Path,
        draw: Callable[[Path], Mapping[str, bytes]] = lambda _: {},
    ) -> None:
        self._wandb = _library()
        self._draw = draw
        self._config = config
        self._folder = folder
        self._run: Any = None
        self._finished = False

    def on_start(self, plan: RunPlan) -> None:
        """Starts the W&B run, or goes on with that of a run that was cut short; the scenario configures it.

        Raises:
            RecordError: If W&B refuses, for instance because nobody is logged in.
        """
        name = self._config.name or self._folder.name
        settings, run_id = plan.scenario.to_dict(), _earlier_id(self._folder)
        self._run = _start(self._wandb, self._config, name, self._folder, settings, run_id=run_id)
        self._budgets = plan.budgets
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def on_past(self, report: RoundReport) -> None:
        """Ignores the round: W&B has it."""

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Logs the round: globally, by device class, by group, and one table row per client."""
        metrics = {**_global_metrics(report), **self._class_metrics(report)}
        for group, kept in report.structure.counts.items():
            metrics[f"structure/{group}"] = kept
        if report.clients:
            rows = [list(client.values().values()) for client in report.clients]
            metrics["clients"] = self._wandb.Table(columns=list(CLIENTS), data=rows)
        # W&B takes a step once: a round that was logged, and cut short before its checkpoint, comes again.
        self._run.log(metrics, step=report.round, commit=True)

    def on_note(self, text: str) -> None:
        """Ignores the note: W&B has no place for single lines."""

    def on_finish(self, summary: Summary) -> None:
        """Puts the run's summary into W&B's, and logs the report's figures."""
        self._finished = True
        self._run.summary.update({**vars(summary), "versions": dict(summary.versions)})
        if figures := _images(self._wandb, self._draw(self._folder)):
            self._run.log({"round": summary.rounds, **figures})

    def on_failure(self, cause: str) -> None:
        """Puts the cause into W&B's summary."""
        if self._run is not None:
            self._run.summary.update({"status": "failed", "cause": cause})

    def close(self) -> None:
        """Ends the W&B run, as crashed where the experiment did not finish."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=0 if self._finished else 1)

    def _class_metrics(self, report: RoundReport) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for name, seen in by_class(report).items():
            values = {
                **seen.figures,
                "memory_peak_bytes": seen.memory_peak_bytes,
                "memory_budget_bytes": self._budgets.get(name),
                "batch_size": seen.figures.get("batch_size_last"),
                "failures": seen.failures,
            }
            metrics.update({f"class/{name}/{key}": value for key, value in _known(values).items()})
        return metrics


def log_comparison(
    config: "WandbConfig",
    run_id: str,
    folder: Path,
    settings: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Mapping[str, bytes],
) -> None:
    """Logs a comparison as one W&B run, which stands in the group of those that it compares.

    Args:
        config: Mode, project, entity and group; its mode is not "none".
        run_id: The W&B run's, which a repeated comparison goes on with.
        folder: The comparison's; W&B keeps its own files in ``wandb`` inside it.
        settings: What was compared.
        tables: Its tables by name; all rows of one have the same keys.
        figures: Its figures, as PNG by name.

    Raises:
        MissingExtraError: If wandb is not installed.
        RecordError: If W&B refuses, for instance because nobody is logged in.
    """
    wandb = _library()
    with _start(wandb, config, "comparison", folder, settings, "comparison", run_id) as run:
        logged = {
            name: wandb.Table(
                columns=list(rows[0]), data=[list(row.values()) for row in rows], allow_mixed_types=True
            )
            for name, rows in tables.items()
            if rows
        }
        run.log({**logged, **_images(wandb, figures)})


def check_installed(config: "WandbConfig") -> None:
    """Asks for W&B before a run that is to be reported there, and does not import it, which takes seconds.

    Raises:
        MissingExtraError: If wandb is not installed.
    """
    if config.mode != "none" and find_spec("wandb") is None:
        raise MissingExtraError(_PURPOSE, "wandb", "wandb")


def _library() -> Any:
    with require(_PURPOSE, "wandb", "wandb"):
        import wandb
    return wandb


def _start(
    wandb: Any,
    config: "WandbConfig",
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    job_type: str | None = None,
    run_id: str | None = None,
) -> Any:
    assert config.mode in ("offline", "online", "disabled")
    try:
        return wandb.init(
            project=config.project,
            entity=config.entity or None,
            group=config.group or None,
            job_type=job_type,
            id=run_id,
            resume="allow" if run_id and config.mode == "online" else None,
            name=name,
            dir=folder,
            mode=config.mode,
            config=dict(settings),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
    except wandb.Error as error:
        raise RecordError(
            f"Weights & Biases did not start: {error}; run 'wandb login', or set tracking.wandb.mode=offline"
        ) from None


def _earlier_id(folder: Path) -> str | None:
    """Returns the id of the W&B run that a record has from before, by which W&B names its folder."""
    earlier = sorted((folder / "wandb").glob("*run-*-*"))
    return earlier[0].name.rpartition("-")[2] if earlier else None


def _images(wandb: Any, figures: Mapping[str, bytes]) -> dict[str, Any]:
    """Returns figures as W&B takes them."""
    if not figures:
        return {}
    from PIL import Image  # which whatever has drawn them brings along

    return {f"report/{name}": wandb.Image(Image.open(BytesIO(png))) for name, png in figures.items()}


def _global_metrics(report: RoundReport) -> dict[str, Any]:
    numbers = {name: getattr(report, name) for name, column in ROUNDS.items() if column.kind is not str}
    return {**_known(numbers), "failures": report.num_failures}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
