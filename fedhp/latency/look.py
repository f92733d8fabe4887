"""What there is to choose from: networks of a scenario, what they take, and what is learnt of others."""

from dataclasses import dataclass
from typing import Any

from fedhp.choices import check_choice
from fedhp.errors import ScenarioError
from fedhp.exports.formats import FORMATS
from fedhp.latency.candidates import Candidate
from fedhp.latency.choosing import Measured
from fedhp.latency.model import LatencyModel
from fedhp.latency.showing import measuring
from fedhp.latency.target import at_the_floor, timing_of, with_widths
from fedhp.latency.work import TERMS, Work
from fedhp.scenario.recipes import StrategyKind
from fedhp.scenario.schema import Scenario


@dataclass(frozen=True, eq=False)
class Fitted:
    """What networks of a scenario take in a runtime, and what is learnt of others from it.

    Attributes:
        runtime: A name of `fedhp.exports.formats.FORMATS`.
        measured: The networks, the whole one first.
        beside: Those of the scenario's size, where it has no target in milliseconds.
        model: What is learnt.
        notes: What the scenario's target in milliseconds comes to; none where it has none.
    """

    runtime: str
    measured: Measured
    beside: Measured
    model: LatencyModel
    notes: tuple[str, ...]

    @property
    def rows(self) -> list[tuple[Candidate, float]]:
        """The networks with their microseconds, those with the most parameters first."""
        found = {tuple(one.counts.values()): (one, took) for one, took in (*self.beside, *self.measured)}
        return sorted(found.values(), key=lambda pair: -pair[0].num_parameters)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        networks = [
            {
                "widths": dict(one.counts),
                "multiple_of": one.channels,
                "parameters": one.num_parameters,
                "microseconds": round(took, 2),
                "predicted_microseconds": round(self.model.predict(one.counts), 2),
            }
            for one, took in self.rows
        ]
        terms = dict(zip(TERMS, map(float, self.model.microseconds), strict=True))
        model = {"block": self.model.block, "error": round(self.model.error, 4), "microseconds": terms}
        return {"runtime": self.runtime, "networks": networks, "model": model, "notes": list(self.notes)}


def look(scenario: Scenario, kind: StrategyKind, runtime: str = "", again: bool = False) -> Fitted:
    """Returns what networks of a scenario take in a runtime.

    Args:
        scenario: The scenario.
        kind: Its strategy, which says what of it is pruned.
        runtime: A name of `fedhp.exports.formats.FORMATS`; empty is the one of the scenario's target.
        again: Whether to measure what was measured here before.

    Raises:
        ScenarioError: If no runtime is named, or no network keeps within the scenario's target.
        MissingExtraError: If the runtime is not installed.
        ExportError: If its format cannot take such a network.
    """
    target = scenario.prune.target_latency
    if target and runtime not in ("", scenario.prune.runtime):
        raise ScenarioError(
            f"--runtime {runtime} and prune.runtime={scenario.prune.runtime} are both given; leave one out"
        )
    runtime = runtime or scenario.prune.runtime
    if not runtime:
        raise ScenarioError(f"no runtime is named; give --runtime, one of {', '.join(FORMATS)}")
    check_choice("--runtime", runtime, FORMATS)
    with measuring(runtime) as tell:
        timing = timing_of(scenario, kind, runtime, tell)
        if again:
            timing.forget()
        known = timing.measured()
        beside = Measured((), ()) if target else timing.at_compression()
    model = known.model(Work(timing.recipe.architecture))
    notes = with_widths(scenario, kind).notes if target else at_the_floor(known, runtime)
    return Fitted(runtime, known, beside, model, notes)
