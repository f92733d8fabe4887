"""A device as the server knows it."""

from dataclasses import dataclass

from fedhp.fleet.devices import DeviceProfile


@dataclass(frozen=True)
class Device:
    """A device as the server knows it.

    Attributes:
        node_id: Flower's name for it, different in every run.
        client: Its partition id, which names it in records and fixes its place in every order.
        profile: What it said of itself.
    """

    node_id: int
    client: int
    profile: DeviceProfile

    def __str__(self) -> str:
        """Names it in notes."""
        return f"client {self.client} ({self.profile.device_class})"
