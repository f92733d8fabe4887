"""A fleet of small devices: a strategy that knows them, what it asks, and what they answer."""

from factories import MemoryGrid, altered, reply, stamped, trained
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedhp.costs.memory import MemoryModel
from fedhp.data import Normalisation
from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.building import initial_state
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario
from fedhp.training.method_names import PRUNING
from strategies import FleetStrategy, MaskIntersection

BRIEF = wire.Brief("{}", (1, 2, 2), 3, Normalisation((0.5,), (0.25,)), methods=PRUNING, budgeted=True)


def scenario(**values) -> Scenario:
    """A perceptron of 4 inputs, 8 and 6 hidden units and 3 classes: 8*5 + 6*9 + 3*7 = 115 parameters."""
    small = {
        "rounds": 4,
        "model": {"widths": [8, 6], "floor": 2},
        "fleet": {"num_clients": 5},
        "prune": {"target_compression": 2.0, "start": 0.0, "end": 1.0},
    }
    return load_scenario("quickstart", values={**small, **values})


def build(kind: type[FleetStrategy] = MaskIntersection, **values) -> FleetStrategy:
    chosen = scenario(**values)
    recipe = recipe_of(chosen, (1, 2, 2), 3)
    memory = recipe.memory_model(1)
    return kind(chosen, recipe, memory, initial_state(recipe.architecture, chosen.seed), BRIEF)


def device(client: int, budget: int | None = None, num_examples: int = 50) -> Device:
    """A device whose node id runs against its partition id, so that the two orders differ."""
    return Device(1000 - client, client, DeviceProfile("phone", budget, num_examples))


def enlisted(kind: type[FleetStrategy] = MaskIntersection, budgets=(None,) * 5, **values) -> FleetStrategy:
    strategy = build(kind, **values)
    strategy.enlist([device(client, budget) for client, budget in enumerate(budgets)])
    return strategy


def asked(strategy: FleetStrategy, server_round: int = 1) -> list[Message]:
    grid = MemoryGrid(lambda message: None)
    messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
    # By partition id, as nodes are numbered the other way round.
    return stamped(sorted(messages, key=lambda message: -message.metadata.dst_node_id))


def answers(strategy: FleetStrategy, messages: list[Message], num_cut: int = 1) -> list[Message]:
    return [
        reply(message, trained(strategy.layout, message, 10 + index, num_cut))
        for index, message in enumerate(messages)
    ]


def structure_of(strategy: FleetStrategy, message: Message):
    return wire.unpack_task(message.content, strategy.layout)[1].structure


def fits(memory: MemoryModel, counts, budget: int, batch: int) -> bool:
    return memory.training_bytes(counts, batch) <= budget


def in_place_of_the_node(message: Message) -> Message:
    """What the SuperLink answers where a node is gone: an error in the server's own name, without a group."""
    server = message.metadata.src_node_id
    answer = reply(message, "no heartbeat")
    return altered(answer, src_node_id=server, dst_node_id=server, group_id="", message_type="system")
