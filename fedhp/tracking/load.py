"""Reading a run record back."""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhp.errors import MissingExtraError, RecordError, ScenarioError
from fedhp.state import ModelState
from fedhp.tracking import columns
from fedhp.tracking.totals import Summary

if TYPE_CHECKING:
    import pandas as pd

    from fedhp.config import Scenario


@dataclass(frozen=True, repr=False)
class RunResult:
    """A run that has ended, finished or interrupted.

    Attributes:
        folder: The run record.
        summary: What ``summary.json`` holds; see `Summary` for its keys.
        config: The resolved scenario.
    """

    folder: Path
    summary: dict[str, Any]
    config: "Scenario"

    def __repr__(self) -> str:
        """Says which run it is and how it ended, not all that it holds."""
        keys = ("status", "rounds", "final_accuracy", "compression", "failures")
        return f"RunResult({self.folder}, {', '.join(f'{key}={self.summary[key]}' for key in keys)})"

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """One row per round, round 0 first."""
        return _table(self.folder / "rounds.parquet", list(columns.ROUNDS))

    @cached_property
    def clients(self) -> "pd.DataFrame":
        """One row per round and sampled client."""
        return _table(self.folder / "clients.parquet", list(columns.CLIENTS))


def load_run(folder: str | Path) -> RunResult:
    """Loads the record of a run; the tables are read when asked for.

    Raises:
        RecordError: If a file is missing, incomplete or damaged; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordError(f"no run record at {folder}: it is not a folder")
    return RunResult(folder, _summary(folder / "summary.json"), _config(folder / "config.yaml"))


def load_state(folder: str | Path) -> tuple[ModelState, dict[str, Any]]:
    """Loads the last global model of a run.

    Returns:
        The state, and its metadata: ``model`` (the scenario's model section), ``input_shape``,
        ``num_classes``, and the full model's ``widths``, ``shapes`` and ``axes``.

    Raises:
        RecordError: If the model is missing, is no safetensors file, lacks a tensor, or holds
            one that does not fit its structure.
    """
    try:
        from fedhp.tracking import checkpoint
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading a model", error.name or "safetensors", "server") from None
    return checkpoint.load(Path(folder) / "model.safetensors")


def _summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecordError(
            f"{path} is missing: the run still goes on or was killed, or the folder is no record"
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None
    expected = {field.name for field in fields(Summary)}
    if not isinstance(summary, dict) or not expected <= set(summary):
        missing = sorted(expected - set(summary)) if isinstance(summary, dict) else sorted(expected)
        raise RecordError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    return summary


def _config(path: Path) -> "Scenario":
    from fedhp.config import load_scenario

    if not path.is_file():
        raise RecordError(f"{path} is missing: the folder is no complete run record")
    try:
        return load_scenario(path)
    except ScenarioError as error:
        raise RecordError(f"{path} holds no scenario of this version: {error}") from None


def _table(path: Path, expected: list[str]) -> "pd.DataFrame":
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading a run record", error.name or "pandas", "server") from None
    if not path.exists():
        raise RecordError(f"{path} is missing: the folder is no complete run record")
    try:
        table = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from None
    if list(table.columns) != expected:
        raise RecordError(f"{path}: expected the columns {expected}, got {list(table.columns)}")
    return table
