"""A run as its record has it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhp.errors import RecordError, require
from fedhp.records.rows import CLIENTS, PARTITION, ROUNDS
from fedhp.scenario.schema import Scenario
from fedhp.training.figures import Column

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class RunResult:
    """A run as its record has it.

    Attributes:
        folder: The run record, as an absolute path.
        summary: What ``summary.json`` holds; see `Summary` for its keys. A run that was killed, or still goes
            on, has none: then the summary is added up from the rounds so far, ``status`` is "unfinished",
            ``cause`` tells when it was last alive, what they do not tell is None, and ``versions`` is empty.
        config: The resolved scenario.
    """

    folder: Path
    summary: dict[str, Any]
    config: Scenario

    def __repr__(self) -> str:
        """Says which run it is and how it ended, not all that it holds."""
        keys = ("status", "rounds", "final_accuracy", "compression", "failures")
        return f"RunResult({self.folder}, {', '.join(f'{key}={self.summary[key]}' for key in keys)})"

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """One row per round, round 0 first."""
        return read_table(self.folder / "rounds.parquet", ROUNDS)

    def accuracy_of(self, level: float | None = None) -> float | None:
        """Returns the last accuracy of the global model, or of one of the networks that it stands for."""
        if level is None:
            return self.summary["final_accuracy"]
        return json.loads(self.rounds["levels"].iloc[-1])[f"{level:g}"]["accuracy"]

    @cached_property
    def clients(self) -> "pd.DataFrame":
        """One row per round and sampled client."""
        return read_table(self.folder / "clients.parquet", CLIENTS)

    @cached_property
    def partition(self) -> "pd.DataFrame | None":
        """One row per client and label: its number of samples; None where devices have their own data."""
        path = self.folder / "partition.parquet"
        return read_table(path, PARTITION) if path.exists() else None


def read_table(path: Path, expected: Mapping[str, Column]) -> "pd.DataFrame":
    """Reads a table of a record.

    Raises:
        RecordError: If it is missing, or damaged.
    """
    with require("reading a run record", "server"):
        import pandas as pd

        from fedhp.records import parquet
    complete, damaged = parquet.files(path)
    if not complete:
        raise RecordError(
            f"{path} is missing, or no part of it is whole: the folder is no complete run record"
        )
    for part in damaged:
        logger.warning("%s is damaged, as after a power failure: its round is left out", part)
    try:
        # Handed on to pyarrow, which takes a list of files as one table, and "a=b" in a path for a column.
        table = pd.read_parquet(complete, engine="pyarrow", partitioning=None)  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from None
    for name in later(expected).difference(table.columns):
        table[name] = None
    if set(table.columns) != set(expected):
        raise RecordError(f"{path}: expected the columns {list(expected)}, got {list(table.columns)}")
    if flaw := parquet.mistyped(complete, expected):
        raise RecordError(f"{path} is damaged: {flaw}")
    return pd.DataFrame(table[list(expected)])


def later(expected: Mapping[str, Column]) -> set[str]:
    """Returns what records of earlier versions lack."""
    return {name for name, column in expected.items() if column.figure.later}
