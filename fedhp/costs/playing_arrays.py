"""A step in miniature of a network of NumPy's arrays."""

import numpy as np

from fedhp.costs.forms import Counts
from fedhp.costs.ledger import Ledger, Played, Step
from fedhp.costs.live_arrays import ArrayWatch
from fedhp.model.architecture import Architecture
from fedhp.model.array_networks import array_network
from fedhp.model.dense import Loss


def play(arch: Architecture, step: Step, counts: Counts, batch: int) -> Played:
    """Takes a step with so many units and samples; returns what it made."""
    layout = arch.layout
    shapes = {name: layout.shape(name, counts) for name in layout.shapes}
    network = array_network(layout, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    samples = np.zeros((batch, *arch.taken_shape(counts)), np.float32)
    labels, mask = np.zeros(batch, np.int64), np.zeros(1, np.float32)
    parameters = network.parameters()
    existing = [*(parameter.data for parameter in parameters), *network.statistics]
    ledger = _ArrayLedger([*existing, samples, labels, mask])
    with ledger:
        network.gradients(samples, labels, Loss(mask if step.masked else None, 0.1 if step.smooth else 0.0))
    own = [parameter.grad for parameter in parameters]
    return ledger.play(layout, own, f"numpy {np.__version__}")


class _ArrayLedger(ArrayWatch, Ledger):
    pass
