"""Which number each device has: one that comes back keeps its own, also where a run goes on after a stop."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from fedhp.federation.device import Device
from fedhp.fleet.devices import DeviceProfile


class Answer(NamedTuple):
    """What a node says of itself, and which part of the scenario's data it plays, if any."""

    node: int
    profile: DeviceProfile
    client: int | None

    def __str__(self) -> str:
        """Names the device."""
        return f"node {self.node}" if self.client is None else f"client {self.client} (node {self.node})"


@dataclass(frozen=True)
class Given:
    """A number that was given.

    Attributes:
        device: Who has it, or had it last.
        first: The node that had it first.
    """

    device: Device
    first: int

    def values(self) -> dict[str, Any]:
        """Returns it as a checkpoint takes it."""
        number, profile = self.device.client, vars(self.device.profile)
        return {"number": number, "node": self.device.node_id, "first": self.first, "profile": profile}

    @staticmethod
    def of(values: Mapping[str, Any]) -> "Given":
        """Reads `values`.

        Raises:
            ValueError: If they are none of a device.
        """
        number, node, first = (values[name] for name in ("number", "node", "first"))
        for one in (number, node, first):
            if type(one) is not int or one < 0:
                raise ValueError(f"expected the number of a device or node, got {one!r:.80}")
        return Given(Device(node, number, DeviceProfile.of(values["profile"])), first)


class Numbers:
    """Which number each device has: one that comes back keeps its own for as long as a run goes on.

    A device is known by its node id, which Flower ties to its key where devices have registered ones; else by
    the partition id that it claims, or by being alike in all that it says of itself. While a number's device
    is there, no other has it; while it is away another may, and gives way to the node that had it first.

    Args:
        most: The devices that can take part at a time; None for any number.
        given: What was given before the run was cut short.

    Raises:
        ValueError: If a number was given twice.
    """

    def __init__(self, most: int | None = None, given: Iterable[Given] = ()) -> None:
        self._most, given = most, tuple(given)
        self._given = {one.device.client: one for one in given}
        self._claimed = set[int]()  # by those that have them, or had them last
        if len(self._given) < len(given):
            raise ValueError("a device's number was given twice")

    @property
    def given(self) -> tuple[Given, ...]:
        """All of them, in the order in which they were given."""
        return tuple(self._given.values())

    def conflict(self, answer: Answer, there: Collection[int]) -> str:
        """Says why a device cannot take part because of others; empty if it can.

        Args:
            answer: What it says of itself.
            there: The nodes that take part.
        """
        if self.stand_in(answer, there) is not None:
            return ""
        held = self._given.get(answer.client) if answer.client is not None else None
        if held is not None and held.device.node_id in there:
            return f"node {held.device.node_id}, which is there, has this partition-id; give each its own"
        if self._most is not None and len(there) >= self._most:
            return (
                f"{len(there)} devices take part, and fleet.num_clients is {self._most}; raise it, or set "
                f"server.min_devices for a fleet of any number"
            )
        return ""

    def stand_in(self, answer: Answer, there: Collection[int]) -> Device | None:
        """Returns who has the number that a device had first, and gives way to it; None where nobody does.

        Who claims a number gives way only to one that claims it too.

        Args:
            answer: What the device says of itself.
            there: The nodes that take part.
        """
        claims = answer.client is not None
        for number in self._had(answer.node) if answer.client is None else [answer.client]:
            one, free = self._given.get(number), claims or number not in self._claimed
            if one and free and one.first == answer.node and one.device.node_id in there:
                return one.device
        return None

    def in_turn(self, answers: Iterable[Answer]) -> list[Answer]:
        """Returns devices in the order in which they are given their numbers, whenever each has answered.

        First those that claim one, then those that had one first, and then those that had one, so that nobody
        else is given it. Node ids, which without keys are different in every run, decide only between devices
        that are alike in all else.
        """
        first = {one.first for one in self._given.values()}
        known = {one.device.node_id for one in self._given.values()}

        def turn(one: Answer) -> tuple[bool, bool, bool, tuple[str, int, int, int]]:
            return one.client is None, one.node not in first, one.node not in known, _likeness(one)

        return sorted(answers, key=turn)

    def give(self, answer: Answer, there: Collection[int]) -> Device:
        """Returns a device with its number; it conflicts with none, and its stand-in has given way."""
        absent = [one.device for one in self._given.values() if one.device.node_id not in there]
        free = {one.client for one in absent}
        own = [number for number in self._had(answer.node) if number in free]
        alike = [one.client for one in absent if one.profile == answer.profile]
        number = answer.client
        if number is None:
            number = min(own or alike or [next(one for one in count() if one not in self._given)])
        device, before = Device(answer.node, number, answer.profile), self._given.get(number)
        self._given[number] = Given(device, answer.node if before is None else before.first)
        self._claimed = self._claimed - {number} if answer.client is None else self._claimed | {number}
        return device

    def _had(self, node: int) -> list[int]:
        """Returns the numbers that a node had last, or else those that it had first."""
        last = [number for number, one in self._given.items() if one.device.node_id == node]
        return last or [number for number, one in self._given.items() if one.first == node]

    def give_all(self, answers: Sequence[Answer]) -> list[Device]:
        """Returns devices, each of which claims another number or none, by their numbers."""
        devices = dict[int, Device]()
        for answer in self.in_turn(answers):
            devices[answer.node] = self.give(answer, devices)
        return sorted(devices.values(), key=lambda device: device.client)


def _likeness(answer: Answer) -> tuple[str, int, int, int]:
    """Returns what devices are put in order by: what they say of themselves, and else their node ids."""
    profile = answer.profile
    return profile.device_class, profile.memory_bytes or 0, profile.num_examples, answer.node
