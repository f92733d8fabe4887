"""A run over a fleet: who is there, the rounds, and what is said of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from fedhp.data import label_counts, partition_notes
from fedhp.federation import wire
from fedhp.federation.roster import Device, query_fleet
from fedhp.records import RunPlan
from fedhp.run.advice import few_held_out, odd_spreads, run_notes, tiny_parts
from fedhp.run.reporting import RunWatch, plan_run
from fedhp.run.rollback import RollBack
from fedhp.run.setup import Setup
from fedhp.scenario.schema import Scenario
from fedhp.tracking import Trackers


def run_fleet(grid: Grid, setup: Setup, trackers: Trackers) -> None:
    """Runs what was prepared over the devices of a grid.

    Args:
        grid: Where the devices are.
        setup: What `prepare` has made of the scenario.
        trackers: Who is told.

    Raises:
        FedhpError: If no device can take part, or all fail.
    """
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
    pruned = plan.budgets if strategy.prunes() else {}
    budgets = {f"class '{name}'": budget for name, budget in pruned.items()}
    yield from run_notes(setup.dataset, setup.recipe, setup.memory, budgets)
    if not strategy.prunes():
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
