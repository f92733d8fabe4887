"""Who is there: devices, their numbers, and those that are left out."""

import re

import pytest
from factories import MemoryGrid, altered, query_fleet, reply
from fleets import BRIEF, in_place_of_the_node
from flwr.app import Message, MessageType, RecordDict

from fedhp.errors import TrainingError
from fedhp.federation import wire
from fedhp.fleet.devices import DeviceProfile

pytestmark = pytest.mark.usefixtures("as_the_server")


def fleet_of(profiles: dict[int, tuple[int | None, int]]) -> MemoryGrid:
    """Nodes with the given partition ids and numbers of examples."""

    def answer(message: Message) -> Message:
        client, num_examples = profiles[message.metadata.dst_node_id]
        profile = DeviceProfile("phone", 1000, num_examples, own_data=client is None)
        return reply(message, wire.pack_profile(profile, client))

    return MemoryGrid(answer, [list(profiles)])


def test_devices_come_by_partition_id_whatever_their_node_ids():
    devices, _ = query_fleet(fleet_of({30: (1, 5), 10: (2, 6), 20: (0, 7)}), BRIEF, 3, 1.0)
    assert [(d.client, d.node_id, d.profile.num_examples) for d in devices] == [
        (0, 20, 7),
        (1, 30, 5),
        (2, 10, 6),
    ]


@pytest.mark.parametrize("nodes", [[11, 12, 13, 14], [14, 13, 12, 11]])
def test_devices_without_a_partition_are_numbered_by_what_they_say_rather_than_by_node_id(nodes):
    """Node ids change from run to run; the class comes first, then the budget, then the samples."""
    told = [("b", 2, 9), ("a", 3, 1), ("b", 1, 9), ("b", 2, 8)]

    def answer(message: Message) -> Message:
        profile = DeviceProfile(*told[nodes.index(message.metadata.dst_node_id)], own_data=True)
        return reply(message, wire.pack_profile(profile, None))

    devices, _ = query_fleet(MemoryGrid(answer, [nodes]), BRIEF, 4, 1.0)
    assert [nodes.index(device.node_id) for device in devices] == [1, 2, 3, 0]


def test_devices_that_are_alike_take_the_free_numbers_in_the_order_of_node_ids():
    """Claimed are 0 and 2: the free numbers are 1, 3, 4 for the nodes 11, 12, 13."""
    profiles = {13: (None, 1), 11: (None, 1), 20: (2, 1), 12: (None, 1), 21: (0, 1)}
    devices, _ = query_fleet(fleet_of(profiles), BRIEF, 5, 1.0)
    assert [(d.client, d.node_id) for d in devices] == [(0, 21), (1, 11), (2, 20), (3, 12), (4, 13)]


def test_who_has_neither_a_part_of_the_data_nor_data_of_its_own_is_left_out():
    def answer(message: Message) -> Message:
        profile = DeviceProfile("phone", 1000, 5)
        return reply(message, wire.pack_profile(profile, 0 if message.metadata.dst_node_id == 1 else None))

    devices, (left_out,) = query_fleet(MemoryGrid(answer, [[1, 2]]), BRIEF, 2, 1.0)
    assert [device.node_id for device in devices] == [1]
    assert left_out == (
        "node 2 is left out: it has neither data of its own nor a part of the scenario's; "
        "give it a partition-id"
    )


def test_the_query_goes_to_every_node_once_and_carries_the_brief():
    grid = fleet_of({1: (0, 1), 2: (1, 1)})
    seen = []
    inner = grid._answer
    grid._answer = lambda message: seen.append(message) or inner(message)
    query_fleet(grid, BRIEF, 2, 1.0)
    assert [m.metadata.dst_node_id for m in seen] == [1, 2]
    assert all(m.metadata.message_type == MessageType.QUERY for m in seen)
    assert all(wire.unpack_brief(m.content) == BRIEF for m in seen)


def test_the_roster_waits_until_all_nodes_are_there(monkeypatch):
    monkeypatch.setattr("fedhp.federation.roster._POLL_SECONDS", 0.0)
    grid = fleet_of({1: (0, 1), 2: (1, 1), 3: (2, 1)})
    grid._nodes = [[], [2], [2, 1], [2, 1, 3]]
    devices, _ = query_fleet(grid, BRIEF, 3, 60.0)
    assert [d.node_id for d in devices] == [1, 2, 3]


