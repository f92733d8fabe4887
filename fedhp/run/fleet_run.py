"""A run over a fleet: who is there, the rounds, and what is said of them."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from flwr.serverapp import Grid

from fedhp.data.partition import partition_notes
from fedhp.federation.attendance import Attendance
from fedhp.federation.device import Device
from fedhp.federation.levels import level_states, with_level_statistics
from fedhp.federation.numbers import Given, Numbers
from fedhp.federation.replies import in_order
from fedhp.federation.roster import Places, find_fleet
from fedhp.federation.rounds import close_round
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.federation.strategy import FleetStrategy
from fedhp.records.kept import Keeper, Kept
from fedhp.records.load import undamaged
from fedhp.records.plan import RunPlan
from fedhp.run.advice import few_held_out, odd_spreads, run_notes, tiny_parts
from fedhp.run.basis import check_basis
from fedhp.run.parts import owners_of, parts_of, players
from fedhp.run.prepared import Setup
from fedhp.run.resuming import notes_on
from fedhp.run.rollback import RollBack
from fedhp.run.watch import RunWatch, plan_run
from fedhp.simulation.grid import SimulatedGrid
from fedhp.tracking.tracker import Trackers

_POLL_SECONDS = 0.5


def run_fleet(
    grid: Grid, setup: Setup, trackers: Trackers, keeper: Keeper | None = None, kept: Kept | None = None
) -> None:
    """Runs what was prepared over the devices of a grid.

    Args:
        grid: Where the devices are.
        setup: What `prepare` has made of the scenario.
        trackers: Who is told.
        keeper: Keeps what the run goes on from if it is cut short.
        kept: Where a run that was cut short goes on.

    Raises:
        FedhpError: If no device can take part, or all fail.
    """
    strategy, timeout = setup.strategy, setup.scenario.server.timeout_seconds
    before = None if kept is None else _server_of(kept, setup)
    plan, attendance = _begun(grid, setup, trackers, () if before is None else before.numbers)
    watch = RunWatch(plan, setup.recipe, setup.memory, setup.test, trackers)
    if kept is not None and before is not None:
        strategy.server = before
        watch.recall(kept.reports(strategy.layout.widths))
        for note in notes_on(kept, setup.scenario.rounds, setup.basis):
            trackers.on_note(note)
    guessing = setup.test.label_counts().max() / len(setup.test)
    safety = RollBack(watch, float(guessing), setup.scenario.server.roll_back, watch.last)

    def keep(told: int) -> None:
        if keeper is not None:
            keeper.keep(told, strategy.server.values)

    def conclude(before: ServerState, after: ServerState, outcome: Outcome) -> None:
        after, outcome, look = safety.looked_at(before, after, outcome)
        strategy.server, strategy.outcome = after, outcome
        levels = level_states(strategy, after)
        watch.after_round(after.round, after.model, outcome.rows, outcome.votes, look, levels)
        strategy.patience.check(after)
        keep(after.round + 1)

    if watch.last is None:
        keep(0)
        conclude(strategy.server, strategy.server, strategy.outcome)
    while strategy.server.round < setup.scenario.rounds:
        if attendance is not None:
            _gather(attendance, strategy, trackers)
        strategy.begin(grid, timeout)
        before, (sent, parts) = strategy.server, strategy.exchange(grid, timeout)
        after, outcome = strategy.closed(*close_round(strategy, strategy.server, parts))
        asked = strategy.ask_for_statistics(after, outcome, sent)
        if asked.messages:
            replies = grid.send_and_receive(asked.messages, timeout=timeout)
            after, outcome = strategy.statistics.taken(after, outcome, in_order(asked.sent, replies))
        after, outcome = with_level_statistics(strategy, grid, timeout, after, outcome, sent)
        conclude(before, after, outcome)
    watch.finish()


def _server_of(kept: Kept, setup: Setup) -> ServerState:
    """Returns what the server held.

    Raises:
        RecordError: If data or network are others than they were, or it does not fit the model.
    """
    check_basis(kept, setup.basis)
    with undamaged(kept.folder):
        return ServerState.of(kept.state, setup.strategy.layout)


def _gather(attendance: Attendance, strategy: FleetStrategy, trackers: Trackers) -> None:
    """Has a strategy take who is there, and waits while they are fewer than the replies that a round needs.

    Raises:
        TrainingError: If they are for longer than ``server.patience_seconds``.
    """
    wanted, told = strategy.scenario.server.min_replies, -1
    while True:
        before, lines = attendance.devices, list(attendance.look())
        if attendance.devices != before:
            known = strategy.remarks
            strategy.attend(attendance.devices)
            lines += (remark for remark in strategy.remarks if remark not in known)
        number = len(strategy.devices)
        if told != number < wanted:
            told = number
            lines.append(f"waiting for devices: {number} of the {wanted} that a round needs are there")
        for line in lines:
            trackers.on_note(line)
        if number >= wanted:
            strategy.server = replace(strategy.server, numbers=attendance.given)
            return
        strategy.patience.check_there(number, wanted)
        time.sleep(_POLL_SECONDS)


def _begun(
    grid: Grid, setup: Setup, trackers: Trackers, given: Iterable[Given]
) -> tuple[RunPlan, Attendance | None]:
    """Asks who is there, and tells the trackers what is to be run over them.

    Args:
        grid: Where the devices are.
        setup: See `run_fleet`.
        trackers: Who is told.
        given: The numbers that devices had before the run was cut short.

    Returns:
        What is to be run, and who looks after who is there: nobody of simulated devices, which always are.
    """
    scenario, strategy = setup.scenario, setup.strategy
    places = Places(scenario.fleet.num_clients, setup.parts, scenario.server.min_devices)
    numbers, seconds = Numbers(places.most, given), scenario.server.timeout_seconds
    found = find_fleet(grid, strategy.brief, places, seconds, numbers)
    devices = found.devices
    strategy.enlist(devices)
    profiles = [device.profile for device in devices]
    if not strategy.budgeted:
        profiles = [replace(profile, memory_bytes=None) for profile in profiles]
    partition = parts_of(scenario, players(devices))
    owners = owners_of(scenario, setup.dataset, partition)
    plan = plan_run(scenario, setup.dataset, setup.recipe, setup.memory, profiles, partition, owners)
    trackers.on_start(plan)
    for note in (*found.left_out, *strategy.remarks, *_what_stands_out(setup, plan, devices)):
        trackers.on_note(note)
    if isinstance(grid, SimulatedGrid):
        return plan, None
    strategy.server = replace(strategy.server, numbers=numbers.given)
    return plan, Attendance(grid, strategy.brief, places, found, seconds, numbers)


def _what_stands_out(setup: Setup, plan: RunPlan, devices: Sequence[Device]) -> Iterator[str]:
    scenario, strategy = setup.scenario, setup.strategy
    yield from setup.notes
    pruned = plan.budgets if strategy.prunes() else {}
    budgets = {f"class '{name}'": budget for name, budget in pruned.items()}
    yield from run_notes(setup.dataset, setup.recipe, setup.memory, budgets)
    if not strategy.heeds("prune.target_compression"):
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
