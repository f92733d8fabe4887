"""A device as the server knows it, and who of them a round asks."""

from dataclasses import dataclass

from fedhp.fleet.devices import DeviceProfile
from fedhp.seeds import generator


@dataclass(frozen=True)
class Device:
    """A device as the server knows it.

    Attributes:
        node_id: Flower's name for it: its key's, where that is registered, else new with every start.
        client: Its number, which names it in records and fixes its place in every order.
        profile: What it said of itself.
    """

    node_id: int
    client: int
    profile: DeviceProfile

    def __str__(self) -> str:
        """Names it in notes."""
        return f"client {self.client} ({self.profile.device_class})"


def drawn(devices: list[Device], number: int, seed: int, server_round: int) -> list[Device]:
    """Returns so many devices in their order: a round's own seeded draw, without replacement."""
    if number == len(devices):
        return devices
    chosen = generator(seed, "sampling", server_round).choice(len(devices), size=number, replace=False)
    return [devices[index] for index in sorted(chosen)]
