"""From the records of a published table's runs to its lines: ours beside theirs."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from fedhp.records.load import load_run
from fedhp.studies.published.tables import TABLES, TARGET
from fedhp.sweep.averages import deviation_of, grouped, known, mean_of
from fedhp.sweep.cell import Cell, Outcome
from fedhp.sweep.texts import Row


def rounds_to(target: float, accuracies: Sequence[float]) -> float | None:
    """Returns after how many rounds an accuracy is reached; None if it is not.

    The curve is made monotone, by the best so far, and crossed by linear interpolation between rounds
    (McMahan et al. 2017, arXiv 1602.05629, section 3).

    Args:
        target: The accuracy.
        accuracies: After each round, from round 0, which is before training.
    """
    best = list(accumulate(accuracies, max))
    if best[:1] and best[0] >= target:
        return 0.0
    for number, (before, after) in enumerate(pairwise(best)):
        if after >= target:
            return number + (target - before) / (after - before)
    return None


def cell_rows(cells: Sequence[Cell], outcomes: Mapping[str, Outcome], root: Path) -> list[Row]:
    """Returns a row per run: its labels, how it ended, and the figures of its record."""
    return list(_cell_rows(cells, outcomes, root))


def _cell_rows(cells: Sequence[Cell], outcomes: Mapping[str, Outcome], root: Path) -> Iterator[Row]:
    for cell in cells:
        outcome = outcomes[cell.name]
        row: Row = {**cell.labels, "status": outcome.status, "reason": outcome.reason}
        if outcome.has_record:
            rounds = load_run(root / cell.name).rounds
            accuracies = rounds["accuracy"].tolist()
            row["last"], row["best"] = 100 * accuracies[-1], 100 * max(accuracies)
            if TABLES[cell.labels["table"]].reads == "rounds":
                row["rounds"] = rounds_to(TARGET, accuracies)
            row["seconds"] = sum(rounds["seconds"].tolist())
        yield row


def line_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns a row per line of a table: means over seeds, deviations, and the distance to what is published.

    What no run of the line has is None, and so is the distance where not all have what it is of. ``reached``
    is how many runs have reached the target.
    """
    return [_line(members) for members in grouped(rows, "table", "case")]


def _line(members: Sequence[Row]) -> Row:
    name, case = members[0]["table"], members[0]["case"]
    table = TABLES[name]
    line = next(line for line in table.lines if line.case == case)
    row: Row = {"table": name, "case": case, "seeds": len(known(members, "last"))}
    for key in ("last", "best", "rounds"):
        row[key], row[f"{key}_deviation"] = mean_of(members, key), deviation_of(members, key)
    row["reached"] = len(known(members, "rounds"))
    ours = row[table.reads] if len(known(members, table.reads)) == row["seeds"] else None
    row |= {"reads": table.reads, "published": line.published, "published_deviation": line.deviation}
    row["difference"] = None if ours is None else ours - line.published
    row["seconds"] = mean_of(members, "seconds")
    return row
