"""A simulation's record held against that of a federation on devices."""

from pathlib import Path

from fedhp.errors import RecordError, require
from fedhp.records.load import load_run, undamaged
from fedhp.records.result import RunResult
from fedhp.twins import measures
from fedhp.twins.likeness import cautions, likeness
from fedhp.twins.result import RecordComparison


def compare_records(
    simulated: str | Path | RunResult, real: str | Path | RunResult, out: str | Path | None = None
) -> RecordComparison:
    """Holds the record of a simulation against that of its scenario on devices: what was how far off?

    Example:
        >>> found = fedhp.compare_records("runs/simulated", "fleet/runs/real", out="pages/twins")
        >>> found.figures.query("figure == 'seconds'")

    Args:
        simulated: The folder of the simulation's record, or the record; the run may go on, or have been cut
            short.
        real: The same of the devices.
        out: Where to write ``report.html``, its figures and tables in CSV; without it, nothing is written.

    Raises:
        RecordError: If a folder holds no run record, a damaged one, or one without a round; or ``out`` is a
            record itself, or cannot be written to.
        MissingExtraError: If what reads, draws or lays out is not installed.
    """
    ours, theirs = (one if isinstance(one, RunResult) else load_run(one) for one in (simulated, real))
    with undamaged(ours.folder, theirs.folder):
        found = _compared(ours, theirs)
    if out is not None:
        with require("a report", "plots"):
            from fedhp.twins import writing
        writing.write(found, Path(out))
    return found


def _compared(simulated: RunResult, real: RunResult) -> RecordComparison:
    with require("comparing records", "server"):
        import pandas as pd
    rounds = min(_rounds(run) for run in (simulated, real))
    return RecordComparison(
        simulated,
        real,
        rounds,
        tuple(cautions(simulated, real)),
        likeness(simulated, real),
        pd.DataFrame(measures.rows(simulated, real, rounds)),
        pd.DataFrame(measures.failures(simulated, real, rounds), columns=pd.Index(measures.FAILURES)),
    )


def _rounds(run: RunResult) -> int:
    """Returns how many rounds a run has held.

    Raises:
        RecordError: If it has held none.
    """
    numbers = run.rounds["round"].tolist()
    if not any(numbers):  # round 0 is the model before training
        raise RecordError(f"{run.folder} has held no round yet, and so there is nothing to compare")
    return max(numbers)
