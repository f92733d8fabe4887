"""What a record keeps for a run to go on from: written round by round, read back once it was cut short."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhp.errors import RecordError, require
from fedhp.files import locks
from fedhp.files.marks import COMPARISON, STUDY
from fedhp.records.load import has_finished, recorded_scenario, undamaged
from fedhp.records.record import not_writable, remove_empty, writing
from fedhp.records.rows import RoundReport
from fedhp.records.totals import versions
from fedhp.scenario.arrived import from_json
from fedhp.scenario.schema import Scenario

_logger = logging.getLogger("fedhp")

# To wait for a disk takes longer than many a round does.
_LASTING_SECONDS = 10.0
_ANEW = "start the run anew, into another folder"


@dataclass(frozen=True)
class Kept:
    """Where a run goes on.

    Attributes:
        folder: Its record.
        scenario: What is run.
        told: How many rounds it was told of, round 0 included: the next is the round of this number.
        state: What the server held after the last of them, as `fedhp.federation.server_state` writes it; or a
            device that trains alone, as `fedhp.training.handed_on` does.
        simulated: Whether its devices were simulated.
        alone: Whether it is of one device that trains alone, whose epochs are the rounds.
        versions: Of what its result depends on.
        basis: What else it depends on, by what it is: a number that changes with it.
    """

    folder: Path
    scenario: Scenario
    told: int
    state: Mapping[str, Any]
    simulated: bool
    alone: bool
    versions: Mapping[str, str]
    basis: Mapping[str, str]

    def reports(self, widths: Mapping[str, int]) -> Iterator[RoundReport]:
        """Yields those rounds as they were reported, less their votes; ``widths`` are the full model's."""
        from fedhp.records import past

        return past.reports(self.folder, self.told, widths)


class Keeper:
    """Keeps what a run goes on from, as often as its scenario says.

    Args:
        folder: The run's record.
        scenario: What is run.
        basis: See `Kept`.
        simulated: Whether its devices are simulated.
        alone: Whether one device trains alone.
    """

    def __init__(
        self,
        folder: Path,
        scenario: Scenario,
        basis: Mapping[str, str],
        simulated: bool,
        alone: bool = False,
    ) -> None:
        self._folder, self._every = folder, scenario.server.checkpoint
        self._on_disk = 0  # so many rounds of the tables
        self._lasting: Path | None = None  # the newest checkpoint that would outlive a power failure
        self._due = time.monotonic() + _LASTING_SECONDS
        about = {"versions": versions(), "scenario": scenario.to_dict(), "basis": dict(basis)}
        self._about = {**about, "simulated": simulated, "alone": alone}

    def keep(self, told: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Writes a checkpoint, if one is due; now and then one that would outlive a power failure.

        Args:
            told: See `Kept`.
            state: Returns what there is to go on from.

        Raises:
            RecordError: If it cannot be written.
        """
        if not self._every or (told and (told - 1) % self._every):
            return
        from fedhp.records import checkpoint, parquet

        values = {**self._about, "told": told, "state": state()}
        with writing(self._folder):
            if time.monotonic() < self._due:
                checkpoint.save(self._folder, told, values, lasting=False, spared=self._lasting)
                return
            for table in ("rounds.parquet", "clients.parquet"):  # which it leans on
                parquet.parts_onto_disk(self._folder / table, range(self._on_disk, told))
            self._lasting = checkpoint.save(self._folder, told, values)
            self._on_disk, self._due = told, time.monotonic() + _LASTING_SECONDS


def begun_in(folder: Path) -> Scenario:
    """Returns what is run, or was, in a folder.

    Raises:
        RecordError: If it is no record of a run.
    """
    for mark, what in ((COMPARISON, "a comparison"), (STUDY, "a study")):
        if (folder / mark).is_file():
            raise RecordError(f"{folder} holds {what}: repeat the command that made it, and it goes on")
    return recorded_scenario(folder)


def kept_in(folder: str | Path) -> Kept:
    """Returns where the run of a record goes on: at its last checkpoint, or, if damaged, the one before.

    Raises:
        RecordError: If it has finished or keeps nothing, or what it keeps is damaged, or of another scenario
            or version.
    """
    with require("going on with a run", "server"):
        from fedhp.records import checkpoint
    folder = Path(folder).absolute()
    scenario, flaws = begun_in(folder), list[RecordError]()
    for path in checkpoint.found(folder):
        try:
            kept = _checked(folder, scenario, checkpoint.load(path))
        except RecordError as error:
            flaws.append(error)
            continue
        if flaws:
            _logger.warning("%s; the run goes on from the checkpoint before", flaws[0])
        return kept
    raise flaws[0] if flaws else RecordError(_nothing(folder, scenario))


def can_go_on(folder: Path) -> bool:
    """Says whether a folder holds the record of a run that was cut short and can go on."""
    try:
        if any(folder.glob("checkpoint-*")):  # looked at first, as most records have none
            kept_in(folder)
            return True
    except RecordError:
        pass
    return False


def forget(folder: Path) -> None:
    """Removes what a record keeps: a run that has finished needs it no more."""
    from fedhp.records import checkpoint

    checkpoint.remove(folder)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes on this machine from writing to a record meanwhile; it is made, if need be.

    The lock ends with the process, however that ends; where the file system knows no locks there is none.

    Raises:
        RecordError: If another process is at work there, or nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from None
    with ExitStack() as ours:
        ours.callback(remove_empty, folder)
        try:
            ours.enter_context(locks.locked(folder / locks.NAME, wait=False))
        except BlockingIOError:
            raise RecordError(
                f"another process is at work on the run record {folder}; wait for its end, or stop it first"
            ) from None
        yield


def _nothing(folder: Path, scenario: Scenario) -> str:
    if has_finished(folder):
        return f"the run of {folder} has finished, and nothing is left to do; 'fedhp report' reports on it"
    if not scenario.server.checkpoint:
        return f"{folder} keeps no checkpoint, as server.checkpoint = 0 says; {_ANEW}"
    why = (
        "the run was cut short before it began, or is one of 'fedhp train' in its first epoch or with a "
        "client method that does not say what it keeps, or it was removed"
    )
    return f"{folder} keeps no checkpoint: {why}; {_ANEW}"


def _checked(folder: Path, scenario: Scenario, values: Mapping[str, Any]) -> Kept:
    """Returns what was kept, once it is known that this run can go on from it."""
    from fedhp.records import past

    with undamaged(folder):
        was, now = values["versions"], versions()
        if was["fedhp"] != now["fedhp"]:
            raise RecordError(
                f"{folder} was begun with fedhp {was['fedhp']}, and this is {now['fedhp']}; go on with that "
                f"version, or {_ANEW}"
            )
        if different := from_json(json.dumps(values["scenario"])).differences(scenario):
            raise RecordError(
                f"{folder}: the checkpoint is of another scenario than config.yaml ({', '.join(different)}); "
                f"put config.yaml back as it was, or {_ANEW}"
            )
        told = int(values["told"])
        past.check_rounds(folder, told)
        simulated, alone = bool(values["simulated"]), bool(values.get("alone"))
        basis = {str(what): str(number) for what, number in values["basis"].items()}
        return Kept(folder, scenario, told, dict(values["state"]), simulated, alone, was, basis)
