"""How well a model does on a client's own samples, which it does not train on meanwhile."""

from fedhp.data.shard import Shard
from fedhp.training.meter import Meter
from fedhp.training.recipe import Recipe, choose_batch
from fedhp.training.update import Judgement, RoundTask


def judge(recipe: Recipe, task: RoundTask, shard: Shard) -> Judgement:
    """Computes the loss of the model that a client was sent, with the running statistics that it came with.

    A forward pass takes less than the training step on as many samples, for which there is room.

    Args:
        recipe: How clients train.
        task: The round, the device and the model.
        shard: The client's own data.

    Raises:
        BudgetError: If the model does not fit the device's budget with one sample, as in training.
    """
    arch, structure, device = recipe.architecture, task.state.structure, recipe.device()
    memory = recipe.memory_model(shard.raw_itemsize)
    batch = min(choose_batch(recipe, memory, structure, task.profile.memory_bytes), len(shard))
    runtime = recipe.runtime
    network = runtime.network(arch, task.state, device)
    meter = Meter(runtime.live)
    key = ("judgement", recipe.step_key(shard, [network.parameters()], batch))
    with meter.watching(key, lambda: runtime.kept(network)):
        _, loss = runtime.evaluate(network, shard, arch.kept_inputs(structure), device, batch)
    return Judgement(loss, meter.measured)
