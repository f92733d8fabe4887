"""Running a study's cells, as many at a time as there are workers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedhp.bounds import one_line
from fedhp.errors import TrainingError
from fedhp.scenario.schema import SimulationConfig
from fedhp.simulation.opening import need_ray
from fedhp.simulation.turn import TURN
from fedhp.sweep.cell import Cell, Outcome, check_names, is_finished, run_cell
from fedhp.sweep.tasks import LocalTasks, LostTaskError, Tasks

OnDone = Callable[[Cell, Outcome], None]


def run_cells(
    cells: Sequence[Cell], root: Path, config: SimulationConfig, on_done: OnDone
) -> dict[str, Outcome]:
    """Runs the cells whose records are not whole yet, each on one core.

    Args:
        cells: The cells; one that needs others stands after them.
        root: The study's folder, which the caller holds.
        config: How many workers, and where.
        on_done: Told of every cell as it ends.

    Returns:
        What became of each cell, by name.

    Raises:
        RecordError: If a cell's folder holds something else.
        ScenarioError: If two cells have one name, and so one folder.
    """
    check_names(cells)
    whole = {cell.name for cell in cells if is_finished(cell, root)}
    outcomes: dict[str, Outcome] = {}

    def done(cell: Cell, outcome: Outcome) -> None:
        outcomes[cell.name] = outcome
        on_done(cell, outcome)

    for cell in cells:
        if cell.name in whole:
            done(cell, Outcome("skipped"))
    waiting = [cell for cell in cells if cell.name not in whole]
    if waiting:
        with open_tasks(config, len(waiting)) as tasks:
            _run(waiting, root, tasks, outcomes, done)
    return outcomes


def check_outcomes(outcomes: Mapping[str, Outcome]) -> None:
    """Tells of the cells that failed, each with its cause.

    Raises:
        TrainingError: If any did.
    """
    failed = [f"{cell}: {outcome.reason}" for cell, outcome in outcomes.items() if outcome.status == "failed"]
    if failed:
        number = f"{len(failed)} of {len(outcomes)} runs failed; the same command tries them again"
        raise TrainingError("\n  ".join([number, *failed]))


def _run(waiting: list[Cell], root: Path, tasks: Tasks, outcomes: dict[str, Outcome], done: OnDone) -> None:
    running = 0
    while waiting or running:
        for cell in [cell for cell in waiting if all(name in outcomes for name in cell.after)]:
            waiting.remove(cell)
            if lacking := _lacking(cell, outcomes):
                done(cell, lacking)
            else:
                tasks.submit(run_cell, cell, root)
                running += 1
        if running:
            done(*_next(tasks))
            running -= 1


def _lacking(cell: Cell, outcomes: dict[str, Outcome]) -> Outcome | None:
    for name in cell.after:
        if not outcomes[name].has_record:
            return Outcome(outcomes[name].status, f"needs {name}: {outcomes[name].reason}")
    return None


def _next(tasks: Tasks) -> tuple[Cell, Outcome]:
    try:
        return tasks.next_done()
    except LostTaskError as error:
        return error.args[0], Outcome("failed", one_line(f"its process died: {error.__cause__}"))


@contextmanager
def open_tasks(config: SimulationConfig, num_tasks: int) -> Iterator[Tasks]:
    """Opens as many workers as ``simulation.num_workers`` says, but not more than there are calls.

    Raises:
        FedhpError: If the workers do not start.
        MissingExtraError: If workers are asked for and Ray is not installed.
    """
    if config.num_workers == 0:
        yield LocalTasks()
        return
    need_ray("working in parallel")
    from fedhp.sweep.ray_tasks import open_ray_tasks

    with TURN, open_ray_tasks(config, num_tasks) as tasks:
        yield tasks
