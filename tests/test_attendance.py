"""Who is there between rounds, without a network: nodes that come, go, return and pretend."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factories import MemoryGrid, altered, reply, stamped
from fleets import BRIEF, build, device
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from recorded_runs import KEPT, make_plan, make_report, make_state

from fedhp.data.dataset import open_dataset
from fedhp.data.parts import train_shard
from fedhp.errors import ScenarioError, TrainingError
from fedhp.federation import first_answers, wire
from fedhp.federation.attendance import Attendance
from fedhp.federation.first_answers import FirstAnswers
from fedhp.federation.numbers import Given, Numbers
from fedhp.federation.roster import Places, find_fleet
from fedhp.fleet.devices import DeviceProfile
from fedhp.records import wording
from fedhp.records.result import read_table
from fedhp.records.rows import PARTITION
from fedhp.run import fleet_run
from fedhp.run.parts import LateParts, parts_of, players
from fedhp.scenario.loading import load_scenario
from strategies import HeteroFL, Smallest

pytestmark = pytest.mark.usefixtures("as_the_server")

Said = tuple[int | None, int]


class Field(MemoryGrid):
    """Nodes that a test plugs in and out; each says its partition id and number of samples.

    Attributes:
        plugged: By node id, what it says, and when it was started.
        silent: Nodes that do not answer yet.
        asked: Every question, as it was sent.
    """

    def __init__(self, **nodes: Said) -> None:
        super().__init__(self._answer_of)
        self.plugged: dict[int, tuple[Said, str]] = {}
        self.silent = set[int]()
        self.asked: list[Message] = []
        self._on_their_way: dict[str, Message] = {}
        self.started = 0
        for name, said in nodes.items():
            self.plug(int(name.removeprefix("n")), *said)

    def plug(self, node: int, client: int | None = None, examples: int = 5) -> None:
        self.started += 1
        self.plugged[node] = (client, examples), f"start {self.started}"

    def pull(self, node: int) -> None:
        del self.plugged[node]

    def get_node_ids(self) -> list[int]:
        return list(self.plugged)

    def get_nodes(self):
        return [NodeInfo(node_id=node, last_activated_at=began) for node, (_, began) in self.plugged.items()]

    def push_messages(self, messages):
        sent = stamped(messages)
        self.asked += sent
        self._on_their_way.update((message.metadata.message_id, message) for message in sent)
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids):
        ready = [
            key for key in message_ids if self._on_their_way[key].metadata.dst_node_id not in self.silent
        ]
        return [self._answer_of(self._on_their_way.pop(key)) for key in ready]

    def _answer_of(self, message: Message) -> Message:
        (client, examples), _ = self.plugged[message.metadata.dst_node_id]
        profile = DeviceProfile("phone", 1000, examples, own_data=client is None)
        return reply(message, wire.pack_profile(profile, client))


def begun(
    field: Field, num_clients: int = 9, min_devices: int = 1, given: tuple[Given, ...] = ()
) -> Attendance:
    places = Places(num_clients, None, min_devices)
    numbers = Numbers(places.most, given)
    return Attendance(field, BRIEF, places, find_fleet(field, BRIEF, places, 1.0, numbers), 60.0, numbers)


def seen(attendance: Attendance) -> list[tuple[int, int]]:
    return [(one.client, one.node_id) for one in attendance.devices]


def looks(attendance: Attendance, number: int = 2) -> list[str]:
    """What is said in so many looks: a new node is asked in one, and heard in the next."""
    return [line for _ in range(number) for line in attendance.look()]


def test_where_nothing_changes_nothing_is_said_nor_asked():
    field = Field(n7=(1, 5), n8=(0, 5))
    attendance = begun(field)
    assert looks(attendance) == []
    assert field.asked == []
    assert seen(attendance) == [(0, 8), (1, 7)]


def test_a_device_joins_once_it_has_said_who_it_is_and_nobody_waits_for_it():
    field = Field(n7=(0, 5))
    attendance = begun(field)
    field.plug(9, 2)
    field.silent.add(9)
    assert looks(attendance, 3) == []
    assert [message.metadata.dst_node_id for message in field.asked] == [9]
    assert wire.unpack_brief(field.asked[0].content) == BRIEF
    assert seen(attendance) == [(0, 7)]
    field.silent.clear()
    assert looks(attendance) == ["client 2 (phone) has joined"]
    assert seen(attendance) == [(0, 7), (2, 9)]


@pytest.mark.parametrize("restarted", [False, True])
def test_who_comes_while_the_first_answers_are_awaited_joins(restarted):
    """Node 9 connects, and 8 is started again, once the nodes were listed and before all have answered."""
    field = Field(n7=(0, 5), n8=(1, 5))
    honest = field._answer_of

    def slowly(message: Message) -> Message:
        if 9 not in field.plugged:
            field.plug(9, 2)
        elif restarted and message.metadata.dst_node_id == 8:
            field.plug(8, 1, 50)
        return honest(message)

    field._answer = slowly
    attendance = begun(field)
    assert seen(attendance) == [(0, 7), (1, 8)]
    back = ["client 1 (phone) has left", "client 1 (phone) is back"] if restarted else []
    assert sorted(looks(attendance)) == sorted([*back, "client 2 (phone) has joined"])
    assert seen(attendance) == [(0, 7), (1, 8), (2, 9)]


@pytest.mark.parametrize("comes", [True, False])
def test_while_first_answers_are_awaited_it_is_said_whose(monkeypatch, caplog, comes):
    """Node 8 answers after a minute, or never, of which no time passes here."""
    field, clock = Field(n7=(0, 5), n8=(1, 5)), [0.0]
    field.silent.add(8)

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if comes and clock[0] > 60:
            field.silent.clear()

    monkeypatch.setattr(first_answers, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    found = find_fleet(FirstAnswers(field), BRIEF, Places(9, None, 1), 600.0)
    assert [device.node_id for device in found.devices] == ([7, 8] if comes else [7])
    assert (61 <= clock[0] < 65) if comes else clock[0] == 600
    assert caplog.messages == [
        "waiting for the first answers of 1 of 2 devices, for 600 s at most (server.timeout_seconds): "
        "node 8; check what their processes say"
    ]


def test_a_device_that_leaves_and_comes_back_keeps_its_number_and_is_asked_anew():
    """By its node id, as with a key, though it says another number of samples now."""
    field = Field(n7=(None, 5), n8=(None, 6))
    attendance = begun(field)
    assert seen(attendance) == [(0, 7), (1, 8)]
    field.pull(7)
    assert looks(attendance) == ["client 0 (phone) has left"]
    assert seen(attendance) == [(1, 8)]
    field.plug(7, None, 50)
    assert looks(attendance) == ["client 0 (phone) is back"]
    assert seen(attendance) == [(0, 7), (1, 8)]
    assert attendance.devices[0].profile.num_examples == 50


def test_one_that_was_away_between_two_looks_alone_is_asked_anew():
    field = Field(n7=(0, 5))
    attendance = begun(field)
    field.plug(7, 0, 6)
    assert looks(attendance) == ["client 0 (phone) has left", "client 0 (phone) is back"]
    assert attendance.devices[0].profile.num_examples == 6


@pytest.mark.parametrize("client", [1, None])
def test_without_a_key_a_device_is_known_by_its_partition_or_by_what_it_says(client):
    """A restarted process is another node: 9 in place of 7, which had number 1, or the first free one, 0."""
    field = Field(n7=(client, 5), n8=(2, 5))
    attendance = begun(field)
    (number,) = (one.client for one in attendance.devices if one.node_id == 7)
    field.pull(7)
    field.plug(9, client)
    field.plug(10, None, 77)
    said = looks(attendance)
    assert f"client {number} (phone) is back" in said
    assert (number, 9) in seen(attendance)
    assert len(attendance.devices) == 3


def test_of_two_that_claim_one_partition_the_second_is_refused_by_name_until_the_first_is_gone():
    field = Field(n7=(1, 5))
    attendance = begun(field)
    field.plug(9, 1)
    refusal = (
        "client 1 (node 9) is left out: node 7, which is there, has this partition-id; give each its own"
    )
    assert looks(attendance, 4) == [refusal]
    assert seen(attendance) == [(1, 7)]
    field.pull(7)
    assert looks(attendance) == ["client 1 (phone) has left", "client 1 (phone) is back"]
    assert seen(attendance) == [(1, 9)]


def test_who_stands_in_for_a_device_gives_way_when_that_is_back():
    field = Field(n7=(1, 5))
    attendance = begun(field)
    field.pull(7)
    field.plug(9, 1)
    looks(attendance)
    field.plug(7, 1)
    assert looks(attendance) == [
        "client 1 (phone) of node 9 gives way to node 7, which was it before",
        "client 1 (phone) is back",
    ]
    assert seen(attendance) == [(1, 7)]
    assert looks(attendance) == []


@pytest.mark.parametrize("resumed", [False, True])
def test_one_that_is_known_by_its_key_has_its_number_again_also_after_an_alike_one_had_it(resumed):
    """Node 9 is alike, and has number 0 while 7 is away; it takes part under another once 7 is back."""
    field = Field(n7=(None, 5), n8=(None, 6))
    attendance = begun(field)
    field.pull(7)
    field.plug(9, None, 5)
    assert looks(attendance) == ["client 0 (phone) has left", "client 0 (phone) is back"]
    assert seen(attendance) == [(0, 9), (1, 8)]
    if resumed:
        attendance = begun(field, given=kept(attendance))
    field.plug(7, None, 5)
    assert looks(attendance, 4) == [
        "client 0 (phone) of node 9 gives way to node 7, which was it before",
        "client 0 (phone) is back",
        "client 2 (phone) has joined",
    ]
    assert seen(attendance) == [(0, 7), (1, 8), (2, 9)]
    assert seen(begun(field, given=kept(attendance))) == [(0, 7), (1, 8), (2, 9)]


def test_where_a_run_goes_on_who_had_a_number_first_comes_before_who_stood_in():
    field = Field(n7=(None, 50))
    before = begun(field)
    field.pull(7)
    field.plug(9, None, 50)
    looks(before)
    assert seen(before) == [(0, 9)]
    field.plug(7, None, 50)
    assert seen(begun(field, given=kept(before))) == [(0, 7), (1, 9)]
    field.pull(9)
    assert seen(begun(field, given=kept(before))) == [(0, 7)]


def test_one_that_claims_a_number_gives_way_to_none_that_claims_none():
    field = Field(n7=(None, 5))
    attendance = begun(field)
    field.pull(7)
    field.plug(9, 0)
    looks(attendance)
    assert seen(attendance) == [(0, 9)]
    field.plug(7, None, 5)
    assert looks(attendance) == ["client 1 (phone) has joined"]
    assert seen(attendance) == [(0, 9), (1, 7)]


def test_a_fleet_of_so_many_takes_no_more_and_another_once_one_has_left():
    field = Field(n7=(0, 5), n8=(None, 5))
    attendance = begun(field, num_clients=2, min_devices=0)
    field.plug(9)
    (refusal,) = looks(attendance, 3)
    assert refusal.startswith("node 9 is left out: 2 devices take part, and fleet.num_clients is 2; raise it")
    field.pull(8)
    assert looks(attendance) == ["client 1 (phone) has left", "client 1 (phone) is back"]


@pytest.mark.parametrize(
    ("said", "flaw"),
    [
        ((9, 5), "the fleet has clients 0 to 8"),
        ((1, 0), "it has no training samples; give it some"),
    ],
)
def test_who_cannot_take_part_is_named_once_and_asked_again_when_it_was_started_again(said, flaw):
    field = Field(n7=(0, 5))
    attendance = begun(field)
    field.plug(9, *said)
    assert looks(attendance, 4) == [f"node 9 is left out: {flaw}"]
    field.plug(9, 3)
    assert looks(attendance) == ["client 3 (phone) has joined"]


def test_an_answer_in_another_nodes_name_is_dropped(caplog):
    field = Field(n7=(0, 5))
    attendance = begun(field)
    field.plug(9, 2)
    honest = field._answer_of
    field._answer_of = lambda message: altered(honest(message), src_node_id=7)
    assert looks(attendance) == []
    assert caplog.messages == ["dropped a reply from node 7: it answers what node 9 was asked"]
    assert seen(attendance) == [(0, 7)]


@pytest.mark.parametrize("seed", range(4))
def test_numbers_do_not_depend_on_the_order_in_which_devices_are_seen(seed):
    """Six nodes: 21, 23 and 25 claim 0, 2 and 4; the others take what is free, by their samples."""
    told = {20 + n: (n - 1 if n % 2 else None, 10 + n) for n in range(6)}
    field = Field(n7=(8, 5))
    attendance = begun(field)
    for node in np.random.default_rng(seed).permutation(list(told)).tolist():
        field.plug(node, *told[node])
    looks(attendance)
    assert [(number, node) for number, node in seen(attendance) if node != 7] == [
        (0, 21),
        (1, 20),
        (2, 23),
        (3, 22),
        (4, 25),
        (5, 24),
    ]


def kept(attendance: Attendance) -> tuple[Given, ...]:
    """The numbers of a run that was cut short, as its checkpoint gives them back."""
    return tuple(map(Given.of, json.loads(json.dumps([one.values() for one in attendance.given]))))


def test_where_a_run_goes_on_devices_have_the_numbers_that_they_had():
    """Node 8 by its key, 20 in place of 9 as it is alike; 3, the least alike, is new, and 7 comes later.

    Numbered anew, by their samples, 3 would be 0, 8 would be 1 and 20 be 2, and 7 be 3.
    """
    field = Field(n7=(None, 5), n8=(None, 6), n9=(None, 7))
    before = begun(field)
    assert seen(before) == [(0, 7), (1, 8), (2, 9)]
    field = Field(n3=(None, 4), n20=(None, 7), n8=(None, 60))
    attendance = begun(field, given=kept(before))
    assert seen(attendance) == [(1, 8), (2, 20), (3, 3)]
    field.plug(7, None, 5)
    assert looks(attendance) == ["client 0 (phone) is back"]
    assert seen(begun(field, given=kept(attendance))) == [(0, 7), (1, 8), (2, 20), (3, 3)]
    field.plug(9, None, 70)
    assert looks(attendance, 4)[1:] == ["client 2 (phone) is back", "client 4 (phone) has joined"]
    assert seen(attendance) == [(0, 7), (1, 8), (2, 9), (3, 3), (4, 20)]


def test_one_that_claims_a_number_is_given_it_although_another_had_it_before_the_run_went_on():
    """The other is known by its key, and yet another device now."""
    before = begun(Field(n7=(None, 5), n8=(None, 6)))
    assert seen(begun(Field(n7=(None, 5), n9=(0, 8)), given=kept(before))) == [(0, 9), (2, 7)]


def test_who_had_a_number_first_has_it_again_also_where_the_run_went_on_meanwhile():
    field = Field(n7=(1, 5))
    before = begun(field)
    field.pull(7)
    field.plug(9, 1)
    looks(before)
    attendance = begun(field, given=kept(before))
    field.plug(7, 1)
    assert looks(attendance)[1] == "client 1 (phone) is back"
    assert seen(attendance) == [(1, 7)]


def test_devices_that_come_at_once_leave_to_each_other_what_they_had():
    """Node 9 is alike, and its samples put it before 10, which had that number."""
    field = Field(n7=(0, 5), n10=(None, 6))
    attendance = begun(field)
    field.pull(10)
    looks(attendance)
    field.plug(9, None, 6)
    field.plug(10, None, 6)
    assert looks(attendance) == ["client 1 (phone) is back", "client 2 (phone) has joined"]
    assert seen(attendance) == [(0, 7), (1, 10), (2, 9)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"number": -1}, "the number of a device or node, got -1"),
        ({"node": True}, "the number of a device or node, got True"),
        ({"first": 7.0}, r"the number of a device or node, got 7\.0"),
        ({"profile": {"num_examples": -5}}, "a device's num_examples: must be 0 or more"),
        ({"profile": {"num_examples": "5"}}, "a device's num_examples is '5'"),
        ({"profile": {"memory_bytes": 0}}, "a device's memory_bytes: must be above 0"),
        ({"profile": {"device_class": "a\nb"}}, "a device's device_class: expected a name without line ends"),
    ],
)
def test_numbers_that_no_run_has_kept_are_refused(change, said):
    (values,) = (one.values() for one in begun(Field(n7=(1, 5))).given)
    changed = {**values, **change, "profile": {**values["profile"], **change.get("profile", {})}}
    with pytest.raises(ValueError, match=said):
        Given.of(changed)


def test_one_number_is_not_two_devices():
    (one,) = begun(Field(n7=(1, 5))).given
    with pytest.raises(ValueError, match="given twice"):
        Numbers(given=[one, one])


def test_any_number_may_take_part_where_a_run_may_begin_with_few():
    field = Field(n1=(None, 5), n2=(None, 6), n3=(None, 7))
    assert len(begun(field, num_clients=2, min_devices=1).devices) == 3


def test_too_few_to_begin_with_are_counted(monkeypatch):
    monkeypatch.setattr("fedhp.federation.roster._POLL_SECONDS", 0.0)
    with pytest.raises(TrainingError, match=r"1 of 2 devices connected .* lower server\.min_devices"):
        find_fleet(Field(n1=(0, 5)), BRIEF, Places(5, None, 2), 0.01)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"min_devices": 21}, r"server\.min_devices = 21 exceeds fleet\.num_clients = 20"),
        ({"min_devices": 2, "min_replies": 3}, r"min_devices = 2 is below server\.min_replies = 3"),
        ({"min_devices": -1}, r"server\.min_devices"),
    ],
)
def test_numbers_of_devices_that_cannot_be_are_refused(server, said):
    with pytest.raises(ScenarioError, match=said):
        load_scenario("quickstart", values={"server": server})


# What a strategy makes of it


def test_a_late_device_without_room_for_the_runs_model_is_left_out_by_name():
    """The smallest device decides on the model before the first round; a smaller one comes too late."""
    strategy = build(Smallest, strategy={"name": "smallest"})
    strategy.enlist([device(0, 4000), device(1, 3000)])
    before = strategy.state
    strategy.attend([device(0, 4000), device(1, 3000), device(2, 1200)])
    assert [one.client for one in strategy.devices] == [0, 1]
    (remark,) = strategy.remarks
    assert remark.startswith("client 2 (phone) is left out: its part of this run's model takes ")
    assert remark.endswith("the budget is 1,200 bytes")
    assert strategy.state is before


def test_a_late_device_of_more_room_than_any_before_gets_all_of_the_model():
    strategy = build(HeteroFL, strategy={"name": "heterofl"})
    strategy.enlist([device(0, 1500), device(1, 2000)])
    strategy.attend([device(1, 2000), device(2, None)])
    assert strategy.assign(strategy.devices[1], 1) == strategy.state.structure


def test_of_those_that_are_there_the_seed_draws(monkeypatch):
    """Whoever came first: the same devices give the same draw."""
    draws = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        strategy = build(server={"clients_per_round": 2})
        strategy.enlist([device(0), device(1), device(2)])
        strategy.attend(sorted(map(device, order), key=lambda one: one.client))
        draws.append([[one.client for one in strategy.sample(number)] for number in range(1, 9)])
    assert draws[0] == draws[1]
    assert {client for draw in draws[0] for client in draw} == {0, 1, 2, 3}


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_note(self, text: str) -> None:
        self.lines.append(text)


def test_a_round_waits_for_a_device_that_it_needs_and_goes_on_with_whoever_comes(monkeypatch):
    field, notes = Field(n7=(0, 5)), Notes()
    attendance, strategy = begun(field), build()
    strategy.enlist(attendance.devices)
    field.pull(7)
    monkeypatch.setattr(
        fleet_run.time, "sleep", lambda _: field.plug(9, 4) if 9 not in field.plugged else None
    )
    fleet_run._gather(attendance, strategy, notes)  # type: ignore[arg-type]
    assert [one.client for one in strategy.devices] == [4]
    assert notes.lines == [
        "client 0 (phone) has left",
        "waiting for devices: 0 of the 1 that a round needs are there",
        "client 4 (phone) has joined",
    ]


def test_waiting_has_an_end(monkeypatch):
    field = Field(n7=(0, 5))
    attendance, strategy = begun(field), build(server={"patience_seconds": 0})
    strategy.enlist(attendance.devices)
    field.pull(7)
    monkeypatch.setattr(fleet_run.time, "sleep", lambda _: None)
    with pytest.raises(TrainingError, match=r"0 of the 1 devices .* server\.patience_seconds = 0 are over"):
        fleet_run._gather(attendance, strategy, Notes())  # type: ignore[arg-type]


def test_what_is_told_of_devices_and_rounds_is_found_again():
    one = device(3)
    came_and_went = [f"{one} {what}" for what in (wording.JOINED, wording.BACK, wording.LEFT)]
    refused = [wording.left_out(one, "why"), wording.left_out("node 7", "why"), wording.gives_way(one, 9, 7)]
    for line in (*came_and_went, *refused, wording.goes_on(2, 5)):
        assert wording.is_attendance(line), line
    told = wording.round_line(make_report(2))
    assert not wording.is_attendance(told)
    assert wording.round_told(told) == 2
    assert wording.round_told(refused[0]) is None


# What the record says of those who come late


def test_the_parts_of_late_devices_get_into_the_record(tmp_path):
    """All parts together are all samples of each label; what a device of own data holds is not told."""
    config = load_scenario("quickstart", values={"fleet.num_clients": 3})
    here = [device(0), device(2)]
    plan = replace(make_plan(), scenario=config, partition=parts_of(config, players(here)), owners={})

    def begun() -> LateParts:
        late = LateParts(tmp_path, open_dataset(config.data), lambda: here)
        late.on_start(plan)
        return late

    def told() -> set[int]:
        return set(read_table(tmp_path / "partition.parquet", PARTITION)["client"])

    late = begun()
    assert told() == {0, 2}
    here[:] = [device(0), replace(device(1), profile=replace(device(1).profile, own_data=True))]
    late.on_round(make_report(1), make_state(KEPT))
    assert told() == {0, 2}  # one has left, and is not forgotten
    here[:] = [device(1)]
    begun()  # as where a run goes on
    assert told() == {0, 1, 2}
    table: Any = read_table(tmp_path / "partition.parquet", PARTITION)
    labels = train_shard(config.data).label_counts()
    assert table.groupby("label")["count"].sum().tolist() == labels.tolist()
