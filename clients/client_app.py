"""The device's side: answers who it is, and trains when asked. Keeps nothing between messages.

What trains is imported where it is asked for: a device that only says who it is has no need of it.
"""

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedhp.errors import WireError
from fedhp.federation import wire
from fedhp.federation.flower_version import check_flower
from fedhp.federation.growing import pack_gradients
from fedhp.federation.judging import JUDGE, pack_judgement
from fedhp.federation.measuring import MEASURE
from fedhp.model.state import ModelState
from fedhp.scenario.arrived import from_json
from fedhp.threads import TORCH
from fedhp.training.update import RoundTask

from .clock import answer_in_time
from .computing import keep_to_threads, memory_guard, runtime_for
from .device import LocalDevice, open_device
from .failures import tell_failures
from .folding import unfold_and_fold
from .telling import judged, looked_at, tell, trained

if TYPE_CHECKING:
    from fedhp.training.recipe import Recipe

app = ClientApp(mods=[unfold_and_fold, answer_in_time, tell_failures])


@app.query()
def query(message: Message, context: Context) -> Message:
    """Says which device this is: its class, memory budget and number of samples."""
    if not context.node_config.get("fedhp-simulation"):
        check_flower()
    _, device = _opened(message, context)
    return Message(wire.pack_profile(device.profile, device.partition_id), reply_to=message)


@app.query(MEASURE.partition(".")[2])
def measure(message: Message, context: Context) -> Message:
    """Measures exported files in their runtimes, where the owner of this device lets servers ask for that."""
    check_flower()
    from .measuring import measured

    return Message(measured(message.content, context.node_config), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains the model that the server assigned, pruning it within this device's budget."""
    device, recipe, task = _task(message, context)
    from fedhp.training.trainer import train_locally

    guard = memory_guard(context.node_config)
    update = train_locally(recipe, task, device.shard, held_out=device.held_out, guard=guard)
    tell(context.node_config, trained(task, update, recipe.architecture.layout))
    content = RecordDict({**wire.pack_update(update), **pack_gradients(update.gradients)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Takes the running statistics that the server's new model has on this device's samples."""
    device, recipe, task = _task(message, context)
    from fedhp.training.moments import take_moments

    guard = memory_guard(context.node_config)
    fitted = task if guard is None else guard.begun(recipe, task, device.shard, cuts=False)
    moments = take_moments(recipe, fitted, device.shard)
    tell(context.node_config, looked_at(task, moments))
    return Message(wire.pack_moments(moments), reply_to=message)


@app.evaluate(JUDGE.partition(".")[2])
def judge(message: Message, context: Context) -> Message:
    """Says which loss a model has on this device's samples."""
    device, recipe, task = _task(message, context)
    from fedhp.training import judging

    guard = memory_guard(context.node_config)
    fitted = task if guard is None else guard.begun(recipe, task, device.shard, cuts=False)
    judgement = judging.judge(recipe, fitted, device.shard)
    tell(context.node_config, judged(task, judgement))
    return Message(pack_judgement(judgement), reply_to=message)


def _opened(message: Message, context: Context) -> tuple[wire.Brief, LocalDevice]:
    brief = wire.unpack_brief(message.content)
    return brief, open_device(brief, context.node_config)


def _task(message: Message, context: Context) -> "tuple[LocalDevice, Recipe, RoundTask]":
    keep_to_threads(context.node_config)
    # First: it refuses a network that this device may not import, which a recipe would.
    brief, device = _opened(message, context)
    recipe = recipe_for(brief, runtime_for(context.node_config))
    server_round, state = wire.unpack_task(message.content, recipe.architecture.layout)
    return device, recipe, round_task(brief, device, server_round, state)


def round_task(brief: wire.Brief, device: LocalDevice, server_round: int, state: ModelState) -> RoundTask:
    """Returns what a device is asked to do in a round with the model that it was sent."""
    profile = device.profile if brief.budgeted else replace(device.profile, memory_bytes=None)
    return RoundTask(server_round, device.stream, profile, state)


@lru_cache(maxsize=4)
def recipe_for(brief: wire.Brief, runtime: str = TORCH) -> "Recipe":
    """Returns how the clients of a run train.

    Raises:
        FedhpError: If they are to train what this runtime cannot.
        WireError: If there are not as many shares as groups.
    """
    from fedhp.scenario.recipes import recipe_of

    scenario = from_json(brief.scenario)
    recipe = recipe_of(scenario, brief.input_shape, brief.num_classes, brief.methods)
    if len(brief.shares) not in (0, len(recipe.architecture.layout.widths)):
        raise WireError(f"shares: expected one of each group of units, got {len(brief.shares)}")
    recipe = replace(recipe, runtime_name=runtime, shares=brief.shares)
    recipe.runtime.check(recipe, scenario.model.said)
    return recipe
