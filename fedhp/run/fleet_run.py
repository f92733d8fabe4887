"""A run over a fleet: who is there, the rounds, and what is said of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from flwr.serverapp import Grid

from fedhp.data.partition import label_counts, partition_notes
from fedhp.federation.device import Device
from fedhp.federation.replies import in_order
from fedhp.federation.roster import query_fleet
from fedhp.federation.rounds import close_round
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.records.plan import RunPlan
from fedhp.run.advice import few_held_out, odd_spreads, run_notes, tiny_parts
from fedhp.run.prepared import Setup
from fedhp.run.rollback import RollBack
from fedhp.run.watch import RunWatch, plan_run
from fedhp.scenario.schema import Scenario
from fedhp.tracking.tracker import Trackers


def run_fleet(grid: Grid, setup: Setup, trackers: Trackers) -> None:
    """Runs what was prepared over the devices of a grid.

    Args:
        grid: Where the devices are.
        setup: What `prepare` has made of the scenario.
        trackers: Who is told.

    Raises:
        FedhpError: If no device can take part, or all fail.
    """
    strategy, timeout = setup.strategy, setup.scenario.server.timeout_seconds
    watch = RunWatch(_begun(grid, setup, trackers), setup.recipe, setup.memory, setup.test, trackers)
    guessing = setup.test.label_counts().max() / len(setup.test)
    safety = RollBack(watch, float(guessing), setup.scenario.server.roll_back)

    def conclude(before: ServerState, after: ServerState, outcome: Outcome) -> None:
        after, outcome, look = safety.looked_at(before, after, outcome)
        strategy.server, strategy.outcome = after, outcome
        watch.after_round(after.round, after.model, outcome.rows, outcome.votes, look)
        strategy.patience.check(after)

    conclude(strategy.server, strategy.server, strategy.outcome)
    while strategy.server.round < setup.scenario.rounds:
        before, (sent, parts) = strategy.server, strategy.exchange(grid, timeout)
        after, outcome = close_round(strategy, before, parts)
        asked = strategy.ask_for_statistics(after, outcome, sent)
        if asked.messages:
            replies = grid.send_and_receive(asked.messages, timeout=timeout)
            after, outcome = strategy.statistics.taken(after, outcome, in_order(asked.sent, replies))
        conclude(before, after, outcome)
    watch.finish()


def _begun(grid: Grid, setup: Setup, trackers: Trackers) -> RunPlan:
    """Asks who is there, and tells the trackers what is to be run over them."""
    scenario, strategy = setup.scenario, setup.strategy
    num_clients, timeout = scenario.fleet.num_clients, scenario.server.timeout_seconds
    devices, left_out = query_fleet(grid, strategy.brief, num_clients, timeout, setup.parts)
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
    return plan


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
