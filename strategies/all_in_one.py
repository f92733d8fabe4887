"""All-in-One: one set of weights for many ratios, of which a device takes what its clock allows."""

from collections.abc import Mapping
from functools import cached_property

from fedhp.aggregation.reconcile import Reconciliation
from fedhp.federation.device import Device
from fedhp.latency.work import Work
from fedhp.model.shrinking import at_level
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.pruning.cutting import select
from fedhp.training.methods.all_in_one import AllInOne as Client
from fedhp.training.parts import LEVELS

from .submodel import Nested


class AllInOne(Nested):
    """The units of the highest scores; each step trains one of the ratios that the device holds.

    Ratios are ``strategy.levels``, by default 0.2, 0.4, 0.6, 0.8 and 1. A device trains the largest that its
    budget holds, or, where its clock is below full speed, that takes no longer than that one would at full
    speed. Each ratio has running statistics of its own. From ``prune.end`` on a ratio's units stay.
    """

    methods = (Client.name,)
    paper = "after Gong et al. 2022, arXiv 2212.05122"

    def assign(self, device: Device, server_round: int) -> Structure:
        """The units of the ratio that budget and clock allow."""
        widest = self.counts(device.profile.memory_bytes)
        return self._units(self.state, self._in_time(widest, self.clock(device, server_round) or 1.0))

    def levels(self, model: ModelState) -> Mapping[str, Structure]:
        """Returns the units of each ratio, of those that the model holds, the widest first."""
        return {f"{share:g}": self._units(model, counts) for share, counts in self._ratios.items()}

    def average(self, reconciliation: Reconciliation) -> ModelState:
        """Means over the holders; once units are to stay, so do the scores that they are chosen by."""
        mean = super().average(reconciliation)
        if self.server.round + 1 <= self.scenario.prune.end * self.scenario.rounds:
            return mean
        return ModelState(mean.weights, mean.structure, self.state.scores)

    @property
    def shares(self) -> list[float]:
        """The ratios, as shares of every group's width."""
        return self.scenario.strategy.levels or [*LEVELS]

    @property
    def _ratios(self) -> dict[float, Mapping[str, int]]:
        """Units of each ratio that some device trains."""
        within = self.state.structure.counts
        counts = {share: at_level(self.layout, share) for share in sorted(self.shares, reverse=True)}
        return {
            share: found
            for share, found in counts.items()
            if all(found[group] <= most for group, most in within.items())
        }

    def _in_time(self, widest: Mapping[str, int], clock: float) -> Mapping[str, int]:
        """Returns the units of the widest ratio that takes, at this clock, as long as one at full speed.

        Time is counted in the multiplications of a sample. Where none is narrow enough, it is the narrowest.
        """
        limit = clock * self._work.products(widest)
        ratios = [found for found in self._ratios.values() if self._work.products(found) <= limit]
        return ratios[0] if ratios else [*self._ratios.values()][-1]

    def _units(self, model: ModelState, counts: Mapping[str, int]) -> Structure:
        """Returns the best units of a model, found once for all devices that are sent as many."""
        key = tuple(counts.values())
        state, structure = self._found.get(key, (None, model.structure))
        if state is not model:
            structure = select(model.scores, model.structure, counts, counts)
            self._found[key] = model, structure
        return structure

    @cached_property
    def _found(self) -> dict[tuple[int, ...], tuple[ModelState, Structure]]:
        return {}

    @cached_property
    def _work(self) -> Work:
        return Work(self.recipe.architecture)
