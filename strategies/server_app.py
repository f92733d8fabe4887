"""The server's side, and the composition root: scenario -> fleet -> strategy -> trackers."""

import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedhp import wire
from fedhp.config import Scenario, from_json, load_scenario
from fedhp.data import note_on_labels, open_dataset
from fedhp.errors import FedhpError, ScenarioError, TrainingError
from fedhp.evaluation import evaluate
from fedhp.state import RoundReport
from fedhp.tracking import (
    ConsoleTracker,
    RunPlan,
    RunRecord,
    RunTotals,
    Tracker,
    Trackers,
    WandbTracker,
    default_folder,
)

from .roster import Device, query_fleet
from .setup import Setup, prepare, small_budgets

_PATIENCE = 3

_notes = logging.getLogger("fedhp.notes")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs a scenario. Run configuration: ``scenario`` (name or path), ``overrides`` (dotlist), ``out``."""
    logging.getLogger("flwr").addFilter(_one_line)
    scenario = _scenario(context)
    folder = _folder(context, scenario)
    with _reporting(scenario, folder) as trackers:
        setup = prepare(scenario)
        _run(grid, setup, trackers)


def _scenario(context: Context) -> Scenario:
    """Reads the run configuration; ``resolved`` is how `fedhp run` hands over what it has checked."""
    config = context.run_config
    if config.get("resolved"):
        return from_json(str(config["resolved"]))
    try:
        overrides = shlex.split(str(config.get("overrides", "")))
    except ValueError as error:
        raise ScenarioError(f"overrides {config['overrides']!r} cannot be split: {error}") from None
    return load_scenario(str(config.get("scenario", "quickstart")), overrides)


def _folder(context: Context, scenario: Scenario) -> Path:
    """Returns where the record goes: absolute under Flower, where nobody sees what it is relative to."""
    config = context.run_config
    folder = Path(str(config.get("out") or default_folder(scenario.name)))
    return folder if config.get("resolved") else folder.absolute()


def _run(grid: Grid, setup: Setup, trackers: Trackers) -> None:
    scenario, strategy = setup.scenario, setup.strategy
    timeout = scenario.server.timeout_seconds
    devices = query_fleet(grid, strategy.brief, scenario.fleet.num_clients, timeout)
    strategy.enlist(devices)
    plan = _plan(setup, devices)
    trackers.on_start(plan)
    if note := note_on_labels(open_dataset(scenario.data)):
        trackers.on_note(note)
    if strategy.prunes:
        for note in small_budgets(setup.recipe, setup.memory, plan.budgets):
            trackers.on_note(note)
    watch = _RoundWatch(setup, plan, trackers)
    strategy.start(
        grid,
        wire.pack_state(strategy.state),
        num_rounds=scenario.rounds,
        timeout=timeout,
        train_config=ConfigRecord(),
        evaluate_fn=watch.after_round,
    )
    trackers.on_finish(watch.totals.summary())


class _RoundWatch:
    """Evaluates the global model after each round and tells the trackers what happened."""

    def __init__(self, setup: Setup, plan: RunPlan, trackers: Trackers) -> None:
        self._setup, self._plan, self._trackers = setup, plan, trackers
        self._previous = time.perf_counter()
        self.totals = RunTotals(plan)

    def after_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Flower calls this with round 0 before training, and after every round."""
        setup, state = self._setup, self._setup.strategy.state
        trained = time.perf_counter()
        accuracy, loss = evaluate(setup.recipe.architecture, state, setup.test, setup.recipe.device())
        now = time.perf_counter()
        params = setup.recipe.architecture.layout.num_parameters(state.structure.counts)
        batch = setup.scenario.train.batch_size
        report = RoundReport(
            round=server_round,
            accuracy=accuracy,
            loss=loss,
            structure=state.structure,
            params=params,
            compression=self._plan.params_full / params,
            training_bytes=setup.memory.training_bytes(state.structure.counts, batch),
            clients=setup.strategy.reports,
            seconds=now - self._previous,
            evaluation_seconds=now - trained,
        )
        self._previous = now
        self.totals.add(report)
        self._trackers.on_round(report, state)
        self._refuse_silence(server_round)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    def _refuse_silence(self, server_round: int) -> None:
        """Ends the run when nobody has answered for some rounds: nothing is being learned.

        Raises:
            TrainingError: With the first cause.
        """
        strategy = self._setup.strategy
        if strategy.rounds_in_vain < _PATIENCE:
            return
        first = strategy.reports[0]
        raise TrainingError(
            f"round {server_round}: all clients failed in {_PATIENCE} rounds in a row; client "
            f"{first.client}, for one, with: {first.failure}"
        )


def _plan(setup: Setup, devices: Sequence[Device]) -> RunPlan:
    layout, scenario = setup.recipe.architecture.layout, setup.scenario
    budgeted = setup.strategy.budgeted
    classes = Counter(device.profile.device_class for device in devices)
    budgets = {
        device.profile.device_class: device.profile.memory_bytes if budgeted else None for device in devices
    }
    batch = scenario.train.batch_size
    return RunPlan(
        scenario=scenario,
        layout=layout,
        devices=classes,
        budgets=budgets,
        params_full=layout.num_parameters(layout.widths),
        training_bytes_full=setup.memory.training_bytes(layout.widths, batch),
        input_shape=setup.recipe.architecture.input_shape,
        num_classes=setup.recipe.architecture.num_classes,
    )


@contextmanager
def _reporting(scenario: Scenario, folder: Path) -> Iterator[Trackers]:
    """Opens the trackers, and closes them whatever happens."""
    record = RunRecord(folder)
    members: list[Tracker] = [record]
    if scenario.tracking.wandb.mode != "none":
        members.append(WandbTracker(scenario.tracking.wandb, scenario, folder))
    members.append(ConsoleTracker(folder=folder))
    trackers = Trackers(members)
    threads = torch.get_num_threads()
    torch.set_num_threads(scenario.simulation.threads_per_worker)
    with _notes_to(trackers):
        try:
            yield trackers
        except FedhpError as error:
            Trackers([record]).on_note(f"stopped: {error}")  # whoever called shows it
            raise
        finally:
            torch.set_num_threads(threads)
            trackers.close()


@contextmanager
def _notes_to(trackers: Trackers) -> Iterator[None]:
    """Passes what is logged as a note (a lost worker, a dropped reply) to the trackers, which show it."""
    if not logging.getLogger().handlers and not logging.getLogger("fedhp").handlers:
        logging.getLogger("fedhp").addHandler(logging.StreamHandler(sys.stdout))
        logging.getLogger("fedhp").setLevel(logging.INFO)
    handler = _Notes(trackers)
    _notes.addHandler(handler)
    _notes.propagate = False
    try:
        yield
    finally:
        _notes.propagate = True
        _notes.removeHandler(handler)


class _Notes(logging.Handler):
    def __init__(self, trackers: Trackers) -> None:
        super().__init__(logging.INFO)
        self._trackers = trackers

    def emit(self, record: logging.LogRecord) -> None:
        self._trackers.on_note(record.getMessage())


def _one_line(record: logging.LogRecord) -> bool:
    """Lets Flower log what fedhp refuses as its message, without a traceback."""
    refused = record.exc_info[1] if record.exc_info else None
    if isinstance(refused, FedhpError):
        record.msg, record.args, record.exc_info = "%s", (refused,), None
    return True
