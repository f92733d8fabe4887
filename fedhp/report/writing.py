"""Writing a report: one page that needs nothing beside it, and its figures as files."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedhp.errors import MissingExtraError, RecordError, TrainingError, require
from fedhp.files.atomic import replace_text
from fedhp.files.marks import COMPARISON
from fedhp.records.load import load_run, undamaged

if TYPE_CHECKING:
    from fedhp.drawing.plot import Picture, Plot

_logger = logging.getLogger("fedhp")


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes ``report.html`` and the folder ``figures`` for the record of a run, and returns the page.

    What an earlier report left there is replaced. A run that goes on, or was killed, is reported as far as it
    came; figures for which the record holds nothing are left out, with a sentence that says why.

    Args:
        folder: The run record.
        out: Where to; by default into the record.

    Raises:
        RecordError: If the folder holds no record, or one without a round, or ``out`` cannot be written to.
        MissingExtraError: If what draws or lays out is not installed.
    """
    with require("a report", "plots"):
        from fedhp.drawing import plot
        from fedhp.report import figures, page
    if (Path(folder) / COMPARISON).is_file():
        raise RecordError(
            f"{folder} is a comparison: 'fedhp report' takes it, and from Python "
            "fedhp.comparison.report.report_on_folder; or give the folder of one of its runs"
        )
    run = load_run(folder)
    if run.rounds.empty:
        raise RecordError(
            f"{run.folder} holds no round yet, and so nothing to report; its first is there once the run has "
            "evaluated the model before training"
        )
    with undamaged(run.folder):
        pictures = [(one, plot.render(one)) for one in figures.plots(run)]
        text = page.render(run, pictures)
    return write_page(Path(out) if out is not None else run.folder, text, pictures)


def drawn(folder: Path) -> dict[str, bytes]:
    """Returns the figures of a run's report as PNG by name; none where what draws is not installed.

    Raises:
        RecordError: If the folder holds no record.
    """
    try:
        from fedhp.drawing import plot
        from fedhp.report import figures
    except ModuleNotFoundError:
        return {}
    pictures = {one.name: plot.render(one) for one in figures.plots(load_run(folder))}
    return {name: picture.png for name, picture in pictures.items() if picture is not None}


def write_page(target: Path, page: str, pictures: Iterable[tuple["Plot", "Picture | None"]]) -> Path:
    """Writes ``report.html`` and its figures into a folder, which is made, and returns the page.

    Raises:
        RecordError: If it cannot be written to.
    """
    try:
        (target / "figures").mkdir(parents=True, exist_ok=True)
        for one, picture in pictures:
            if picture is not None:
                (target / "figures" / f"{one.name}.png").write_bytes(picture.png)
                (target / "figures" / f"{one.name}.svg").write_text(picture.light, encoding="utf-8")
        return replace_text(target / "report.html", page)
    except OSError as error:
        raise RecordError(
            f"the report cannot be written to {target}: {error}; --out writes it elsewhere"
        ) from None


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Reports on the run that goes on meanwhile; on one that failed too, as far as it came.

    Raises:
        RecordError: If there comes no report on a run that did not fail.
    """
    try:
        yield
    except TrainingError:  # no other comes once there is a record
        if (folder / "rounds.parquet").exists():
            _report_besides(folder)
        raise
    report_on(folder)


def _report_besides(folder: Path) -> None:
    """Reports on a run that has failed, whose cause is told even where its report fails too."""
    try:
        report_on(folder)
    except RecordError as error:
        _logger.warning("%s", error)


def report_on(folder: Path, write: Callable[[Path], Path] = write_report) -> None:
    """Reports on what has just ended, and says where; or that what draws is not installed.

    Raises:
        RecordError: If there comes no report, for whatever reason.
    """
    try:
        _logger.info("report: %s", _from_here(write(folder)))
    except MissingExtraError as error:
        _logger.info("no report: %s", error)
    except Exception as error:
        cause = error if isinstance(error, RecordError) else f"{type(error).__name__}: {error}"
        raise RecordError(
            f"no report, which takes nothing from the record in {folder}: {cause}; 'fedhp report {folder}' "
            "tries again"
        ) from error


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
