"""What was found of two records as files: one page, its figures, and tables for programs."""

from pathlib import Path

from fedhp.drawing import page, plot
from fedhp.errors import RecordError
from fedhp.files.marks import COMPARISON, RUN, STUDY
from fedhp.report.writing import write_page
from fedhp.twins import figures, texts
from fedhp.twins.result import RecordComparison

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write(found: RecordComparison, out: Path) -> Path:
    """Writes ``report.html``, the folder ``figures``, ``figures.csv`` and ``failures.csv``; returns the page.

    Raises:
        RecordError: If the folder is one of a run or of several, which have a report of their own, or cannot
            be written to.
    """
    if any((out / mark).exists() for mark in (RUN, COMPARISON, STUDY)):
        raise RecordError(f"{out} is a record, with a report of its own; choose another folder for this one")
    pictures = [(one, plot.render(one)) for one in figures.plots(found)]
    text = page.fill(
        _TEMPLATE,
        pictures=pictures,
        title=found.simulated.config.name,
        runs={"simulated": found.simulated, "real": found.real},
        facts=texts.abouts(found),
        cautions=found.cautions,
        alike=texts.said_alike(found),
        tables=texts.tables(found),
        heading=["", *texts.HEADING],
        meaning=texts.MEANING,
        failures=[["class", "cause", "simulated", "real"], *texts.said_failures(found)],
    )
    written = write_page(out, text, pictures)
    found.figures.to_csv(out / "figures.csv", index=False)
    found.failures.to_csv(out / "failures.csv", index=False)
    return written
