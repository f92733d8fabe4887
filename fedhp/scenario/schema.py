"""The scenario: one schema for everything that a run depends on.

The schema of each part sits beside the part (``TrainConfig`` in the room of training, ...); those that belong
to no other part, of how a round is held, simulation and tracking, are here, and the whole.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from fedhp.aggregation.options import StrategyConfig
from fedhp.bounds import MOST_CLIENTS, MOST_EPOCHS, MOST_THREADS, Bounds, Text, shown
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.data.config import DataConfig
from fedhp.errors import ScenarioError
from fedhp.fleet.devices import FleetConfig
from fedhp.model.options import ModelConfig
from fedhp.pruning.options import PruneConfig
from fedhp.scenario.explain import keys_of, value_amiss
from fedhp.scenario.heeded import vain_option
from fedhp.training.batches import MemoryConfig
from fedhp.training.method_names import DYNHP, SPARSE
from fedhp.training.options import SparseConfig, TrainConfig

# Keys, and groups of keys, on which no result depends but in last bits, by threads and devices.
BESIDE_RESULTS = ("description", "simulation", "tracking", "server.checkpoint")


@dataclass(frozen=True)
class ServerConfig:
    """How a round is held.

    Attributes:
        clients_per_round: Clients sampled per round, at most ``fleet.num_clients``; 0 takes all.
        min_replies: Valid replies below which a round changes nothing, at most the clients per round, of whom
            the strategy may admit fewer.
        min_devices: Under Flower, with how many devices a run begins, at least ``server.min_replies`` and at
            most ``fleet.num_clients``; any number may then take part, join and leave. 0 waits for
            ``fleet.num_clients``, of whom any may leave and come back, and takes no more.
        timeout_seconds: In simulation, how long one client may take; those that train together are cut off
            once they take longer than all of them may. Under Flower, how long the server waits in a round for
            training, and once more for running statistics where it asks for them.
        patience_seconds: Under Flower, how long to wait for devices to come back when a round failed because
            they were not there; rounds that fail for other reasons end the run after three in a row.
        max_times_median: How many times the median of the others one client may count: an update is refused
            whose norm is beyond it, unless it changes less than a tenth, and a device with data of its own
            counts for no more samples. 0 sets no limit.
        roll_back: Whether a round is undone that leaves a tenth or less of the lead over guessing, as a
            broken update does. Set to ``false`` where cuts are meant to go so deep that training has to begin
            anew. A round after which the model or its loss is not finite is always undone.
        checkpoint: After how many rounds each a checkpoint is written, from which ``fedhp resume`` goes on;
            0 writes none.
    """

    clients_per_round: Annotated[
        int, Bounds(at_least=0, largest=MOST_CLIENTS, hint="0 takes all"), STABLE
    ] = 0
    min_replies: Annotated[int, Bounds(at_least=1, largest=MOST_CLIENTS), STABLE] = 1
    min_devices: Annotated[
        int, Bounds(at_least=0, largest=MOST_CLIENTS, hint="0 waits for fleet.num_clients")
    ] = 0
    timeout_seconds: Annotated[float, Bounds(above=0, largest=10**7), STABLE] = 600.0
    patience_seconds: Annotated[float, Bounds(at_least=0)] = 300.0
    max_times_median: Annotated[float, Bounds(at_least=1, or_zero=True, hint="0 sets no limit")] = 10.0
    roll_back: bool = True
    checkpoint: Annotated[int, Bounds(at_least=0, largest=MOST_EPOCHS, hint="0 writes none")] = 1

    def __post_init__(self) -> None:
        check_values(self, "server.")


@dataclass(frozen=True)
class SimulationConfig:
    """Where simulated clients run.

    Attributes:
        num_workers: Processes that train clients; -1 takes one per core, 0 runs the clients in the server's
            process.
        address: Address of a Ray cluster that runs already, whose workers train then; ``local`` starts a Ray
            of this machine for the run. Empty takes processes beside the server's, on Linux without Ray.
        gpus_per_worker: GPUs, or a fraction of one, that each worker reserves; of Ray, also where no address
            is given.
        threads_per_worker: Torch threads per worker. More than 1 may change results in the last bits.
        stack: Clients whose training steps are computed at a time, of those that are sent the same model:
            ``auto`` for as many as 8 MiB hold the parameters of, and what their optimisers keep, or a number
            from 1; at most 64 are. It may change results in the last bits, of convolutional networks and
            where a batch is no multiple of 4; who is refused does not depend on it.
    """

    num_workers: Annotated[
        int, Bounds(at_least=-1, largest=4096, hint="-1 takes one per core, 0 takes none"), STABLE
    ] = -1
    address: Annotated[str, STABLE] = ""
    gpus_per_worker: Annotated[float, Bounds(at_least=0, largest=64)] = 0.0
    threads_per_worker: Annotated[int, Bounds(at_least=1, largest=MOST_THREADS)] = 1
    stack: str = "auto"

    def __post_init__(self) -> None:
        check_values(self, "simulation.")
        if self.stack != "auto" and not re.fullmatch("0*[1-9][0-9]{0,5}", self.stack):
            raise ScenarioError(
                f"simulation.stack must be auto or a whole number from 1 to 999999, got {shown(self.stack)}"
            )


WANDB_MODES = ("none", "offline", "online", "disabled")


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases.

    Attributes:
        mode: Weights & Biases: ``none`` (not used), ``offline`` (into the run record, to be uploaded later),
            ``online``, or ``disabled`` (loaded, but reports nothing).
        project: The project that the run appears in.
        entity: The account or team; empty is your own default.
        group: Groups runs that belong together; ``fedhp compare`` makes a group of its runs.
        name: What the run is called there; empty takes the name of the record's folder, and ``fedhp compare``
            that below the comparison's.
    """

    mode: Annotated[str, OneOf(WANDB_MODES), STABLE] = "none"
    project: str = "fedhp"
    entity: str = ""
    group: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        check_values(self, "tracking.wandb.")


