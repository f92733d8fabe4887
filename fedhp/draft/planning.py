"""From what data is to a scenario that trains on it out of the box. All sizes here are our choice."""

import math
from dataclasses import dataclass, replace

from fedhp.aggregation.assignment import budget_for
from fedhp.data.config import DataConfig, PartitionConfig
from fedhp.data.partition import partition_rows
from fedhp.draft.looking import Kind, Look
from fedhp.errors import DataError, ScenarioError
from fedhp.fleet.devices import DeviceClassConfig, FleetConfig
from fedhp.model.options import USUAL_WIDTHS, ModelConfig
from fedhp.pruning.options import PruneConfig
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario, ServerConfig
from fedhp.sizes import at_least
from fedhp.training.options import TrainConfig

# What each class of devices can train, as a share of the dense model's parameters. Not of its bytes: of a
# convolutional network, whose activations rule, 15 % of them hold next to nothing.
SHARES = {"gateway": 1.0, "phone": 0.5, "camera": 0.3, "sensor": 0.15}
USUAL_MODELS = {Kind.FEATURES: "mlp", Kind.WINDOWS: "conv1d", Kind.IMAGES: "cnn"}

_MOST_CLIENTS, _LEAST_CLIENTS = 20, len(SHARES)
_ROWS_EACH = 50  # training rows that a client should have, where they can be divided freely
_FEW_ROWS_EACH = 10  # and must have, before there are fewer clients than classes of them
_MOST_PER_ROUND = 20
_TARGETS = (5.0, 3.0, 2.0, 1.0)
_LARGE_SHARD = 1000  # rows, below which a round takes more and smaller batches, so that it takes enough steps
_MOST_ROUNDS, _LEAST_ROUNDS = 40, 15
_MOST_SAMPLES = 1_000_000  # trained on in all, so that a run takes minutes
_PIXELS_LEFT = 7  # of an image's shorter side, above which another convolution is worth while


@dataclass(frozen=True)
class Draft:
    """A scenario, and what it was made of.

    Attributes:
        scenario: The scenario.
        dense_bytes: What training its dense model takes.
        num_parameters: Of the dense model.
    """

    scenario: Scenario
    dense_bytes: int
    num_parameters: int


def draft(look: Look, name: str, model: str = "") -> Draft:
    """Returns a scenario for data.

    Args:
        look: The data.
        name: What to call the scenario.
        model: A name in ``fedhp.model.zoo.MODELS``; empty for the one that suits the data.

    Raises:
        ScenarioError: If the model cannot take such samples.
        DataError: If the rows cannot be divided among two clients or more.
    """
    model = model or _usual_model(look)
    data, num_clients = _divided(look)
    train = _training(look.num_rows // num_clients)
    asked = min(num_clients, _MOST_PER_ROUND)
    samples = look.num_rows * asked // num_clients * train.local_epochs
    scenario = Scenario(
        name=name,
        description=f"{num_clients} devices of unequal memory learn {name}",
        rounds=max(_LEAST_ROUNDS, min(_MOST_ROUNDS, _MOST_SAMPLES // samples)),
        data=data,
        model=ModelConfig(model, _widths(look, model), norm="group" if model == "conv1d" else "batch"),
        fleet=FleetConfig(num_clients),
        train=train,
        server=ServerConfig(asked),
    )
    return _sized(scenario, look)


def _usual_model(look: Look) -> str:
    """Returns the model that suits the samples: no convolution over two axes of which one has one entry."""
    if look.kind is Kind.IMAGES and min(look.dataset.input_shape[1:]) == 1:
        return USUAL_MODELS[Kind.FEATURES]
    return USUAL_MODELS[look.kind]


def _divided(look: Look) -> tuple[DataConfig, int]:
    """Returns the data with a partition that can be made of it, and the number of clients."""
    if len(look.owner_rows) > 1:
        partition = PartitionConfig("natural", min_samples=min(PartitionConfig.min_samples, *look.owner_rows))
        return replace(look.config, partition=partition), len(look.owner_rows)
    least = max(2, min(_LEAST_CLIENTS, look.num_rows // _FEW_ROWS_EACH))
    num_clients = max(least, min(_MOST_CLIENTS, look.num_rows // _ROWS_EACH))
    wanted = [PartitionConfig(alpha=alpha) for alpha in (0.5, 1.0, 2.0)]
    each = max(1, min(PartitionConfig.min_samples, look.num_rows // num_clients))
    for partition in (*wanted, PartitionConfig("iid", min_samples=each)):
        data = replace(look.config, partition=partition)
        try:
            partition_rows(data, num_clients, seed=0)
        except DataError:
            continue
        return data, num_clients
    raise DataError(f"{look.num_rows} training rows are too few to divide among clients; bring 2 or more")


def _widths(look: Look, model: str) -> list[int]:
    channels, height, width = look.dataset.input_shape
    if model == "mlp":
        size = channels * height * width
        return [300, 100] if size >= 512 else [128, 64]
    if model == "cnn":
        depth = max(1, math.ceil(math.log2(min(height, width) / _PIXELS_LEFT)))
        return [*(16 * 2**n for n in range(depth)), 128]
    return list(USUAL_WIDTHS[model])


def _training(rows_each: int) -> TrainConfig:
    epochs, batch = (2, 16) if rows_each < _LARGE_SHARD else (1, 32)
    return TrainConfig(local_epochs=epochs, batch_size=batch, learning_rate=0.05, clip_norm=1.0)


def _sized(scenario: Scenario, look: Look) -> Draft:
    """Gives a scenario the target that its model can be pruned to, and budgets that hold shares of it."""
    scenario = replace(scenario, prune=_reachable(scenario, look))
    recipe = recipe_of(scenario, look.dataset.input_shape, look.dataset.num_classes)
    layout, batch = recipe.architecture.layout, scenario.train.batch_size
    memory = recipe.memory_model(look.dataset.train_images.itemsize)
    full = layout.num_parameters(layout.widths)
    sizes = {name: budget_for(memory, recipe.shape, share * full, batch) for name, share in SHARES.items()}
    classes = [DeviceClassConfig(name, 1.0, at_least(size)) for name, size in sizes.items()]
    scenario = replace(scenario, fleet=replace(scenario.fleet, classes=classes))
    return Draft(scenario, memory.training_bytes(layout.widths, batch), full)


def _reachable(scenario: Scenario, look: Look) -> PruneConfig:
    for target in _TARGETS:
        prune = PruneConfig("magnitude", target)
        recipe = recipe_of(replace(scenario, prune=prune), look.dataset.input_shape, look.dataset.num_classes)
        try:
            recipe.check_methods()
        except ScenarioError:
            continue
        return prune
    raise AssertionError("a target of 1 is always reached")
