"""A scenario's target in milliseconds, turned into the widths that its pruning ends with."""

import importlib.metadata
import inspect
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.dataset import Dataset, open_dataset
from fedhp.errors import DataError
from fedhp.files.cache import cache_folder, key_of, prepared
from fedhp.latency.candidates import Candidate, at_compression, to_measure
from fedhp.latency.choosing import Measured, choose
from fedhp.latency.measuring import Stopwatch, Tell, silent
from fedhp.latency.showing import measuring
from fedhp.latency.work import Counts
from fedhp.model.architecture import Architecture
from fedhp.scenario.recipes import StrategyKind, for_strategy, recipe_of
from fedhp.scenario.schema import Scenario
from fedhp.sizes import format_duration
from fedhp.training.method_names import PRUNING
from fedhp.training.recipe import Recipe

Arrays = dict[str, NDArray[Any]]

_FLOOR = 0.8  # of the whole network's time, from which on widths hang on little


@dataclass(frozen=True, eq=False)
class Choice:
    """The widths of a target in milliseconds.

    Attributes:
        scenario: With `PruneConfig.widths` beside the target.
        notes: What was chosen, and by what, in a line; none where there was no target.
    """

    scenario: Scenario
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Timing:
    """What networks of a scenario's architecture take in a runtime of this machine, measured once and kept.

    Attributes:
        scenario: Of which network, on what data.
        runtime: A name of `fedhp.exports.formats.FORMATS`.
        methods: The client methods that the strategy asks for, which have a part in how groups shrink.
        tell: Called as networks are written: how many, and of how many.
    """

    scenario: Scenario
    runtime: str
    methods: Sequence[str] = PRUNING
    tell: Tell = silent

    @cached_property
    def dataset(self) -> Dataset:
        """The data."""
        return open_dataset(self.scenario.data)

    @cached_property
    def recipe(self) -> Recipe:
        """How the network is trained, and so how its groups shrink."""
        return recipe_of(self.scenario, self.dataset.input_shape, self.dataset.num_classes, self.methods)

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """What measures."""
        return Stopwatch(self.recipe.architecture, self.dataset, self.runtime)

    def measured(self) -> Measured:
        """Returns networks from the full one to the smallest, and what they took.

        Raises:
            MissingExtraError: If the runtime is not installed.
            ExportError: If the format cannot take such a network.
        """
        candidates = to_measure(self.recipe.shape)
        return Measured(candidates, self._times("networks", [one.counts for one in candidates]))

    def at_compression(self) -> Measured:
        """Returns networks of the scenario's size, rounded or not, and what they took.

        Beside them the full one is timed, by which times are brought to those of `measured`.

        Raises:
            ExportError: If the format cannot take such a network.
        """
        compression = self.recipe.prune.target_compression
        candidates, known = at_compression(self.recipe.shape, compression), self.measured()
        counts = [known.candidates[0].counts, *(one.counts for one in candidates)]
        whole, *others = self._times(f"compression-{compression:g}", counts)
        return Measured(candidates, [known.microseconds[0] / whole * took for took in others])

    def chosen(self, target: float) -> tuple[Candidate, float, date]:
        """Returns the widths of a target in microseconds, what they took, and when that was measured.

        Raises:
            ScenarioError: If no network keeps within it.
            MissingExtraError: If the runtime is not installed.
            ExportError: If the format cannot take such a network.
        """
        layout, known = self.recipe.architecture.layout, self.measured()

        def measure() -> Arrays:
            found, took = choose(self.stopwatch, self.recipe.shape, known, target, self.tell)
            values = {"counts": [*found.counts.values()], "channels": found.channels, "microseconds": took}
            values["time"] = time.time()
            return {name: np.array(value) for name, value in values.items()}

        sizes = {"counts": len(layout.widths), "channels": 1, "microseconds": 1, "time": 1}
        kept = self._kept(f"target-{target:g}", measure, sizes)
        counts = dict(zip(layout.widths, kept["counts"].tolist(), strict=True))
        found = Candidate(counts, int(kept["channels"]), layout.num_parameters(counts))
        return found, float(kept["microseconds"]), date.fromtimestamp(float(kept["time"]))

    def forget(self) -> None:
        """Has everything measured again."""
        shutil.rmtree(cache_folder() / self._place, ignore_errors=True)

    def _times(self, what: str, counts: Sequence[Counts]) -> list[float]:
        """Returns what networks take, measured now or before."""

        def measure() -> Arrays:
            return {"microseconds": np.array(self.stopwatch.times(counts, self.tell))}

        return self._kept(what, measure, {"microseconds": len(counts)})["microseconds"].tolist()

    def _kept(self, what: str, measure: Callable[[], Arrays], sizes: Mapping[str, int]) -> Arrays:
        """Returns what was measured here before.

        Raises:
            DataError: If it is damaged: other numbers than so many of each name, all of them above 0.
        """
        kept = prepared(self._place, what, measure)
        if {name: one.size for name, one in kept.items()} != sizes or not all(
            np.all((one > 0) & np.isfinite(one)) for one in kept.values()
        ):
            place = cache_folder() / self._place
            raise DataError(f"the measurements in {place} are damaged; delete that folder to repeat them")
        return kept

    @property
    def _place(self) -> str:
        return f"latency/{key_of(self._identity)}"

    @cached_property
    def _identity(self) -> dict[str, Any]:
        arch, packages = self.recipe.architecture, ("fedhp", *self.stopwatch.form.packages)
        self.stopwatch.check()
        return {
            "model": [asdict(self.scenario.model), _code(arch)],
            "shapes": {name: list(shape) for name, shape in arch.layout.shapes.items()},
            "shares": [round(share, 9) for share in self.recipe.shape.shares.values()],
            "input": [list(arch.input_shape), str(self.dataset.train_images.dtype)],
            "normalisation": self.dataset.normalisation.axis,
            "runtime": [self.runtime, *(importlib.metadata.version(package) for package in packages)],
            "machine": [platform.node(), platform.machine(), platform.processor()],
        }


