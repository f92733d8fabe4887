"""The report of a comparison: one page and its figures, as a run has them."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedhp.errors import RecordError, require
from fedhp.files.marks import COMPARISON, RUN, STUDY
from fedhp.records.load import undamaged
from fedhp.report.writing import write_page, write_report

if TYPE_CHECKING:
    from fedhp.comparison.result import Result

_MOST_NAMED = 5
_TEMPLATE = Path(__file__).with_name("page.html.j2")


def report_on_folder(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run or of a comparison, whichever the folder holds, and returns the page.

    Args:
        folder: A run record, or the folder of a comparison.
        out: Where to; by default into the folder.

    Raises:
        RecordError: If the folder holds neither, one that is not whole, or ``out`` cannot be written to.
        MissingExtraError: If what reads, draws or lays out is not installed.
    """
    folder = Path(folder)
    if (folder / COMPARISON).is_file():
        with require("a comparison", "server"):
            from fedhp.comparison.loading import load_result
        with undamaged(folder):
            return write_comparison_report(load_result(folder), out)
    if (folder / STUDY).is_file():
        raise RecordError(
            f"{folder} is a study, which has no report: look at its table.md and figure.png, or give the "
            "folder of one of its runs, such as those that end in seed-0"
        )
    if not (folder / RUN).is_file() and (below := _records_below(folder)):
        more = f" and {len(below) - _MOST_NAMED} more" if len(below) > _MOST_NAMED else ""
        raise RecordError(
            f"{folder} is no run record, but holds {', '.join(map(str, below[:_MOST_NAMED]))}{more}: "
            "give one of these"
        )
    return write_report(folder, out)


def _records_below(folder: Path) -> list[Path]:
    """Returns the runs and comparisons right below a folder, the one that began last first."""
    marks = [*folder.glob(f"*/{RUN}"), *folder.glob(f"*/{COMPARISON}")]
    return [mark.parent for mark in sorted(marks, key=lambda mark: (-mark.stat().st_mtime, mark))]


def write_comparison_report(result: "Result", out: str | Path | None = None) -> Path:
    """Writes ``report.html`` and the folder ``figures`` for a comparison, and returns the page.

    Args:
        result: The comparison.
        out: Where to; by default into its folder.

    Raises:
        RecordError: If ``out`` cannot be written to.
        MissingExtraError: If what draws or lays out is not installed.
    """
    with require("a report", "plots"):
        from fedhp.comparison import figures
        from fedhp.drawing import page, plot
    pictures = [(one, plot.render(one)) for one in figures.plots(result)]
    text = page.fill(_TEMPLATE, pictures=pictures, **_values(result))
    return write_page(Path(out) if out is not None else result.root, text, pictures)


def _values(result: "Result") -> dict[str, object]:
    from fedhp.comparison import facts, texts

    tables, how = result.tables, texts.measured(result)
    return {
        "title": result.manifest.title,
        "facts": facts.facts(result),
        "equal": facts.equal(result),
        "settings": facts.equal_settings(result),
        "facets": [
            {
                "title": facet.title,
                "arms": texts.arm_texts(facet, result.manifest.export),
                "notes": [*texts.said_identical(result, facet), *texts.reasons(facet)],
                "pairs": texts.pair_texts(facet, tables.pairs),
                "classes": texts.class_texts(facet, tables.classes),
            }
            for facet in result.facets
        ],
        "meaning": texts.meaning(result),
        "pairs": texts.PAIRS,
        "measured": how,
        "folder": result.root.name,
        "versions": next(iter(result.records.values())).summary["versions"],
    }
