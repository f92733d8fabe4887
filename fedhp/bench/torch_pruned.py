"""DynHP beside one-shot pruning by Torch-Pruning, at equal epochs and parameters: accuracy, and time."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedhp.bench.kept_runs import from_fresh, from_start, train_all
from fedhp.bench.one_shot import check_installed, one_shot
from fedhp.errors import ExportError, ScenarioError
from fedhp.exports.exporting import checked_formats, export
from fedhp.exports.formats.format import Format
from fedhp.exports.loaded import load_trained
from fedhp.exports.measuring import measure
from fedhp.model.state import ModelState
from fedhp.records.load import load_run
from fedhp.run.central import as_recorded
from fedhp.scenario.loading import load_scenario
from fedhp.sweep.cell import Cell, is_finished

PLANS = ("0.5", "0.25:constant")
DYNHP, DENSE = "DynHP", "dense"
_TITLE = "DynHP against Torch-Pruning"
_DENSELY = {"prune.target_compression": 1.0, "prune.marginal": 0.0}
_PLAN = re.compile(r"(?P<share>0?\.\d+)(?P<constant>:constant)?(?P<global>:global)?")


@dataclass(frozen=True)
class Plan:
    """How one-shot pruning spends its epochs.

    Attributes:
        said: As it was given.
        share: Of the epochs, those before the cut.
        constant: Whether the learning rate stays as it is until the cut; else it falls twice.
        over_all: Whether layers are ranked together.
    """

    said: str
    share: float
    constant: bool
    over_all: bool

    @property
    def folder(self) -> str:
        """The name of its folders."""
        return f"one-shot-{self.said.replace(':', '-')}"

    @staticmethod
    def parsed(said: str) -> "Plan":
        """Reads a share, such as 0.5, after which may stand ``:constant`` and ``:global``.

        Raises:
            ScenarioError: If it is no such thing.
        """
        found = _PLAN.fullmatch(said.strip())
        if found is None or not float(found["share"]):
            raise ScenarioError(
                f"'{said}' is no plan: give the share of epochs before the cut, such as 0.5, 0.5:constant, "
                "0.5:global or 0.5:constant:global"
            )
        return Plan(found[0], float(found["share"]), bool(found["constant"]), bool(found["global"]))


def run_torch_pruned(
    scenarios: Sequence[str] = ("fashion_mnist", "cifar10"),
    seeds: Sequence[int] = (0, 1, 2),
    plans: Sequence[str] = PLANS,
    root: Path = Path("runs/torch-pruning"),
    overrides: Sequence[str] = (),
    seconds: float = 1.0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains each scenario on one device by DynHP, densely, and by one cut of Torch-Pruning and fine-tuning.

    All take the same epochs, batches and optimiser. What DynHP and the best plan ended with is exported to
    each format that is installed, and timed there in turns with the dense network. In an environment that has
    another runtime, records are taken as they are.

    Args:
        scenarios: Names or paths.
        seeds: Seeds.
        plans: As `Plan.parsed` takes them.
        root: The folder of the records; what is there already is not trained again.
        overrides: Scenario values, as on the command line.
        seconds: How long each file is timed.
        say: Is told what is measured.

    Returns:
        ``runs``: each training's parameters and accuracy; ``rows``: per scenario and arm the means over
        seeds, with the deviations of accuracy and of its difference from DynHP's of the same seed, and for
        each format the time of a sample as a share of the dense network's; ``times``: these shares, and
        the dense network's microseconds.

    Raises:
        FedhpError: If Torch-Pruning is not installed and something is still to be cut, or a training failed.
    """
    wanted = [Plan.parsed(plan) for plan in plans]
    arms = {name: list(_arms(name, seeds, wanted, overrides)) for name in scenarios}
    cells = [cell for cells in arms.values() for cell in cells]
    if any(cell.labels.get("plan") and not is_finished(cell, root) for cell in cells):
        check_installed()
    train_all(cells, root, _TITLE, say)
    runs, rows, times = [], [], {}
    for found in arms.values():
        own = [_run(cell, root) for cell in found if "arm" in cell.labels]
        best = max(wanted, key=lambda plan: mean(_of(own, plan.said, "accuracy"))).said
        runs += own
        times[own[0]["scenario"]] = dict(_times(own, best, root, seconds, say))
        rows += _summaries(own, times[own[0]["scenario"]])
    return {"runs": runs, "rows": rows, "times": times}


