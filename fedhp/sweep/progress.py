"""How far a study is: a bar in a terminal, otherwise a line per cell."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedhp.records.wording import duration
from fedhp.sweep.cell import Cell, Outcome
from fedhp.sweep.running import OnDone

_logger = logging.getLogger("fedhp")


@contextmanager
def shown(console: Console, num_cells: int) -> Iterator[OnDone]:
    """Shows progress while the cells run; yields what is to be told of each cell as it ends."""
    pace = _Pace(num_cells)
    if not console.is_terminal:
        yield lambda cell, outcome: _logger.info("%s", pace.line(cell, outcome))
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("cells", total=num_cells)

        def on_done(cell: Cell, outcome: Outcome) -> None:
            line = pace.line(cell, outcome)
            if outcome.reason:
                console.print(escape(line), style="yellow", highlight=False, emoji=False)
            bar.update(task, advance=1, description=escape(f"cells{pace.left()}"))

        yield on_done


class _Pace:
    """Counts cells, and says how long the rest will take if they go on as those that were run."""

    def __init__(self, num_cells: int) -> None:
        self._total, self._done, self._ran = num_cells, 0, 0
        self._started = time.monotonic()

    def line(self, cell: Cell, outcome: Outcome) -> str:
        self._done += 1
        self._ran += outcome.status != "skipped"
        reason = f": {outcome.reason}" if outcome.reason else ""
        return f"{self._done} of {self._total}: {cell.name} {outcome.status}{reason}{self.left()}"

    def left(self) -> str:
        rest = self._total - self._done
        if not self._ran or not rest:
            return ""
        return f", {duration((time.monotonic() - self._started) / self._ran * rest)} left"
