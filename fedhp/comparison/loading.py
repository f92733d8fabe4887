"""A comparison read back from its folder: the records, and the tables over them."""

from collections.abc import Mapping
from pathlib import Path

from fedhp.comparison.devices import devices
from fedhp.comparison.facets import facets
from fedhp.comparison.manifest import Entry, Manifest, read_manifest
from fedhp.comparison.pairs import pair_rows
from fedhp.comparison.result import Result, Tables
from fedhp.comparison.rows import arm_rows, class_rows, run_rows
from fedhp.comparison.settings import common_settings, differences
from fedhp.errors import RecordError
from fedhp.records.load import load_run
from fedhp.records.result import RunResult

_AGAIN = "repeat the 'fedhp compare' that wrote it, which goes on where it was cut short"


def load_result(root: Path) -> Result:
    """Reads a comparison whose runs have all ended.

    Raises:
        RecordError: If the folder is no comparison, one of its runs is not finished, none has a record, or
            the runs differ in more than what was compared.
        DataError: If devices were not judged yet, and the data is not there any more.
    """
    manifest = read_manifest(root)
    records = {entry.folder: run for entry in manifest.runs if (run := _record(root, entry)) is not None}
    if not records:
        reasons = {entry.reason for entry in manifest.runs if entry.reason}
        because = f": {'; '.join(sorted(reasons))}" if reasons else ""
        raise RecordError(f"{root} is a comparison of which no run has a record{because}")
    _check_equal(root, manifest, records)
    judged = {folder: devices(run) for folder, run in records.items()}
    runs = run_rows(manifest.runs, records, judged, manifest.export)
    classes = class_rows(manifest.runs, records, judged)
    arms = arm_rows(runs, manifest.keys)
    pairs = pair_rows(facets(manifest.keys, arms), runs)
    return Result(root, manifest, records, judged, Tables(runs, arms, classes, pairs))


def _record(root: Path, entry: Entry) -> RunResult | None:
    """Returns a run's record; None where the run was refused or failed."""
    if entry.reason:
        return None
    folder = root / entry.folder
    if not folder.is_dir():
        raise RecordError(f"{folder} is missing: this run of the comparison has no record yet; {_AGAIN}")
    run = load_run(folder)
    if run.summary["status"] != "finished":
        raise RecordError(
            f"{folder} is not finished, but {run.summary['status']} after {run.summary['rounds']} of "
            f"{run.config.rounds} rounds; {_AGAIN}"
        )
    return run


def _check_equal(root: Path, manifest: Manifest, records: Mapping[str, RunResult]) -> None:
    """Refuses to compare runs that differ in more than strategy, seed and the varied key."""
    first = next(iter(records))
    of_value: dict[tuple[tuple[str, str], ...], str] = {}
    for entry in manifest.runs:
        if entry.folder not in records:
            continue
        # Runs of one value share that too; those of others are held against the first of all.
        same = of_value.setdefault(tuple(entry.values.items()), entry.folder)
        for other, keys in ((same, ()), (first, manifest.keys)):
            was = common_settings(records[other].config, keys)
            if different := differences(was, common_settings(records[entry.folder].config, keys)):
                raise RecordError(
                    f"{root / entry.folder} and {root / other} differ in more than what is compared "
                    f"({', '.join(different)}); remove the one that is wrong, and {_AGAIN}"
                )
