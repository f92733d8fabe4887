"""The server's side, and the composition root: scenario -> fleet -> strategy -> trackers."""

import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedhp.data import label_counts, partition_notes
from fedhp.errors import FedhpError, ScenarioError
from fedhp.federation import wire
from fedhp.federation.roster import Device, query_fleet
from fedhp.notes import few_held_out, odd_spreads, run_notes, tiny_parts
from fedhp.records import RunPlan, run_folder
from fedhp.scenario.loading import from_json, load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.threads import torch_threads
from fedhp.tracking import Trackers
from fedhp.watch import RunWatch, plan_run, reporting

from .rollback import RollBack
from .setup import Setup, prepare

_notes = logging.getLogger("fedhp.notes")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs a scenario. Run configuration: ``scenario`` (name or path), ``overrides`` (dotlist), ``out``."""
    logging.getLogger("flwr").addFilter(_one_line)
    scenario = _scenario(context)
    config = context.run_config
    show = bool(config.get("show", True))
    with run_folder(scenario.name, str(config["out"]) if config.get("out") else None) as folder:
        simulated = bool(config.get("resolved"))
        # Absolute under Flower, where nobody sees what it is relative to.
        _record(grid, scenario, folder if simulated else folder.absolute(), show, simulated)


def _record(grid: Grid, scenario: Scenario, folder: Path, show: bool, simulated: bool) -> None:
    threads = torch_threads(scenario.simulation.threads_per_worker)
    with threads, reporting(scenario, folder, show) as trackers:
        setup = prepare(scenario, simulated)
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


def _run(grid: Grid, setup: Setup, trackers: Trackers) -> None:
    scenario, strategy = setup.scenario, setup.strategy
    timeout = scenario.server.timeout_seconds
    devices, left_out = query_fleet(grid, strategy.brief, scenario.fleet.num_clients, timeout, setup.parts)
    strategy.enlist(devices)
    profiles = [device.profile for device in devices]
    if not strategy.budgeted:
        profiles = [replace(profile, memory_bytes=None) for profile in profiles]
    partition = _partition(scenario, devices)
    owners = _owners(setup, partition)
    plan = plan_run(scenario, setup.dataset, setup.recipe, setup.memory, profiles, partition, owners)
    trackers.on_start(plan)
    for note in (*left_out, *strategy.remarks, *_what_stands_out(setup, plan, devices)):
        trackers.on_note(note)
    watch = RunWatch(plan, setup.recipe, setup.memory, setup.test, trackers)
    guessing = setup.test.label_counts().max() / len(setup.test)
    safety = RollBack(strategy, watch, float(guessing))

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        look = safety.look(server_round)
        watch.after_round(server_round, strategy.state, strategy.reports, strategy.votes, look)
        strategy.patience.check()
        return MetricRecord({"accuracy": look.accuracy, "loss": look.loss})

    strategy.start(
        grid,
        wire.pack_state(strategy.state),
        num_rounds=scenario.rounds,
        timeout=timeout,
        train_config=ConfigRecord(),
        evaluate_fn=after_round,
    )
    watch.finish()


def _what_stands_out(setup: Setup, plan: RunPlan, devices: Sequence[Device]) -> Iterator[str]:
    scenario, strategy = setup.scenario, setup.strategy
    pruned = plan.budgets if strategy.prunes else {}
    budgets = {f"class '{name}'": budget for name, budget in pruned.items()}
    yield from run_notes(setup.dataset, setup.recipe, setup.memory, budgets)
    if not strategy.prunes:
        first = {device.profile.device_class: device for device in strategy.devices}
        parts = {f"class '{name}'": strategy.assign(device, 1).counts for name, device in first.items()}
        sizes = {name: plan.layout.num_parameters(counts) for name, counts in parts.items()}
        yield from tiny_parts(sizes, plan.params_full)
    own = [device for device in devices if device.profile.own_data]
    if len(own) < len(devices):
        yield from partition_notes(scenario.data, scenario.fleet.num_clients, scenario.seed)
    yield from odd_spreads({f"client {device.client}": device.profile.spread for device in own})
    if scenario.data.local_test:
        yield from few_held_out([device.profile.num_local_test for device in devices])


def _partition(scenario: Scenario, devices: Sequence[Device]) -> dict[int, Sequence[int]]:
    """Returns the samples per label of each client that plays a part of the scenario's data set."""
    players = {device.client for device in devices if not device.profile.own_data}
    counts = label_counts(scenario.data, scenario.fleet.num_clients, scenario.seed) if players else []
    return {client: own.tolist() for client, own in enumerate(counts) if client in players}


def _owners(setup: Setup, clients: Iterable[int]) -> dict[int, str]:
    """Returns whose samples in the data set each of the clients has, where each has an owner's."""
    if setup.scenario.data.partition.name != "natural":
        return {}
    names = setup.dataset.owner_names
    return {client: names[client] for client in clients}


def _one_line(record: logging.LogRecord) -> bool:
    """Lets Flower log what fedhp refuses as its message, without a traceback."""
    refused = record.exc_info[1] if record.exc_info else None
    if isinstance(refused, FedhpError):
        record.msg, record.args, record.exc_info = "%s", (refused,), None
    return True
