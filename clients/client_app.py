"""The device's side: answers who it is, and trains when asked. Keeps nothing between messages."""

from dataclasses import replace
from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedhp.federation import wire
from fedhp.model.state import ModelState
from fedhp.scenario.loading import from_json
from fedhp.scenario.recipes import recipe_of
from fedhp.training.moments import take_moments
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally
from fedhp.training.update import RoundTask

from .computing import keep_to_threads
from .device import LocalDevice, open_device
from .failures import tell_failures
from .telling import looked_at, tell, trained

app = ClientApp(mods=[tell_failures])


@app.query()
def query(message: Message, context: Context) -> Message:
    """Says which device this is: its class, memory budget and number of samples."""
    _, device = _opened(message, context)
    return Message(wire.pack_profile(device.profile, device.partition_id), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains the model that the server assigned, pruning it within this device's budget."""
    device, recipe, task = _task(message, context)
    update = train_locally(recipe, task, device.shard, held_out=device.held_out)
    tell(context.node_config, trained(task, update, recipe.architecture.layout))
    return Message(wire.pack_update(update), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Takes the running statistics that the server's new model has on this device's samples."""
    device, recipe, task = _task(message, context)
    moments = take_moments(recipe, task, device.shard)
    tell(context.node_config, looked_at(task, moments))
    return Message(wire.pack_moments(moments), reply_to=message)


def _opened(message: Message, context: Context) -> tuple[wire.Brief, LocalDevice]:
    keep_to_threads(context.node_config)
    brief = wire.unpack_brief(message.content)
    return brief, open_device(brief, context.node_config)


def _task(message: Message, context: Context) -> tuple[LocalDevice, Recipe, RoundTask]:
    # First: it refuses a network that this device may not import, which a recipe would.
    brief, device = _opened(message, context)
    recipe = recipe_for(brief)
    server_round, state = wire.unpack_task(message.content, recipe.architecture.layout)
    return device, recipe, round_task(brief, device, server_round, state)


def round_task(brief: wire.Brief, device: LocalDevice, server_round: int, state: ModelState) -> RoundTask:
    """Returns what a device is asked to do in a round with the model that it was sent."""
    profile = device.profile if brief.budgeted else replace(device.profile, memory_bytes=None)
    return RoundTask(server_round, device.stream, profile, state)


@lru_cache(maxsize=4)
def recipe_for(brief: wire.Brief) -> Recipe:
    """Returns how the clients of a run train."""
    return recipe_of(from_json(brief.scenario), brief.input_shape, brief.num_classes, brief.methods)
