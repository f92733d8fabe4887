"""What is known of a run before its first round, and a look at the global model after each."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedhp.aggregation.reconcile import Shares
from fedhp.costs.memory import MemoryModel
from fedhp.data.dataset import Dataset
from fedhp.data.shard import Shard
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.sparse_network import filled
from fedhp.model.state import ModelState
from fedhp.records.plan import RunPlan
from fedhp.records.rows import ClientReport, Level, RoundReport
from fedhp.records.totals import RunTotals
from fedhp.run.advice import LossNotes
from fedhp.scenario.schema import Scenario
from fedhp.tracking.tracker import Trackers
from fedhp.training.evaluation import evaluate
from fedhp.training.recipe import Recipe, with_all_weights


def plan_run(
    scenario: Scenario,
    dataset: Dataset,
    recipe: Recipe,
    memory: MemoryModel,
    profiles: Sequence[DeviceProfile],
    partition: Mapping[int, Sequence[int]] | None = None,
    owners: Mapping[int, str] | None = None,
) -> RunPlan:
    """Returns what is known of a run on these devices before its first round; classes as in the scenario."""
    arch, dense = recipe.architecture, with_all_weights(recipe)
    whole = dense.architecture.layout
    names = [kind.name for kind in scenario.fleet.classes]
    names += [profile.device_class for profile in profiles]  # which devices may have given themselves
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    profiles = sorted(profiles, key=lambda profile: place[profile.device_class])
    return RunPlan(
        scenario=scenario,
        layout=arch.layout,
        devices=Counter(profile.device_class for profile in profiles),
        budgets={profile.device_class: profile.memory_bytes for profile in profiles},
        params_full=whole.num_parameters(whole.widths),
        training_bytes_full=dense.memory_model(memory.raw_itemsize).training_bytes(
            whole.widths, scenario.train.batch_size
        ),
        input_shape=arch.input_shape,
        num_classes=arch.num_classes,
        partition=partition or {},
        owners=owners or {},
        normalisation=dataset.normalisation,
        label_names=dataset.label_names,
        stored=whole,
    )


@dataclass(frozen=True)
class Look:
    """How good a model is on the held-out samples, and the seconds that it took to see."""

    accuracy: float
    loss: float
    seconds: float


class RunWatch:
    """Evaluates the global model after each round, round 0 first, and tells the trackers what happened.

    Args:
        plan: The run.
        recipe: How clients train.
        memory: The memory model.
        test: The held-out samples.
        trackers: Who is told.

    Attributes:
        last: The last round; None before round 0.
    """

    def __init__(
        self, plan: RunPlan, recipe: Recipe, memory: MemoryModel, test: Shard, trackers: Trackers
    ) -> None:
        self._plan, self._recipe, self._memory = plan, recipe, memory
        self._test, self._trackers = test, trackers
        self._previous = time.perf_counter()
        self.last: RoundReport | None = None
        self._totals = RunTotals(plan)
        self._loss = LossNotes(test.label_counts(), plan.scenario.train, plan.scenario.rounds)

    def look(self, state: ModelState) -> Look:
        """Evaluates a model on the held-out samples."""
        started = time.perf_counter()
        arch, state = filled(self._recipe.architecture, state)
        accuracy, loss = evaluate(arch, state, self._test, self._recipe.device())
        return Look(accuracy, loss, time.perf_counter() - started)

    def _level(self, state: ModelState) -> Level:
        look, params = self.look(state), self._plan.layout.num_parameters(state.structure.counts)
        return Level(state, params, look.accuracy, look.loss)

    def after_round(
        self,
        number: int,
        state: ModelState,
        clients: tuple[ClientReport, ...] = (),
        votes: Shares | None = None,
        look: Look | None = None,
        levels: Mapping[str, ModelState] | None = None,
    ) -> None:
        """Tells the trackers of a round; of its model, looked at already or not, on the held-out samples."""
        look = look or self.look(state)
        seen = {name: self._level(level) for name, level in (levels or {}).items()}
        now = time.perf_counter()
        params = self._plan.layout.num_parameters(state.structure.counts)
        batch = self._plan.scenario.train.batch_size
        report = RoundReport(
            round=number,
            accuracy=look.accuracy,
            loss=look.loss,
            structure=state.structure,
            params=params,
            compression=self._plan.params_full / params,
            training_bytes=self._memory.training_bytes(state.structure.counts, batch),
            structure_change=self.last and self.last.structure.distance(state.structure),
            clients=clients,
            seconds=now - self._previous,
            evaluation_seconds=look.seconds,
            votes=votes or {},
            levels=seen,
        )
        self._previous = now
        self._trackers.on_round(report, filled(self._recipe.architecture, state)[1])
        for note in self._take(report):
            self._trackers.on_note(note)

    def recall(self, past: Iterable[RoundReport]) -> None:
        """Takes in, and tells the trackers of, the rounds that were held before a run was cut short."""
        for report in past:
            self._take(report)
            self._trackers.on_past(report)
        self._previous = time.perf_counter()

    def _take(self, report: RoundReport) -> list[str]:
        """Takes in a round; returns what it gives cause to note."""
        self.last = report
        self._totals.add(report)
        return list(self._loss.after(report))

    def finish(self) -> None:
        """Tells the trackers that the last round is done."""
        self._trackers.on_finish(self._totals.summary())
