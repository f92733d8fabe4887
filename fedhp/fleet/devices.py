"""Devices and fleets: who trains, and how much memory each may use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_type_hints

from fedhp.bounds import LARGEST_WHOLE, MOST_CLIENTS, Bounds
from fedhp.choices import STABLE, check_values, limits_of
from fedhp.errors import ScenarioError
from fedhp.seeds import generator
from fedhp.sizes import format_size, parse_size

_LONGEST_NAME = 64
_MOST_SAMPLES = 2**40 - 1


def name_flaw(name: str) -> str:
    """Says what a name in records and logs cannot be; empty where it is one.

    Line ends and escape sequences would forge lines of the log and of the terminal.
    """
    if not name.strip() or len(name) > _LONGEST_NAME:
        return f"expected a name of 1 to {_LONGEST_NAME} characters, got {len(name)}"
    if not name.isprintable():
        return f"expected a name without line ends and control characters, got {name!r}"
    return ""


@dataclass(frozen=True)
class DeviceProfile:
    """What the server needs to know of a device; as text, who it is in its own log.

    An attribute more is a field here, and where it is measured: its type and its bounds put it on the wire. A
    text is a name, as `name_flaw` has it, and so not empty.

    Attributes:
        device_class: The class's name in the scenario, or the name that the device gave itself.
        memory_bytes: The budget for training; None when there is none.
        num_examples: The number of local training samples.
        own_data: Whether these are its own, and no part of the scenario's data set.
        num_local_test: The number of its samples that it holds out, beside those.
        spread: The standard deviation of its own data's values, over that of the server's.
        cores: The processor cores that it may use; None where it is only simulated.
    """

    device_class: str
    memory_bytes: Annotated[int | None, Bounds(above=0, largest=LARGEST_WHOLE)]
    num_examples: Annotated[int, Bounds(at_least=0, largest=_MOST_SAMPLES)]
    own_data: bool = False
    num_local_test: Annotated[int, Bounds(at_least=0, largest=_MOST_SAMPLES)] = 0
    spread: Annotated[float, Bounds(at_least=0, largest=LARGEST_WHOLE)] = 1.0
    cores: Annotated[int | None, Bounds(at_least=1)] = None

    @staticmethod
    def of(values: Mapping[str, Any]) -> "DeviceProfile":
        """Returns the profile of such attributes, once it is known that they can be.

        Raises:
            ValueError: If one is missing, of another type or out of its range.
        """
        for name, kind in get_type_hints(DeviceProfile).items():
            value = values[name]
            if type(value) not in (get_args(kind) or (kind,)):
                raise ValueError(f"a device's {name} is {value!r:.80}")
            if value is not None and (flaw := attribute_flaw(name, value)):
                raise ValueError(f"a device's {name}: {flaw}")
        return DeviceProfile(**values)

    def __str__(self) -> str:
        size = "no limit" if self.memory_bytes is None else format_size(self.memory_bytes)
        cores = "" if self.cores is None else f", {self.cores} core{'s' if self.cores > 1 else ''}"
        return f"{self.device_class}, budget {size}{cores}"


def attribute_flaw(name: str, value: Any) -> str:
    """Says what an attribute of `DeviceProfile`, of its type and not None, cannot be; empty where it can."""
    limits = limits_of(DeviceProfile).get(name)
    return name_flaw(value) if isinstance(value, str) else (limits and limits.amiss(value)) or ""


@dataclass(frozen=True)
class DeviceClassConfig:
    """A kind of device.

    Attributes:
        name: The class's name in every record; no two alike.
        share: Its share of the fleet, relative to the sum over the classes.
        memory: The [size](#sizes) that training may take on such a device: parameters, gradients, optimiser
            state, activations and the batch.
        clock: Speeds of which such a device has one in a round, as shares of its full one: what its power
            management allows. Drawn anew for each device and round, in simulation; none for always the full
            one. Of ``all_in_one``, which sends a slow device less; in the record whatever the strategy.
    """

    name: Annotated[str, STABLE] = "device"
    share: Annotated[float, Bounds(above=0), STABLE] = 1.0
    memory: Annotated[str, STABLE] = "1GiB"
    clock: Annotated[list[float], Bounds(above=0, at_most=1)] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ScenarioError("fleet.classes: a class must have a name that is not empty")
        parse_size(self.memory, f"fleet class '{self.name}'")
        check_values(self, f"fleet class '{self.name}': ")

    @property
    def memory_bytes(self) -> int:
        """The budget in bytes."""
        return parse_size(self.memory)


@dataclass(frozen=True)
class FleetConfig:
    """The fleet.

    Attributes:
        num_clients: Devices. Under Flower, the number of SuperNodes.
        classes: The kinds of devices, one or more, each with the four keys below. They are interleaved, so
            that the first clients are a fair sample of the fleet.
    """

    num_clients: Annotated[int, Bounds(at_least=1, largest=MOST_CLIENTS), STABLE] = 20
    classes: Annotated[list[DeviceClassConfig], STABLE] = field(default_factory=lambda: [DeviceClassConfig()])

    def __post_init__(self) -> None:
        check_values(self, "fleet.")
        names = [entry.name for entry in self.classes]
        if not names or len(set(names)) < len(names):
            raise ScenarioError(
                f"fleet.classes must be one or more, each of another name; got {', '.join(names) or 'none'}"
            )


def assign_classes(fleet: FleetConfig) -> Sequence[DeviceClassConfig]:
    """Returns each client's device class, by partition id.

    Classes are interleaved: each client gets the class that lags most behind its share so far, so that the
    first clients of a fleet are a fair sample of it.
    """
    total = sum(entry.share for entry in fleet.classes)
    given = [0] * len(fleet.classes)
    clients = []
    for client in range(1, fleet.num_clients + 1):
        lag = [e.share / total * client - n for e, n in zip(fleet.classes, given, strict=True)]
        chosen = max(range(len(lag)), key=lambda index: (lag[index], -index))
        given[chosen] += 1
        clients.append(fleet.classes[chosen])
    return clients


def drawn_clock(
    fleet: FleetConfig, profile: DeviceProfile, client: int, seed: int, server_round: int
) -> float | None:
    """Returns the share of its full speed that a device has in a round; None where its class has no clocks.

    Real devices may be of classes that the scenario does not know: nothing is drawn for them.
    """
    clocks = next((kind.clock for kind in fleet.classes if kind.name == profile.device_class), [])
    return float(generator(seed, "clock", server_round, client).choice(clocks)) if clocks else None