def with_widths(scenario: Scenario, kind: StrategyKind | None) -> Choice:
    """Returns a scenario that has widths beside its target in milliseconds, if it has such a target.

    Args:
        scenario: The scenario.
        kind: Its strategy; None where one device is trained without. One of full size has no use for the
            target.

    Raises:
        ScenarioError: If no network keeps within the target.
        MissingExtraError: If the runtime is not installed.
        ExportError: If its format cannot take such a network.
    """
    target, runtime = scenario.prune.target_microseconds, scenario.prune.runtime
    heeded = kind is None or kind.heeds("prune.target_latency")
    if target is None or scenario.prune.widths or not heeded:
        return Choice(scenario)
    with measuring(runtime) as tell:
        timing = timing_of(scenario, kind, runtime, tell)
        found, took, when = timing.chosen(target)
        slow = at_the_floor(timing.measured(), runtime)
    whole = timing.recipe.architecture.layout
    said = (
        f"prune.target_latency={scenario.prune.target_latency} in {runtime}: {found.said} took "
        f"{format_duration(took)} on this machine on {when}; {found.num_parameters:,} of "
        f"{whole.num_parameters(whole.widths):,} parameters"
    )
    prune = replace(timing.scenario.prune, widths=list(found.counts.values()))
    return Choice(replace(timing.scenario, prune=prune), (said, *slow))


def at_the_floor(known: Measured, runtime: str) -> tuple[str, ...]:
    """Says where a time tells widths apart badly: what takes it is hardly the network's size."""
    whole, fastest = known.microseconds[0], min(known.microseconds)
    if fastest < _FLOOR * whole:
        return ()
    return (
        f"in {runtime} the fastest network takes {fastest / whole:.2f} of the whole one's time: nearly all "
        f"is the runtime's own, and what is chosen by it hangs on little; prune.target_compression says more",
    )


def _code(arch: Architecture) -> list[str]:
    """Returns what tells a network of the user's own from what it was before it was edited; none of ours."""
    if not arch.is_users_own:
        return []
    module = arch.build(arch.layout.widths)
    found = [repr(module)]
    with suppress(OSError, TypeError):  # there is no source, as in a notebook
        found.append(inspect.getsource(sys.modules[type(module).__module__]))
    return found


def timing_of(scenario: Scenario, kind: StrategyKind | None, runtime: str, tell: Tell) -> Timing:
    """Returns what measures, of the groups that the strategy prunes."""
    if kind is None:
        return Timing(scenario, runtime, PRUNING, tell)
    return Timing(for_strategy(scenario, kind), runtime, kind.methods, tell)
