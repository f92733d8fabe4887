"""The record of a run: a folder that holds everything needed to look at the run later.

``config.yaml`` (the resolved scenario), ``events.log``, ``rounds.parquet``, ``clients.parquet``,
``partition.parquet`` (where devices play parts of a data set), ``model.safetensors`` (the latest global
model), ``level-0.5.safetensors`` (each narrower network that it stands for, where it does for some) and
``summary.json``. All but the last can be read at any time while the run goes on; ``summary.json`` appears
when it ends. `load_run` reads the record of a run that goes on or was killed, too.
"""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhp.bounds import one_line
from fedhp.errors import RecordError, require
from fedhp.files.atomic import replace_text
from fedhp.files.locks import NAME
from fedhp.files.marks import RUN, model_name
from fedhp.model.state import ModelState
from fedhp.records import wording
from fedhp.records.event_log import EventLog
from fedhp.records.plan import RunPlan
from fedhp.records.rows import CLIENTS, PARTITION, ROUNDS, RoundReport
from fedhp.records.summary import Summary
from fedhp.records.totals import RunTotals
from fedhp.training.figures import Column

if TYPE_CHECKING:
    from fedhp.records.parquet import PartedTable

_LONGEST_NAME = 50  # of a folder, in characters: of up to four bytes each, and no name may have over 255


@contextmanager
def run_folder(
    scenario_name: str, out: str | Path | None = None, root: Path = Path("runs")
) -> Iterator[Path]:
    """Yields the folder of a run's record, of which it is known that nothing is in it.

    Args:
        scenario_name: After which it is called where nobody says how.
        out: Where the user wants it; by default it is made, such as ``runs/smoke-20260131-141500``, for this
            run alone: others that begin in the same second are given a number besides. One in which nothing
            was written is gone afterwards.
        root: Where those that are made lie.

    Raises:
        RecordError: If ``out`` holds something, or the folder cannot be made.
    """
    if out is not None:
        check_room(Path(out))
        yield Path(out)
        return
    folder = _new_folder(root, scenario_name)
    try:
        yield folder
    finally:
        remove_empty(folder)


def _new_folder(root: Path, scenario_name: str) -> Path:
    safe = re.sub(r"[^\w.-]+", "-", scenario_name)[:_LONGEST_NAME].strip(".-") or "run"
    stem = f"{safe}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = root / stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = root / f"{stem}-{number}"
        except OSError as error:
            raise not_writable(folder, error) from None


