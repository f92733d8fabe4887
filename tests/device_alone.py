"""A device by itself, with the base install alone: who it is, and a training of what it is sent."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, MessageType, RecordDict

from fedhp.data.normalisation import Normalisation
from fedhp.federation import wire
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.references import CLIENT_APP, resolve
from fedhp.scenario.loading import load_scenario
from fedhp.simulation.identity import RUN_ID, acting_as
from fedhp.training.method_names import PRUNING

SERVER, DEVICE, SHAPE, CLASSES = 0, 7, (1, 1, 8), 2


def main() -> None:
    """Trains on two classes of points that can be told apart, and checks what comes back."""
    labels = np.arange(400) % 2
    points = np.random.default_rng(0).normal(4.0 * labels[:, None] - 2.0, 1.0, (400, 8)).astype(np.float32)
    scenario = load_scenario("quickstart", ["rounds=1", "train.local_epochs=3", "prune.target_compression=4"])
    layout = architecture(scenario.model, SHAPE, CLASSES).layout
    stream = np.random.default_rng(1)
    weights = {name: stream.normal(0, 0.3, shape).astype(np.float32) for name, shape in layout.shapes.items()}
    state = ModelState(weights, layout.full())
    brief = wire.Brief(scenario.to_json(), SHAPE, CLASSES, Normalisation((0.0,), (1.0,)), PRUNING, True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "mine.npz"
        np.savez(data, x_train=points, y_train=labels)
        node = {"data-path": str(data), "memory-budget": "512KiB"}
        profile, _ = wire.unpack_profile(asked(wire.pack_query(brief), MessageType.QUERY, node))
        reply = asked(wire.pack_task(wire.pack_state(state), brief, 1), MessageType.TRAIN, node)
    update = wire.unpack_update(reply, layout, 0, state.structure, profile)
    assert "torch" not in sys.modules, "this is not the base install"
    assert update.statistics.accuracy > 0.9
    assert update.statistics.memory_measured_bytes <= update.statistics.memory_predicted_bytes <= 512 * 1024
    assert update.state.num_parameters() < 0.3 * state.num_parameters()


def asked(content: RecordDict, kind: str, node: dict[str, str]) -> RecordDict:
    """Lets the device answer a message from the server."""
    app = resolve(CLIENT_APP)
    with acting_as(SERVER):
        message = Message(content, DEVICE, kind)
    with acting_as(DEVICE):
        answer = app(message, Context(RUN_ID, DEVICE, node, RecordDict(), {}))
    assert answer.has_content(), answer.error.reason
    return answer.content


if __name__ == "__main__":
    main()