def test_nodes_that_never_connect_are_counted(monkeypatch):
    monkeypatch.setattr("fedhp.federation.roster._POLL_SECONDS", 0.0)
    with pytest.raises(TrainingError, match="1 of 2 devices connected"):
        query_fleet(fleet_of({1: (0, 1)}), BRIEF, 2, 0.01)


def test_more_nodes_than_the_fleet_has_are_refused_with_both_keys():
    wanted = r"3 devices .* fleet\.num_clients is 2: set fleet\.num_clients=3.* num-supernodes=2"
    with pytest.raises(TrainingError, match=wanted):
        query_fleet(fleet_of({1: (0, 1), 2: (1, 1), 3: (2, 1)}), BRIEF, 2, 1.0)


def test_two_devices_of_one_partition_are_left_out_by_name():
    devices, left_out = query_fleet(fleet_of({1: (1, 5), 2: (1, 5), 3: (0, 5)}), BRIEF, 3, 1.0)
    assert [device.node_id for device in devices] == [3]
    assert left_out == [
        f"client 1 (node {node}) is left out: several devices claim this partition-id; give each its own"
        for node in (1, 2)
    ]


def test_a_partition_beyond_the_fleet_is_left_out_by_name():
    _, left_out = query_fleet(fleet_of({1: (0, 5), 2: (2, 5)}), BRIEF, 2, 1.0)
    assert left_out == ["client 2 (node 2) is left out: the fleet has clients 0 to 1"]


def test_a_device_with_more_samples_than_its_part_of_the_data_is_left_out_by_name():
    """Parts have 5 and 6 samples: what a device holds out of its part counts too."""
    grid = fleet_of({1: (0, 5), 2: (1, 2**40 - 1)})
    devices, left_out = query_fleet(grid, BRIEF, 2, 1.0, (5, 6))
    assert [device.client for device in devices] == [0]
    assert left_out == [
        "client 1 (node 2) is left out: it says that it has 1,099,511,627,775 samples; this part of the "
        "scenario's data has 6"
    ]


@pytest.mark.parametrize(("client", "name"), [(1, "client 1 (node 2)"), (None, "node 2")])
def test_a_device_without_data_is_left_out_by_name(client, name):
    _, left_out = query_fleet(fleet_of({1: (0, 5), 2: (client, 0)}), BRIEF, 2, 1.0)
    assert left_out == [f"{name} is left out: it has no training samples; give it some"]


def failing(node: int, answer) -> MemoryGrid:
    """Two devices, one of which answers as it is told."""
    grid = fleet_of({1: (0, 1), 2: (1, 1)})
    inner = grid._answer
    grid._answer = lambda message: (answer if message.metadata.dst_node_id == node else inner)(message)
    return grid


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda message: reply(message, "data: no file mine.npz"), "data: no file mine.npz"),
        (in_place_of_the_node, "no heartbeat"),
        (lambda message: reply(message, RecordDict()), "no config record 'profile', got []"),
        (lambda message: None, "it did not answer the first query; check that its process runs"),
        (lambda message: reply(message, "a\x1b[2J\nlie"), "a [2J lie"),
    ],
    ids=["errs", "is gone", "answers nonsense", "does not answer", "forges lines"],
)
def test_a_device_that_does_not_describe_itself_is_left_out_by_name(answer, said):
    devices, left_out = query_fleet(failing(2, answer), BRIEF, 2, 1.0)
    assert [device.node_id for device in devices] == [1]
    assert left_out == [f"node 2 is left out: {said}"]
    with pytest.raises(TrainingError, match=rf"none of 1 devices .* node 4 is left out: {re.escape(said)}"):
        query_fleet(MemoryGrid(answer, [[4]]), BRIEF, 1, 1.0)


def test_a_profile_in_another_devices_name_is_dropped(caplog):
    forged = failing(2, lambda message: altered(reply(message, "lie"), src_node_id=1))
    devices, _ = query_fleet(forged, BRIEF, 2, 1.0)
    assert [device.node_id for device in devices] == [1]
    assert caplog.messages == ["dropped a reply from node 1: it answers what node 2 was asked"]
