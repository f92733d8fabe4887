"""A study and its cells: one run each, what it is called, and what became of it."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedhp.bounds import one_line
from fedhp.errors import BudgetError, RecordError, ScenarioError
from fedhp.files.marks import RUN
from fedhp.records.kept import can_go_on
from fedhp.records.load import has_finished
from fedhp.records.record import is_taken
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: What it is, and its folder below the study's: ``mnist/dynhp-10x/seed-0``.
        scenario: What is run, as its record says it.
        run: Runs the cell, given itself and the study's folder, and leaves a run record in its own; where one
            is there already, it was cut short and can go on.
        labels: What tables group by.
        after: Cells, by name, whose records this one needs.
        settle: Says, given the scenario and the study's folder, what is run once those records are there;
            None where that is the scenario.
    """

    name: str
    scenario: Scenario
    run: Callable[["Cell", Path], None]
    labels: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    settle: Callable[[Scenario, Path], Scenario] | None = None

    def settled(self, root: Path) -> Scenario:
        """Returns what is run, once the records that it needs are in the study's folder."""
        return self.scenario if self.settle is None else self.settle(self.scenario, root)


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        title: What it is about, by which its folder is known again.
        cells: Its runs; one that needs others stands after them.
        names: What the arms are called in tables and pictures.
        notes: What to know of its figures.
    """

    title: str
    cells: Sequence[Cell]
    names: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    ``refused`` is what can never work, however often it is tried, such as a criterion that needs a layer that
    the model lacks, or budgets within which no device can train; ``failed`` is anything that should not have
    happened. The reason is one line.
    """

    status: Literal["finished", "skipped", "refused", "failed"]
    reason: str = ""

    @property
    def has_record(self) -> bool:
        """Whether there is a whole run record."""
        return self.status in ("finished", "skipped")


def check_names(cells: Sequence[Cell]) -> None:
    """Refuses cells that would share a folder.

    Raises:
        ScenarioError: If two have one name.
    """
    counted = Counter(cell.name for cell in cells)
    if twice := [name for name, number in counted.items() if number > 1]:
        raise ScenarioError(
            f"two runs would share the folder {twice[0]}; name each scenario once, and run values that are "
            "written alike one by one"
        )


def is_finished(cell: Cell, root: Path) -> bool:
    """Says whether the cell's record is there and whole.

    Raises:
        RecordError: If what lies there is the record of other settings, or no record at all.
    """
    folder = root / cell.name
    if not folder.exists() or not is_taken(folder):
        return False
    if not (folder / RUN).exists():
        raise RecordError(f"{folder} is no run record, and nothing is overwritten; choose another --out")
    if cell.settle and (gone := [name for name in cell.after if not has_finished(root / name)]):
        raise RecordError(
            f"{folder} was run by what {root / gone[0]} ended with, whose record is not whole; remove it "
            "too, or choose another --out"
        )
    if different := load_scenario(folder / RUN).differences(cell.settled(root)):
        raise RecordError(
            f"{folder} was run with other settings ({', '.join(different)}), and nothing is overwritten; "
            "choose another --out or remove it"
        )
    return has_finished(folder) and not can_go_on(folder)  # to its very end


def run_cell(cell: Cell, root: Path) -> tuple[Cell, Outcome]:
    """Runs a cell whose record is not whole; whatever happens is told, so that the other cells go on."""
    folder = root / cell.name
    try:
        # What was cut short, of which `is_finished` has seen that it is this cell's, goes on where it can.
        if folder.exists() and not can_go_on(folder):
            shutil.rmtree(folder)
        cell.run(cell, root)
    except (ScenarioError, BudgetError) as error:
        return cell, Outcome("refused", one_line(str(error)))
    except Exception as error:
        _logger.debug("%s", cell.name, exc_info=True)
        return cell, Outcome("failed", one_line(f"{type(error).__name__}: {error}"))
    return cell, Outcome("finished")
