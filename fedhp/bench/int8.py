"""What int8 costs in accuracy: exported networks in their runtimes, on all held-out samples."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.bench.kept_runs import from_fresh, train_all
from fedhp.errors import ExportError
from fedhp.exports.exporting import checked_formats, export
from fedhp.exports.formats.format import INT8, Format
from fedhp.exports.loaded import load_trained
from fedhp.exports.network import raw_sample
from fedhp.exports.samples import batches, raw_data
from fedhp.records.load import load_run
from fedhp.run.central import as_recorded
from fedhp.scenario.loading import load_scenario
from fedhp.sweep.cell import Cell

_ALL = 10**6


def run_int8(
    scenarios: Sequence[str] = ("fashion_mnist", "cifar10"),
    seeds: Sequence[int] = (0, 1, 2),
    root: Path = Path("runs/int8"),
    overrides: Sequence[str] = (),
    calibration: int = 200,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains each scenario on one device as it stands, and exports it in float32 and int8.

    Args:
        scenarios: Names or paths.
        seeds: Seeds.
        root: The folder of the records; what is there already is not trained again.
        overrides: Scenario values, as on the command line.
        calibration: How many training samples give the ranges of activations.
        say: Is told what is measured.

    Returns:
        ``runs``: the accuracies of each file; ``rows``: per scenario and format their means over seeds, in
        per cent, and the mean and the deviation of the difference.

    Raises:
        FedhpError: If a training failed, or a format cannot take the network.
    """
    cells = [_cell(name, seed, overrides) for name in scenarios for seed in seeds]
    train_all(cells, root, "int8 against float32", say)
    runs = []
    for cell in cells:
        for form in checked_formats(()):
            if INT8 in form.dtypes:
                say(f"{cell.name}, {form.name}")
                found = _accuracies(root / cell.name, form, calibration)
                runs.append({**cell.labels, "format": form.name, **found})
    return {"calibration": calibration, "runs": runs, "rows": list(_summaries(runs))}


def _cell(name: str, seed: int, overrides: Sequence[str]) -> Cell:
    scenario = as_recorded(load_scenario(name, overrides, {"seed": seed}))
    labels = {"scenario": scenario.name, "seed": seed}
    return Cell(f"{scenario.name}/seed-{seed}", scenario, from_fresh, labels)


def _accuracies(record: Path, form: Format, calibration: int) -> dict[str, float]:
    """Returns in per cent what of all held-out samples each file gets right, and both answer alike."""
    trained, run = load_trained(record), load_run(record)
    raw = raw_data(run.config.data, run.config.seed, None, _ALL, 0)
    shape, kind = trained.arch.input_shape, raw.held_out.dtype
    samples = batches(raw.held_out, raw_sample(shape, trained.normalisation, kind, form.channels_last))
    with tempfile.TemporaryDirectory() as folder:
        done = export(record, [form.name], [INT8], folder, calibration=calibration)
        if done.failures:
            raise ExportError("; ".join(f"{what}: {why}" for what, why in done.failures.items()))
        plain, short = (_answers(form, Path(folder) / one.name, samples) for one in done.files)
    right = {"float32": plain == raw.labels, INT8: short == raw.labels, "same": plain == short}
    return {name: round(float(100 * np.mean(found)), 2) for name, found in right.items()}


def _answers(form: Format, file: Path, samples: Sequence[NDArray[Any]]) -> NDArray[np.intp]:
    runs = form.opened(file)
    return np.array([runs(sample).argmax() for sample in samples])


def _summaries(runs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for scenario, form in dict.fromkeys((run["scenario"], run["format"]) for run in runs):
        own = [run for run in runs if (run["scenario"], run["format"]) == (scenario, form)]
        points = [run[INT8] - run["float32"] for run in own]
        yield {
            "scenario": scenario,
            "format": form,
            "float32_%": round(mean(run["float32"] for run in own), 2),
            "int8_%": round(mean(run[INT8] for run in own), 2),
            "points": round(mean(points), 2) + 0.0,  # no -0
            "±": round(stdev(points), 2) if len(points) > 1 else 0.0,
            "worst": round(min(points), 2),
            "same_%": round(mean(run["same"] for run in own), 2),
        }
