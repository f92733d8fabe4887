"""Who a device is, from its node configuration: a simulated partition, or a real device with its own data.

Node configuration keys (``flower-supernode --node-config``):

- ``partition-id``: which part of the scenario's data this device plays, and its name in the records;
- ``data-path``: the device's own samples (``.npz``, or what else `fedhp.data.own` reads) instead of a
  partition;
- ``memory-budget``: training memory such as ``2MiB``; without it, the budget of the scenario's class;
- ``memory-reserve``: what is to stay free while it trains, such as ``16MiB``; ``off`` lets nothing watch;
- ``name``: the device class shown in records; devices of one name should have one budget;
- ``runtime``: what it trains with, ``torch`` or ``numpy``; without it PyTorch, where it is installed;
- ``threads``: torch threads, 1 unless it says more;
- ``measures``: ``true`` lets a server have exported files of its own measured here;
- ``model-target``: the network that a server may make this device import and call (``model.target``);
- ``methods``: the client methods of one's own that it may make it import (``train.methods``, or a
  strategy's), with commas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedhp.bounds import MOST_THREADS, shown
from fedhp.costs.memory_watch import RESERVE_BYTES
from fedhp.data.device import device_shard
from fedhp.data.parts import client_shard, local_parts
from fedhp.data.shard import Shard
from fedhp.errors import ScenarioError
from fedhp.federation.wire import Brief
from fedhp.fleet.devices import DeviceClassConfig, DeviceProfile, assign_classes, name_flaw
from fedhp.scenario.arrived import from_json
from fedhp.seeds import derive
from fedhp.sizes import format_size, parse_size
from fedhp.threads import cores
from fedhp.training.method_names import references

NodeConfig = Mapping[str, Any]


@dataclass(frozen=True)
class LocalDevice:
    """The device that this process plays or is.

    Attributes:
        partition_id: Its place in the scenario's fleet, if it has one.
        profile: What the server needs to know of it.
        shard: Its own training data.
        held_out: Its own data to evaluate on, if any.
        stream: What the device's randomness hangs on, the same in every run: Flower's node ids are not.
    """

    partition_id: int | None
    profile: DeviceProfile
    shard: Shard
    held_out: Shard | None
    stream: int


def open_device(brief: Brief, node: NodeConfig) -> LocalDevice:
    """Returns the device that a node configuration describes, its data opened.

    Raises:
        ScenarioError: If the node configuration says neither a partition nor a data path, the partition is
            beyond the scenario's fleet, or the scenario's network or a client method
            is one that the device was not told of, or it has no such number of threads or reserve of memory.
        DataError: If the data cannot be read or does not fit the model.
    """
    num_threads(node)  # is refused here, if at all
    reserve_bytes(node)
    scenario = from_json(brief.scenario)
    _check_target(scenario.model.target, node)
    _check_methods(references((*brief.methods, scenario.train.method), scenario.train.methods), node)
    client = _partition_id(node)
    kind = _device_class(brief, client)
    budget = kind.memory_bytes
    if "memory-budget" in node:
        budget = parse_size(node["memory-budget"], "node configuration: memory-budget")
    # Records show one budget per device class: a budget of its own makes a class of its own.
    own = f"{kind.name} {format_size(budget)}" if budget != kind.memory_bytes else kind.name
    name = str(node.get("name", own))
    if flaw := name_flaw(name):
        raise ScenarioError(f"node configuration: name: {flaw}")
    whole = _open_shard(brief, node, client)
    stream = derive(whole.fingerprint(), name) if client is None else client
    shard, held_out = local_parts(scenario.data, whole, scenario.seed, stream)
    num_held_out = 0 if held_out is None else len(held_out)
    profile = DeviceProfile(
        device_class=name,
        memory_bytes=budget,
        num_examples=len(shard),
        own_data="data-path" in node,
        num_local_test=num_held_out,
        spread=shard.spread,
        cores=None if node.get("fedhp-simulation") else cores(),
    )
    return LocalDevice(client, profile, shard, held_out, stream)


def num_threads(node: NodeConfig) -> int:
    """Returns how many of torch's threads the device trains with.

    Raises:
        ScenarioError: If the node configuration says no such number.
    """
    number = node.get("threads", 1)
    if type(number) is not int or not 1 <= number <= MOST_THREADS:
        raise ScenarioError(
            f"node configuration: threads must be a whole number from 1 to {MOST_THREADS}, "
            f"got {shown(number)}"
        )
    return number


def reserve_bytes(node: NodeConfig) -> int | None:
    """Returns what is to stay free of memory while the device trains; None where nothing is to watch.

    Raises:
        ScenarioError: If the node configuration says no such size.
    """
    said = node.get("memory-reserve", RESERVE_BYTES)
    return None if said == "off" else parse_size(said, "node configuration: memory-reserve")


def _check_target(target: str, node: NodeConfig) -> None:
    """Refuses to import what a server names and the device's owner does not; simulated ones trust it."""
    if target and not node.get("fedhp-simulation") and node.get("model-target") != target:
        raise ScenarioError(
            f"the scenario's network is '{target}', which this device was not told that it may import; start "
            f"its SuperNode with --node-config 'model-target=\"{target}\"'"
        )


def _check_methods(named: Sequence[str], node: NodeConfig) -> None:
    """Refuses to import methods, as `_check_target` networks."""
    allowed = {name.strip() for name in str(node.get("methods", "")).split(",")}
    unknown = [name for name in named if name not in allowed]
    if unknown and not node.get("fedhp-simulation"):
        raise ScenarioError(
            f"clients are to train by '{unknown[0]}', a method which this device was not told that it may "
            f"import; start its SuperNode with --node-config 'methods=\"{','.join(named)}\"'"
        )


def _open_shard(brief: Brief, node: NodeConfig, client: int | None) -> Shard:
    if "data-path" in node:
        return device_shard(
            str(node["data-path"]),
            normalisation=brief.normalisation,
            input_shape=brief.input_shape,
            num_classes=brief.num_classes,
            label_names=brief.label_names,
            layout=from_json(brief.scenario).data.layout,
        )
    if client is None:
        raise ScenarioError(
            "the node configuration must name a partition-id or a data-path, such as "
            "--node-config 'partition-id=0' or --node-config 'data-path=\"/data/mine.npz\"'"
        )
    scenario = from_json(brief.scenario)
    return client_shard(scenario.data, scenario.fleet.num_clients, scenario.seed, client)


def _partition_id(node: NodeConfig) -> int | None:
    if "partition-id" not in node:
        return None
    try:
        return int(node["partition-id"])
    except ValueError:
        raise ScenarioError(
            f"node configuration: partition-id must be a number, got {node['partition-id']!r}"
        ) from None


def _device_class(brief: Brief, client: int | None) -> DeviceClassConfig:
    if client is None:
        return DeviceClassConfig(name="device")
    classes = _classes(brief.scenario)
    if not 0 <= client < len(classes):
        raise ScenarioError(
            f"node configuration: partition-id is {client}, but the fleet has clients 0 to {len(classes) - 1}"
        )
    return classes[client]


@lru_cache(maxsize=4)
def _classes(scenario_json: str) -> tuple[DeviceClassConfig, ...]:
    return tuple(assign_classes(from_json(scenario_json).fleet))
