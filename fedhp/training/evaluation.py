"""How good a model is on held-out samples."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.data.shard import Shard
from fedhp.model.architecture import Architecture
from fedhp.model.building import to_module
from fedhp.model.draws import drawing
from fedhp.model.modules import normalises_over_batches
from fedhp.model.state import ModelState
from fedhp.seeds import derive


def evaluate(
    architecture: Architecture,
    state: ModelState,
    shard: Shard,
    device: torch.device | str = "cpu",
    batch: int = 1000,
) -> tuple[float, float]:
    """Returns accuracy (0 to 1) and mean cross-entropy of a model on a shard."""
    module, inputs = to_module(architecture, state, device), architecture.kept_inputs(state.structure)
    return evaluate_module(module, shard, inputs, device, batch)


@torch.no_grad()
def evaluate_module(
    module: nn.Module,
    shard: Shard,
    inputs: NDArray[np.intp] | None,
    device: torch.device | str,
    batch: int,
) -> tuple[float, float]:
    """Returns accuracy and mean cross-entropy of a module, which is left in the mode that it was in.

    At no moment does it hold more than a training step with as many samples: no gradients, no activation
    longer than it is needed, and nothing of one batch when the next one is gathered. A network that draws in
    evaluation too draws the same each time.
    """
    was_training = module.training
    module.eval()
    num_right, loss_sum = 0, 0.0
    with drawing(derive(0, "evaluation"), device):
        for rows in _batches(len(shard), batch, 2 if normalises_over_batches(module) else 1):
            right, loss = _judge(module, *shard.batch(rows, inputs), device)
            num_right, loss_sum = num_right + right, loss_sum + loss
    module.train(was_training)
    return num_right / len(shard), loss_sum / len(shard)


def _batches(number: int, batch: int, least: int) -> Iterator[NDArray[np.intp]]:
    """Yields the rows of batches of at least so many samples, where there are as many at all."""
    start = 0
    while start < number:
        rest = number - start
        size = rest if rest <= batch else min(batch, max(rest - least, least))
        yield np.arange(start, start + size)
        start += size


def _judge(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, device: torch.device | str
) -> tuple[int, float]:
    """Returns how many samples of a batch are predicted right, and their summed loss."""
    logits, labels = module(images.to(device)), labels.to(device)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return int((logits.argmax(1) == labels).sum()), float(loss)
