"""Widths chosen by the time that they take: as many parameters as a target in milliseconds lets in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from fedhp.errors import ScenarioError
from fedhp.latency.candidates import Candidate, to_choose_from
from fedhp.latency.measuring import Stopwatch, Tell, silent
from fedhp.latency.model import LatencyModel, fit
from fedhp.latency.work import Work
from fedhp.model.shrinking import Shape
from fedhp.sizes import format_duration

_TRIES = 5  # networks that are measured before one is taken


@dataclass(frozen=True, eq=False)
class Measured:
    """Networks of an architecture in a runtime, and what they took.

    Attributes:
        candidates: The networks.
        microseconds: What a sample took in each.
    """

    candidates: Sequence[Candidate]
    microseconds: Sequence[float]

    def __iter__(self) -> Iterator[tuple[Candidate, float]]:
        return zip(self.candidates, self.microseconds, strict=True)

    def within(self, target: float) -> list[tuple[Candidate, float]]:
        """Returns those that took no longer than a target, the largest first."""
        return sorted((one for one in self if one[1] <= target), key=lambda one: -one[0].num_parameters)

    def model(self, work: Work) -> LatencyModel:
        """Returns what is learnt from them of others."""
        return fit(work, [one.counts for one in self.candidates], self.microseconds)


def choose(
    stopwatch: Stopwatch, shape: Shape, known: Measured, target: float, tell: Tell = silent
) -> tuple[Candidate, float]:
    """Returns the network with the most parameters whose sample takes no longer than a target.

    What the model says is held against the runtime: the network that it names is measured, and what was
    found corrects it, until a few have been measured. Of those the largest is taken that kept within the
    target. Where none did, the largest that did so before, and the fastest, are measured once more.

    Args:
        stopwatch: What measures.
        shape: How groups shrink together.
        known: What was measured before.
        target: In microseconds.
        tell: Called before each that is measured: how many were, and of how many at most.

    Returns:
        The network, and what a sample took in microseconds.

    Raises:
        ScenarioError: If none is found.
    """
    model, correction = known.model(Work(stopwatch.arch)), 1.0
    candidates = to_choose_from(shape)
    predicted = {id(one): model.predict(one.counts) for one in candidates}
    tried: dict[int, tuple[Candidate, float]] = {}
    for _ in range(_TRIES):
        fits = [one for one in candidates if correction * predicted[id(one)] <= target]
        wanted = fits[0] if fits else min(candidates, key=lambda one: predicted[id(one)])
        if id(wanted) in tried:
            break
        tell(len(tried), _TRIES)
        (took,) = stopwatch.times([wanted.counts])
        tried[id(wanted)] = wanted, took
        correction = took / predicted[id(wanted)]
    within = [one for one in tried.values() if one[1] <= target]
    if not within and (before := known.within(target)):  # whatever the model says
        again = [*before[: _TRIES - 1], min(before, key=itemgetter(1))]
        times = stopwatch.times([one.counts for one, _ in again])
        tried |= {id(one): (one, took) for (one, _), took in zip(again, times, strict=True)}
        within = [one for one in tried.values() if one[1] <= target]
    if not within:
        fastest = min(took for _, took in tried.values())
        raise ScenarioError(_out_of_reach(stopwatch.runtime, target, known.microseconds[0], fastest))
    return max(within, key=lambda one: one[0].num_parameters)


def _out_of_reach(runtime: str, target: float, whole: float, fastest: float) -> str:
    return (
        f"prune.target_latency = {format_duration(target)} is not reached by any network that was tried: in "
        f"{runtime} on this machine, on one thread, a sample takes {format_duration(whole)} in the whole "
        f"model and {format_duration(fastest)} in the fastest; raise the target, or choose a smaller model"
    )
