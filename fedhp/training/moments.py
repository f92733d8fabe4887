"""Running statistics of batch normalisations, taken on a client's samples by a network that stands still."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedhp.data.shard import Shard
from fedhp.seeds import derive, generator
from fedhp.training.meter import Meter
from fedhp.training.recipe import Recipe, choose_batch
from fedhp.training.update import Moments, RoundTask

# Samples that running statistics cover at least, where a client has as many. Our choice: in a layer of single
# values, the error of a mean is then a thirtieth of their deviation, and far less over the places of maps.
ENOUGH = 1024


def batches(rows: NDArray[np.intp], batch: int, least: int) -> Iterator[NDArray[np.intp]]:
    """Yields rows in batches; the last may be shorter, and what is below the least is left out."""
    for start in range(0, len(rows) - least + 1, batch):
        yield rows[start : start + batch]


def take_moments(recipe: Recipe, task: RoundTask, shard: Shard) -> Moments:
    """Takes the running statistics of the model that a client was sent, and trains nothing.

    A forward pass takes less than the training step on as many samples, for which there is room.

    Args:
        recipe: How clients train.
        task: The round, the device and the model.
        shard: The client's own data, of which it takes `ENOUGH` samples at most.

    Raises:
        BudgetError: If the model does not fit the device's budget with one sample, as in training.
    """
    arch, structure, device = recipe.architecture, task.state.structure, recipe.device()
    memory = recipe.memory_model(shard.raw_itemsize)
    chosen = choose_batch(recipe, memory, structure, task.profile.memory_bytes)
    order = generator(recipe.seed, "moments", task.round, task.client).permutation(len(shard))[:ENOUGH]
    batch = min(chosen, len(order))
    runtime, inputs = recipe.runtime, arch.kept_inputs(structure)
    network = runtime.network(arch, task.state, device)
    rows = batches(order, batch, arch.layout.smallest_batch)
    samples = (runtime.batch(shard, some, inputs, device)[0] for some in rows)
    meter = Meter(runtime.live)
    key = ("moments", recipe.step_key(shard, [network.parameters()], batch))
    watched = meter.watching(key, lambda: runtime.kept(network))
    with runtime.drawing(derive(recipe.seed, "moments", task.round, task.client), device), watched:
        runtime.retake_statistics(network, samples)
    taken = runtime.weights(network)
    statistics = {name: taken[name] for name in sorted(arch.layout.buffers)}
    return Moments(statistics, meter.measured)