def _arms(name: str, seeds: Sequence[int], plans: Sequence[Plan], overrides: Sequence[str]) -> Iterator[Cell]:
    """Yields the trainings of a scenario; one that needs others stands after them."""
    epochs = load_scenario(name, overrides).train.epochs
    for seed in seeds:
        cell = partial(_cell, name, seed, overrides)
        yield (dynhp := cell("dynhp", {}, DYNHP))
        yield cell("dense", _DENSELY, DENSE)
        firsts = {}
        for plan in plans:
            before = min(max(round(plan.share * epochs), 1), epochs - 1)
            first = f"before-{before}{'-constant' * plan.constant}"
            schedule = {"train.lr_schedule": "constant"} if plan.constant else {}
            if first not in firsts:
                firsts[first] = cell(first, {**_DENSELY, **schedule, "train.epochs": before})
                yield firsts[first]
            rest = {**_DENSELY, "train.epochs": epochs - before}
            after = firsts[first].name, dynhp.name
            yield cell(plan.folder, rest, plan.said, plan, after)


def _cell(
    name: str,
    seed: int,
    overrides: Sequence[str],
    folder: str,
    values: Mapping[str, Any],
    arm: str = "",
    plan: Plan | None = None,
    after: tuple[str, ...] = (),
) -> Cell:
    scenario = as_recorded(load_scenario(name, overrides, {**values, "seed": seed}))
    run = from_fresh if plan is None else partial(from_start, partial(_cut, plan))
    labels = {"scenario": scenario.name, "seed": seed, **({"arm": arm} if arm else {}), "plan": plan}
    return Cell(f"{scenario.name}/{folder}/seed-{seed}", scenario, run, labels, after)


def _cut(plan: Plan, cell: Cell, root: Path) -> ModelState:
    """Returns what the dense network is cut to: as many parameters as DynHP's."""
    first, dynhp = (root / name for name in cell.after)
    trained = load_trained(first)
    return one_shot(trained.arch, trained.state, load_run(dynhp).summary["params_final"], plan.over_all)


def _run(cell: Cell, root: Path) -> dict[str, Any]:
    summary = load_run(root / cell.name).summary
    return {
        "scenario": cell.labels["scenario"],
        "arm": cell.labels["arm"],
        "seed": cell.labels["seed"],
        "parameters": summary["params_final"],
        "accuracy": round(100 * summary["final_accuracy"], 2),
        "record": cell.name,
    }


def _of(runs: Sequence[Mapping[str, Any]], arm: str, key: str) -> list[Any]:
    return [run[key] for run in runs if run["arm"] == arm]


def _times(
    runs: Sequence[Mapping[str, Any]], best: str, root: Path, seconds: float, say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields for each format the time of a sample beside the dense network's, by arm, and that one's."""
    for form in checked_formats(()):
        if form.name == "torch":  # in which nobody runs a device
            continue
        say(f"{form.name}: exporting and timing")
        dense = _file(root / _of(runs, DENSE, "record")[0], form)
        files = {arm: [_file(root / one, form) for one in _of(runs, arm, "record")] for arm in (DYNHP, best)}
        found = measure([file for own in files.values() for file in own], dense, seconds=seconds)
        shares = {one.file: one.against.time for one in found.files if one.against is not None}
        say(f"{form.name}: the dense network takes {found.files[0].microseconds:.1f} us")
        times = {arm: mean(shares[str(file)] for file in own) for arm, own in files.items()}
        yield form.name, {DENSE: 1.0, **times, "microseconds": found.files[0].microseconds}


def _file(record: Path, form: Format) -> Path:
    """Returns the exported network of a record, written now where it is not there."""
    file = record / "export" / f"model{form.suffix}"
    if not file.exists():
        for what, why in export(record, [form.name]).failures.items():
            raise ExportError(f"{record}: {what}: {why}")
    return file


def _summaries(
    runs: Sequence[Mapping[str, Any]], times: Mapping[str, Mapping[str, float]]
) -> Iterator[dict[str, Any]]:
    base = _of(runs, DYNHP, "accuracy")
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = _of(runs, arm, "accuracy")
        points = [one - other for one, other in zip(own, base, strict=True)]
        yield {
            "scenario": runs[0]["scenario"],
            "arm": arm if arm in (DYNHP, DENSE) else f"one shot {arm}",
            "size": round(mean(_of(runs, arm, "parameters"))),
            "%": round(mean(own), 2),
            "±": _deviation(own),
            "points": round(mean(points), 2) + 0.0,  # no -0
            "± points": _deviation(points),
            **{f"x {form}": round(time[arm], 3) for form, time in times.items() if arm in time},
        }


def _deviation(values: Sequence[float]) -> float:
    return round(stdev(values), 2) if len(values) > 1 else 0.0