@dataclass(frozen=True)
class TrackingConfig:
    """Where results are reported to, beside the run record on disk."""

    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass(frozen=True)
class Scenario:
    """Everything that a run depends on.

    Attributes:
        name: What the run is called, in the terminal and in the folder of its record.
        description: What it is, in a line: shown by ``fedhp scenarios``.
        seed: Fixes everything random: partitions, initial weights, who is sampled, the order of samples.
        rounds: Rounds of training. The pruning schedule stretches with them.
    """

    name: Annotated[str, STABLE] = "unnamed"
    description: Annotated[str, Text(longest=10_000, lines=True)] = ""
    seed: Annotated[int, Bounds(at_least=0, largest=2**63 - 1), STABLE] = 0
    rounds: Annotated[int, Bounds(at_least=1, largest=MOST_EPOCHS), STABLE] = 10
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if flaw := value_amiss("", self.to_dict(), KEYS):
            raise ScenarioError(flaw)
        check_values(self)
        if self.model.is_spiking and self.train.masked_loss:
            raise ScenarioError(
                f"train.masked_loss = true takes no spiking network (model.name = {self.model.name}): what "
                f"it returns is a potential gathered over time, and leaving classes out of that was never "
                f"tried; leave train.masked_loss out, or choose mlp or cnn"
            )
        if self.model.is_spiking and (key := self.leaves_out_weights):
            raise ScenarioError(
                f"{key} takes no spiking network (model.name = {self.model.name}): where to grow would be "
                f"told by one of its time steps alone; choose train.method = {DYNHP} and a strategy that "
                f"prunes units, or mlp or cnn"
            )
        told = self.train.method, self.train.sparse, self.prune.cost
        is_usual = told == (DYNHP, SparseConfig(), PruneConfig.cost)
        if not is_usual and (flaw := vain_option(self, Scenario())):
            raise ScenarioError(flaw)
        if self.server.clients_per_round > self.fleet.num_clients:
            raise ScenarioError(
                f"server.clients_per_round = {self.server.clients_per_round} exceeds "
                f"fleet.num_clients = {self.fleet.num_clients}"
            )
        if self.server.min_devices > self.fleet.num_clients:
            raise ScenarioError(
                f"server.min_devices = {self.server.min_devices} exceeds fleet.num_clients = "
                f"{self.fleet.num_clients}: lower it, or raise fleet.num_clients"
            )
        if 0 < self.server.min_devices < self.server.min_replies:
            raise ScenarioError(
                f"server.min_devices = {self.server.min_devices} is below server.min_replies = "
                f"{self.server.min_replies}: a run would begin with fewer devices than a round needs"
            )
        if self.server.min_replies > (self.server.clients_per_round or self.fleet.num_clients):
            raise ScenarioError(
                f"server.min_replies = {self.server.min_replies} exceeds the number of clients per round"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the scenario as plain nested dicts, lists and scalars."""
        return asdict(self)

    def differences(self, other: "Scenario") -> list[str]:
        """Says of each key on which a result depends how another scenario has it: ``seed: 1, now 2``."""
        return list(_differences(self._of_result(), other._of_result()))

    def _of_result(self) -> dict[str, Any]:
        values = self.to_dict()
        for key in BESIDE_RESULTS:
            group, _, name = key.rpartition(".")
            (values[group] if group else values).pop(name)
        if self.prune.widths:  # from which it follows
            values["prune"]["target_compression"] = "by prune.widths"
        return values

    @property
    def leaves_out_weights(self) -> str:
        """What has single weights left out in place of units, such as ``train.method = rigl``; or nothing."""
        if self.train.method in SPARSE:
            return f"train.method = {self.train.method}"
        return "strategy.name = fedtiny" if self.strategy.name == "fedtiny" else ""

    def to_json(self) -> str:
        """Returns the scenario as JSON, which `fedhp.scenario.arrived` reads back."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_yaml(self) -> str:
        """Returns the scenario as YAML, which `load_scenario` reads back."""
        from omegaconf import OmegaConf  # which a device has no need of

        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict()))


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in now.items():
        if isinstance(value, dict):
            yield from _differences(was[key], value, f"{prefix}{key}.")
        elif was[key] != value:
            yield f"{prefix}{key}: {was[key]}, now {value}"


KEYS = keys_of(
    Scenario,
    {
        "model.widths": "[64,32]",
        "prune.widths": "[16,32]",
        "train.methods": "[my_method:Mine]",
        "strategy.levels": "[1,0.5,0.25]",
        "fleet.classes": "[{name: phone, memory: 4MiB}]",
        "fleet.classes[].clock": "[1,0.5]",
    },
)
