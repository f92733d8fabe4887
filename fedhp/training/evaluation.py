"""How good a model is on held-out samples."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.data.shard import Shard
from fedhp.model.architecture import Architecture
from fedhp.model.batch_norms import normalises_over_batches
from fedhp.model.building import to_module
from fedhp.model.draws import drawing
from fedhp.model.gradients import is_watched
from fedhp.model.state import ModelState
from fedhp.seeds import derive
from fedhp.threads import cores

# Each batch holds the activations of its own.
_MOST_AT_ONCE = 4


def evaluate(
    architecture: Architecture,
    state: ModelState,
    shard: Shard,
    device: torch.device | str = "cpu",
    batch: int = 500,
) -> tuple[float, float]:
    """Returns accuracy (0 to 1) and mean cross-entropy of a model on a shard.

    Several batches are judged at once, by threads, where a network is known to draw and to keep nothing: the
    results are those of one after another. Larger batches take longer where maps are large: what the system's
    allocator does not keep is paged in anew for each.
    """
    module, inputs = to_module(architecture, state, device), architecture.kept_inputs(state.structure)
    return evaluate_module(module, shard, inputs, device, batch, _most_at_once(module, device))


def _most_at_once(module: nn.Module, device: torch.device | str) -> int:
    """Returns how many batches are judged at once: those of networks of torch's and our own layers."""
    parts = list(module.modules())
    known = all(map(_is_known, parts))
    if torch.device(device).type != "cpu" or not known or any(map(is_watched, parts)):
        return 1
    return max(1, min(_MOST_AT_ONCE, cores() // torch.get_num_threads()))


def _is_known(part: nn.Module) -> bool:
    return type(part).__module__.partition(".")[0] in ("torch", "fedhp") and "forward" not in vars(part)


def evaluate_module(
    module: nn.Module,
    shard: Shard,
    inputs: NDArray[np.intp] | None,
    device: torch.device | str,
    batch: int,
    at_once: int = 1,
) -> tuple[float, float]:
    """Returns accuracy and mean cross-entropy of a module, which is left in the mode that it was in.

    With one batch at once, at no moment does it hold more than a training step with as many samples: no
    gradients, no activation longer than it is needed, and nothing of one batch when the next one is gathered.
    A network that draws in evaluation too draws the same each time.
    """
    was_training = module.training
    module.eval()

    def judged(rows: NDArray[np.intp]) -> tuple[int, float]:
        return _judge(module, *shard.batch(rows, inputs, whole=at_once > 1), device)

    batches = list(_batches(len(shard), batch, 2 if normalises_over_batches(module) else 1))
    with drawing(derive(0, "evaluation"), device), ThreadPoolExecutor(at_once) as threads:
        several = min(at_once, len(batches)) > 1
        right, losses = zip(*(threads.map if several else map)(judged, batches), strict=True)
    module.train(was_training)
    return sum(right) / len(shard), sum(losses) / len(shard)


def _batches(number: int, batch: int, least: int) -> Iterator[NDArray[np.intp]]:
    """Yields the rows of batches of at least so many samples, where there are as many at all."""
    start = 0
    while start < number:
        rest = number - start
        size = rest if rest <= batch else min(batch, max(rest - least, least))
        yield np.arange(start, start + size)
        start += size


@torch.no_grad()
def _judge(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, device: torch.device | str
) -> tuple[int, float]:
    """Returns how many samples of a batch are predicted right, and their summed loss."""
    logits, labels = module(images.to(device)), labels.to(device)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return int((logits.argmax(1) == labels).sum()), float(loss)
