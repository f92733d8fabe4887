"""How good a model is on held-out samples."""

import numpy as np
import torch
from torch import nn

from fedhp.data import Shard
from fedhp.models import Architecture, to_module
from fedhp.state import ModelState


@torch.inference_mode()
def evaluate(
    architecture: Architecture,
    state: ModelState,
    shard: Shard,
    device: torch.device | str = "cpu",
    batch: int = 1000,
) -> tuple[float, float]:
    """Returns accuracy (0 to 1) and mean cross-entropy of a model on a shard."""
    module, inputs = to_module(architecture, state, device).eval(), architecture.kept_inputs(state.structure)
    num_right, loss_sum = 0, 0.0
    for start in range(0, len(shard), batch):
        images, labels = shard.batch(np.arange(start, min(start + batch, len(shard))), inputs)
        logits, labels = module(images.to(device)), labels.to(device)
        loss_sum += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        num_right += int((logits.argmax(1) == labels).sum())
    return num_right / len(shard), loss_sum / len(shard)
