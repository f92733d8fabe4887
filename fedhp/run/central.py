"""Training on one device, without a federation: the client's own loop, in one round of many epochs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedhp.aggregation.assignment import fit_structure
from fedhp.costs.memory import MemoryModel
from fedhp.data.dataset import Dataset, open_dataset
from fedhp.data.parts import test_shard, train_shard
from fedhp.data.shard import Shard
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.building import fresh_state, initial_state
from fedhp.model.state import ModelState
from fedhp.records.kept import Keeper, Kept
from fedhp.records.load import undamaged
from fedhp.records.replied import succeeded
from fedhp.records.rows import ClientReport
from fedhp.run.advice import run_notes
from fedhp.run.basis import basis, check_basis
from fedhp.run.reporting import reporting
from fedhp.run.resuming import notes_on
from fedhp.run.watch import RunWatch, plan_run
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario, ServerConfig
from fedhp.threads import torch_threads
from fedhp.tracking.tracker import Trackers
from fedhp.tracking.wandb_tracker import check_installed
from fedhp.training.handed_on import HandedOn
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally
from fedhp.training.update import RoundTask, Update

# What a scenario says of fleets, which a device that trains alone has no use for.
FLEET_KEYS = (
    "rounds",
    "train.local_epochs",
    "train.proximal_mu",
    "train.masked_loss",
    "data.partition",
    "data.local_test",
    "fleet",
    "prune.blend",
    "prune.regrow",
    "strategy",
    *(f"server.{option.name}" for option in fields(ServerConfig) if option.name != "checkpoint"),
    "simulation.num_workers",
    "simulation.address",
    "simulation.gpus_per_worker",
)
# And what it says of such a device, which a fleet has no use for.
CENTRAL_KEYS = ("train.epochs", "memory.budget")

Keep = Callable[[int, Callable[[], Mapping[str, Any]]], None]


@dataclass(frozen=True)
class Central:
    """What training on one device takes.

    Attributes:
        scenario: The scenario, `as_recorded`.
        dataset: Its data, as the run found it.
        recipe: How to train: one round of all epochs.
        memory: The memory model.
        train: All training samples.
        test: The held-out samples.
        start: The model to start from; it fits the budget.
    """

    scenario: Scenario
    dataset: Dataset
    recipe: Recipe
    memory: MemoryModel
    train: Shard
    test: Shard
    start: ModelState

    @cached_property
    def basis(self) -> dict[str, str]:
        """What its result hangs on besides the scenario."""
        return basis(self.scenario, self.dataset, self.recipe.architecture.layout)

    @property
    def profile(self) -> DeviceProfile:
        """The device."""
        return DeviceProfile("device", self.scenario.memory.budget_bytes, len(self.train))


def as_recorded(scenario: Scenario) -> Scenario:
    """Returns the scenario as the record has it: its rounds are the epochs, one pass over the data each."""
    return replace(scenario, rounds=scenario.train.epochs, train=replace(scenario.train, local_epochs=1))


def prepare_central(scenario: Scenario, start: ModelState | None = None) -> Central:
    """Opens the data, lays out the model and checks that everything fits together.

    Args:
        scenario: The scenario, of which ``train.epochs`` and ``memory.budget`` take the place of rounds and
            fleet.
        start: The model to start from; by default a fresh one of full size.

    Raises:
        ScenarioError: If the model cannot be pruned as asked.
        BudgetError: If the budget does not hold even the smallest structure.
        DataError: If the data is missing or wrong.
    """
    check_installed(scenario.tracking.wandb)
    dataset, epochs = open_dataset(scenario.data), scenario.train.epochs
    whole = recipe_of(scenario, dataset.input_shape, dataset.num_classes)
    scenario = replace(scenario, prune=whole.prune)
    recipe = replace(
        whole,
        rounds=1,
        # It is sent no model to stay near to, and lacks no class that others have.
        train=replace(scenario.train, local_epochs=epochs, proximal_mu=0.0, masked_loss=False),
        # There is no fleet whose scores to heed, nor a server that keeps what was cut.
        prune=replace(whole.prune, blend=0.0, regrow=0.0),
    )
    recipe.device()
    recipe.check_batch()
    recipe.check_methods()
    train = train_shard(scenario.data)
    memory = recipe.memory_model(train.raw_itemsize)
    budget, batch = scenario.memory.budget_bytes, scenario.train.batch_size
    state = start or initial_state(recipe.architecture, scenario.seed)
    fits = fit_structure(memory, recipe.shape, state, budget, batch)
    if start is None:
        start = fresh_state(recipe.architecture, fits, scenario.seed)
    else:
        start = start.cut(recipe.architecture.layout, fits)
    return Central(as_recorded(scenario), dataset, recipe, memory, train, test_shard(scenario.data), start)


def train_central(
    scenario: Scenario,
    folder: Path,
    start: ModelState | None = None,
    show: bool = True,
    kept: Kept | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Trains on one device, and records it as a run whose rounds are epochs.

    Args:
        scenario: The scenario.
        folder: The run record.
        start: The model to start from; by default a fresh one of full size.
        show: Whether the run is shown in the terminal.
        kept: Where a run that was cut short goes on.
        notes: What is known of it already that its user should know.

    Raises:
        FedhpError: If scenario, data, budget or folder are not as they must be.
    """
    with torch_threads(scenario.simulation.threads_per_worker):
        central = prepare_central(scenario, start)
        before = None if kept is None else _handed_on(kept, central)
        with reporting(central.scenario, folder, show, kept) as trackers:
            watch = _begun(central, trackers, notes)
            if kept is None:
                watch.after_round(0, central.start)
            else:
                watch.recall(kept.reports(central.recipe.architecture.layout.widths))
                for note in notes_on(kept, central.scenario.rounds, central.basis):
                    trackers.on_note(note)
            keeper = Keeper(folder, central.scenario, central.basis, simulated=True, alone=True)
            _train(central, watch, before, keeper.keep)
            watch.finish()


