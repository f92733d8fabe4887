"""DynHP: tracks what units contribute, and cuts the least of them as the schedule demands, hard."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from fedhp.costs.memory import Extras
from fedhp.model.state import Scores
from fedhp.model.structure import Structure
from fedhp.pruning.contributions import Contributions
from fedhp.pruning.criteria import CRITERIA, check_criterion
from fedhp.pruning.cutting import select
from fedhp.pruning.schedule import scheduled_size
from fedhp.seeds import generator
from fedhp.training.method import ClientRun, Method, cut
from fedhp.training.method_names import DYNHP
from fedhp.training.recipe import Recipe
from fedhp.training.shortage import ahead_of_schedule


class DynHP(Method):
    """Dynamic hard pruning, while anything is left to cut: otherwise tracking would be for nothing."""

    name = DYNHP
    by_strategy = True
    stackable = True
    prunes = True
    shrinks = True
    on_arrays = True

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where there is a target."""
        return recipe.prune.target_compression > 1

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """What looks at units take; their averages are counted for every training."""
        criterion = CRITERIA[recipe.prune.criterion]
        # At least the newest score, before it enters the average.
        per_unit = dict.fromkeys(recipe.architecture.layout.widths, max(criterion.unit_bytes, 4))
        return Extras(scratch=criterion.scratch, unit_bytes=per_unit)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that the model has what the criterion looks at, and that the target is in reach."""
        check_criterion(recipe.prune.criterion, recipe.architecture.layout)
        recipe.schedule.check_target()

    def __init__(self) -> None:
        self._size = 1.0  # the schedule's share at the last cut
        self._watch: Contributions | None = None
        self._is_due = False  # whether anything is left to cut

    @property
    def tensors(self) -> Sequence[Any]:
        """The averages of contributions."""
        return () if self._watch is None else self._watch.tensors

    @property
    def key(self) -> Hashable:
        """By what it scores, if it still does."""
        return (self.name, self._criterion) if self._is_due else None

    @property
    def wants_gradients(self) -> bool:
        """Where the next step is looked at."""
        return self._is_due and self._watch is not None and self._watch.is_due

    def begin(self, run: ClientRun) -> None:
        """Begins to watch, if anything will ever be cut."""
        recipe = run.recipe
        self._criterion = recipe.prune.criterion
        self._is_due = recipe.schedule.asks_for_less(run.structure.counts)
        if self._is_due:
            self._watch = _watching(run)

    def kept(self) -> Mapping[str, Any]:
        """Returns how far it has come, and what it knows of units."""
        return {"size": self._size, "watch": None if self._watch is None else self._watch.kept()}

    def take_up(self, run: ClientRun, kept: Mapping[str, Any]) -> None:
        """Goes on from there; what it knows has its place in memory also where nothing is left to cut."""
        self._size, known = float(kept["size"]), kept["watch"]
        if known is None:
            return
        self._watch = self._watch or _watching(run)
        self._watch.take_up(known, lambda scores: run.runtime.array(scores, run.device))
        if not self._is_due:
            self._watch.close()

    def on_gradients(self, run: ClientRun) -> None:
        """Measures units by the loss's gradients alone."""
        if self._is_due and self._watch is not None:
            self._watch.observe()

    def after_step(self, run: ClientRun) -> None:
        """Cuts, if it is time to."""
        if not self._is_due or self._watch is None:
            return
        self._watch.count()
        prune, schedule = run.recipe.prune, run.recipe.schedule
        size = scheduled_size(prune, run.progress)
        if size >= (1.0 if prune.marginal else self._size):
            return  # as small already as is due
        self._size = size
        if prune.marginal or schedule.asks_for_less(run.structure.counts, run.progress):
            self._cut(run, self._watch)

    def on_shortage(self, run: ClientRun, budget_bytes: int) -> None:
        """Cuts ahead of the schedule, by the scores that there are."""
        assigned, within = run.task.state, run.structure
        scores = (
            {g: known[assigned.structure.positions(within, g)] for g, known in assigned.scores.items()}
            if self._watch is None
            else self._watch.blended()
        )
        self._cut_to(run, ahead_of_schedule(run.recipe, run.memory, within, budget_bytes, scores))

    def _cut(self, run: ClientRun, watch: Contributions) -> None:
        schedule, within = run.recipe.schedule, run.structure
        # Ahead of schedule is not beyond it: shares of a mean that rises with every cut would go on for ever.
        allowed, least = schedule.held(run.progress), schedule.counts(1.0)
        self._cut_to(run, select(watch.blended(), within, allowed, least, run.recipe.prune.marginal))

    def _cut_to(self, run: ClientRun, target: Structure) -> None:
        within = run.structure
        if target == within:
            return
        cut(run, target)
        self._is_due = run.recipe.schedule.asks_for_less(target.counts)
        if self._watch is not None:
            self._watch.cut(within, target)
            if not self._is_due:
                self._watch.close()

    def end(self, run: ClientRun) -> Scores:
        """Returns the scores that this training shows."""
        if self._watch is None:
            return {}
        self._watch.close()
        return self._watch.own()


def _watching(run: ClientRun) -> Contributions:
    recipe, task = run.recipe, run.task
    return Contributions(
        recipe.architecture.layout,
        CRITERIA[recipe.prune.criterion],
        run.module,
        task.state.scores,
        recipe.prune.blend,
        generator(recipe.seed, "criterion", task.round, task.client),
    )
