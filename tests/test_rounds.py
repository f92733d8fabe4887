"""The round as a function: a state is all that it takes and all that it gives, whoever holds the rounds."""

from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
from factories import MemoryGrid, query_fleet, reply, same_bits, stamped, trained
from flwr.app import Message
from flwr.serverapp import Grid

from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.rounds import close_round, opened
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.state import ModelState
from fedhp.references import CLIENT_APP
from fedhp.run.fleet_run import run_fleet
from fedhp.run.prepared import Setup
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.simulation.opening import open_grid
from fedhp.tracking.tracker import Trackers
from strategies import FleetStrategy

SMALL = {
    "rounds": 6,
    "model.widths": [8, 6],
    "fleet.num_clients": 2,
    "prune.target_compression": 3,
    "strategy.optimizer.name": "fedadam",
}


def enlisted() -> FleetStrategy:
    strategy = prepare(load_scenario("quickstart", values=SMALL), simulated=False).strategy
    strategy.enlist([Device(10 + client, client, DeviceProfile("phone", None, 50)) for client in range(2)])
    return strategy


def answered(strategy: FleetStrategy) -> list[tuple[Message, Message]]:
    """The questions of the next round, and answers; in the fourth, client 1 goes 16 times as far."""
    asked = strategy.ask(MemoryGrid(lambda message: None))
    strategy._asked = asked
    return [(message, answer(strategy, message)) for message in stamped(asked.messages)]


def answer(strategy: FleetStrategy, message: Message) -> Message:
    update = trained(strategy.layout, message, 50, num_cut=1)
    if (strategy.server.round, message.metadata.dst_node_id) == (3, 11):
        before = strategy.state.cut(strategy.layout, update.state.structure)
        moved = update.state.weights
        far = {name: (w + 16 * (moved[name] - w)).astype(np.float32) for name, w in before.weights.items()}
        update = replace(update, state=ModelState(far, update.state.structure))
    return reply(message, update)


def closed(strategy: FleetStrategy, replies: list[Message]) -> tuple[ServerState, Outcome]:
    return close_round(
        strategy, strategy.server, opened(strategy, strategy.state, strategy._asked.sent, replies)
    )


def hold(strategy: FleetStrategy, rounds: int) -> ServerState:
    for _ in range(rounds):
        replies = [answer for _, answer in answered(strategy)]
        strategy.server, _ = closed(strategy, replies)
    return strategy.server


@pytest.mark.usefixtures("as_the_server")
def test_the_same_state_and_replies_give_the_same_round_and_change_nothing():
    strategy = enlisted()
    before = hold(strategy, 2)
    kept = before.model.cut(strategy.layout, before.model.structure)
    replies = [answer for _, answer in answered(strategy)]
    (one, first), (two, again) = (closed(strategy, order) for order in (replies, replies[::-1]))
    assert same_bits(one.model, two.model)
    assert (one.round, one.update_norms, first.rows) == (two.round, two.update_norms, again.rows)
    assert all((a == b).all() for a, b in zip(arrays(one), arrays(two), strict=True))
    assert strategy.server is before
    assert same_bits(before.model, kept)


def arrays(state: ServerState) -> list[np.ndarray]:
    return [array for moment in state.moments for array in moment.values()]


@pytest.mark.usefixtures("as_the_server")
def test_a_run_goes_on_from_a_state_as_if_it_had_never_stopped():
    straight, resumed = enlisted(), enlisted()
    resumed.server = hold(straight, 3)
    assert same_bits(hold(straight, 3).model, hold(resumed, 3).model)


@pytest.mark.usefixtures("as_the_server")
@pytest.mark.parametrize("lost", [{"moments": ()}, {"update_norms": ()}, {"round": 0}])
def test_without_a_part_of_the_state_it_would_not(lost):
    straight, resumed = enlisted(), enlisted()
    resumed.server = replace(hold(straight, 3), **lost)
    assert not same_bits(hold(straight, 3).model, hold(resumed, 3).model)


# Who holds the rounds

NORMALISED = {
    "rounds": 3,
    "data.max_train": 300,
    "fleet.num_clients": 4,
    "model.target": "test_running_statistics:network",
    "prune.start": 0.0,
    "prune.target_compression": 3,
    "server.clients_per_round": 3,
    "strategy.optimizer.name": "fedavgm",
    "simulation.num_workers": 0,
}


def simulated(name: str) -> tuple[Setup, AbstractContextManager[Grid]]:
    setup = prepare(load_scenario("quickstart", values={**NORMALISED, "strategy.name": name}))
    scenario = setup.scenario
    return setup, open_grid(scenario.simulation, CLIENT_APP, scenario.fleet.num_clients, 60.0)


@pytest.mark.parametrize("name", ["mask_intersection", "heterofl"])
def test_flowers_own_loop_and_ours_come_to_the_same(name):
    """The network has running statistics, which the devices are asked for after each cut."""
    setup, opened = simulated(name)
    with opened as grid:
        run_fleet(grid, setup, Trackers([]))
    ours = setup.strategy
    setup, opened = simulated(name)
    strategy = setup.strategy
    with opened as grid:
        devices, _ = query_fleet(grid, strategy.brief, 4, 60.0)
        strategy.enlist(devices)
        result = strategy.start(grid, wire.pack_state(strategy.state), num_rounds=3)
    assert same_bits(wire.unpack_state(result.arrays, strategy.layout), ours.state)
    assert same_bits(strategy.state, ours.state)
    assert [row.bytes_down for row in strategy.outcome.rows] == [row.bytes_down for row in ours.outcome.rows]
    assert strategy.server.round == ours.server.round == 3