def _handed_on(kept: Kept, central: Central) -> HandedOn:
    """Returns what the last epoch has handed on.

    Raises:
        RecordError: If data or network are others than they were, or it does not fit the model.
    """
    check_basis(kept, central.basis)
    with undamaged(kept.folder):
        return HandedOn.of(kept.state, central.recipe.architecture.layout)


def _begun(central: Central, trackers: Trackers, notes: Sequence[str]) -> RunWatch:
    """Tells the trackers what is to be run."""
    plan = plan_run(central.scenario, central.dataset, central.recipe, central.memory, [central.profile])
    trackers.on_start(plan)
    budgets = {"memory.budget": central.profile.memory_bytes}
    for note in (*notes, *run_notes(central.dataset, central.recipe, central.memory, budgets)):
        trackers.on_note(note)
    return RunWatch(plan, central.recipe, central.memory, central.test, trackers)


def _train(central: Central, watch: RunWatch, before: HandedOn | None, keep: Keep) -> None:
    epoch = 0 if before is None else before.epochs
    if epoch == central.scenario.rounds:  # it was cut short as it ended
        return

    def on_epoch(update: Update, hand_on: Callable[[], HandedOn | None]) -> None:
        nonlocal epoch
        epoch += 1
        watch.after_round(epoch, update.state, (_row(central, epoch, update),))
        if (handed_on := hand_on()) is not None:
            keep(epoch + 1, handed_on.values)

    task = RoundTask(1, 0, central.profile, central.start if before is None else before.model)
    train_locally(central.recipe, task, central.train, on_epoch, before=before)


def _row(central: Central, epoch: int, update: Update) -> ClientReport:
    """Returns the epoch's row of ``clients.parquet``; nothing is sent where nobody else is."""
    layout = central.recipe.architecture.layout
    row = ClientReport(
        round=epoch,
        client=0,
        device_class=central.profile.device_class,
        status="ok",
        failure="",
        num_examples=central.profile.num_examples,
        memory_budget_bytes=central.profile.memory_bytes,
        params_received=layout.num_parameters(update.assigned.counts),
        bytes_down=0,
    )
    return succeeded(row, update.said, layout)