def remove_empty(folder: Path) -> None:
    """Removes a folder in which nothing was written."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _models(report: RoundReport, state: ModelState) -> Iterator[tuple[str, ModelState]]:
    yield model_name(), state
    for level, found in report.levels.items():
        yield model_name(level), found.state


class RunRecord:
    """Writes a run's record.

    What cannot be written raises `RecordError`, from `on_round` and `on_finish` too: a run whose record has
    gaps has failed. What was written before can be read.

    Args:
        folder: Where; made, with its parents. It may exist when it is empty.
        told: How many rounds, round 0 included, the record has of a run that goes on there; rows of later
            ones are dropped. None of a new run.

    Raises:
        RecordError: If the folder is not empty or cannot be made.
        MissingExtraError: If what writes the files is not installed.
    """

    def __init__(self, folder: Path, told: int | None = None) -> None:
        with require("a run record", "server"):
            from fedhp.records import model_file, parquet
        self._model_file, self._parquet = model_file, parquet
        self.folder, self._told = folder, told
        if told is None:
            _make_empty(folder)
        self._events = EventLog()
        self._totals: RunTotals | None = None
        self._finished = False
        self._cause: str | None = None

    def on_start(self, plan: RunPlan) -> None:
        """Writes the configuration and begins the tables.

        Raises:
            RecordError: If the folder cannot be written to.
        """
        try:
            if self._told is None:
                # Only one of two runs that are given the same folder at the same time makes the file.
                with (self.folder / RUN).open("x", encoding="utf-8") as file:
                    file.write(plan.scenario.to_yaml())
            self._events.open(self.folder / "events.log")
            self._rounds = self._table("rounds.parquet", ROUNDS)
            self._clients = self._table("clients.parquet", CLIENTS)
            (self.folder / "summary.json").unlink(missing_ok=True)  # of a run that was cut short
            path = self.folder / "partition.parquet"
            if plan.partition and not path.exists():  # as it does where a run goes on
                self._parquet.write_table(path, PARTITION, partition_columns(plan))
        except FileExistsError:
            raise _taken(self.folder) from None
        except Exception as error:  # whatever it is: nobody can look at a run without a record
            raise RecordError(
                f"the run record {self.folder} cannot be written: {error}; choose another --out"
            ) from error
        self._metadata = self._model_file.described(plan.of_model())
        self._totals = RunTotals(plan)
        if not self._told:
            self._events.write(wording.start(plan))

    def _table(self, name: str, columns: Mapping[str, Column]) -> "PartedTable":
        return self._parquet.PartedTable.going_on(self.folder / name, columns, self._told or 0)

    def on_past(self, report: RoundReport) -> None:
        """Counts a round that is in the tables."""
        assert self._totals is not None
        self._totals.add(report)

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Adds the round to the tables and replaces the model.

        Raises:
            RecordError: If that cannot be written.
        """
        assert self._totals is not None
        with writing(self.folder):
            self._events.write(wording.round_line(report))
            for row in report.failures:
                self._events.write(wording.failure(row))
            self._clients.write(report.round, [row.values() for row in report.clients])
            self._rounds.write(report.round, [report.values()])
            for name, model in _models(report, state):
                self._model_file.save(self.folder / name, model, self._metadata)
        self._totals.add(report)

    def on_note(self, text: str) -> None:
        """Writes the note into the event log."""
        with suppress(OSError):  # the file keeps it, and tries again, or fails, with the round's line
            self._events.write(one_line(text))

    def on_finish(self, summary: Summary) -> None:
        """Writes the summary.

        Raises:
            RecordError: If that cannot be written.
        """
        with writing(self.folder):
            self._events.write(wording.finish(summary))
            self._write_summary(summary)
        self._finished = True

    def on_failure(self, cause: str) -> None:
        """Writes the cause into the event log, and keeps it for the summary."""
        self._cause = one_line(cause)
        with suppress(OSError):
            self._events.write(f"stopped: {self._cause}")

    def close(self) -> None:
        """Writes the partial summary of a run that was cut short, merges the tables, closes the event log.

        What cannot be written any more is left as it is: tables in parts read as well.
        """
        if self._totals is None:
            self._abandon()
            return
        totals, self._totals = self._totals, None
        with ExitStack() as steps:  # each is taken, whatever becomes of the others
            steps.callback(self._events.close)
            steps.callback(self._rounds.merge)
            steps.callback(self._clients.merge)
            if not self._finished:
                status = "interrupted" if self._cause is None else "failed"
                partial = totals.summary(status, self._cause)
                self._events.write(wording.finish(partial))
                self._write_summary(partial)

    def _abandon(self) -> None:
        """Leaves no empty folder behind where a run never started: it would only be in the way."""
        self._events.close()
        remove_empty(self.folder)

    def _write_summary(self, summary: Summary) -> None:
        replace_text(self.folder / "summary.json", json.dumps(asdict(summary), indent=2) + "\n")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says of a record that it cannot be written to any more, where that stops the block.

    Raises:
        RecordError: With what stops it.
    """
    try:
        yield
    except Exception as error:  # a full disk, or a figure that no table holds
        cause = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise RecordError(
            f"the run record {folder} cannot be written to any more: {cause}; the run ends, and what was "
            "written before can be read"
        ) from error


def check_room(folder: Path) -> None:
    """Checks that a folder is empty, or can be made: before anything costs time.

    Raises:
        RecordError: If it holds something, is none, or cannot be made or written to.
    """
    if is_taken(folder):
        raise _taken(folder)


def _taken(folder: Path) -> RecordError:
    """Returns the error that a folder holds something already."""
    return RecordError(
        f"{folder} exists already and nothing is overwritten; choose another --out or remove it"
    )


def is_taken(folder: Path) -> bool:
    """Says whether a folder holds something already, but for the lock of who works in it.

    Raises:
        RecordError: If it is none, or cannot be made or written to.
    """
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return place == folder and any(path.name != NAME for path in folder.iterdir())
    except OSError as error:
        raise not_writable(folder, error) from None


def not_writable(folder: Path, error: OSError) -> RecordError:
    """Returns the error that says why nothing can be written to a folder."""
    return RecordError(f"{folder} cannot be written to: {error}; choose another --out")


def partition_columns(plan: RunPlan) -> dict[str, list[Any]]:
    """Returns the columns of ``partition.parquet``, which has a row per client and label.

    By columns: a fleet of 100,000 has a million rows, which would take a quarter of a gigabyte one by one.
    """
    parts = plan.partition.items()
    return {
        "client": [client for client, counts in parts for _ in counts],
        "label": [label for _, counts in parts for label in range(len(counts))],
        "count": [int(count) for _, counts in parts for count in counts],
        "owner": [plan.owners.get(client) for client, counts in parts for _ in counts],
    }


def _make_empty(folder: Path) -> None:
    check_room(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from None
