"""A step in miniature of a module of PyTorch's."""

from typing import Any

import torch

from fedhp.costs.forms import Counts
from fedhp.costs.ledger import Ledger, Played, Step
from fedhp.costs.live_tensors import StorageWatch
from fedhp.model.architecture import Architecture
from fedhp.model.batch_norms import counter_bytes
from fedhp.model.dense import Loss
from fedhp.model.draws import drawing
from fedhp.model.gradients import gradients
from fedhp.model.modules import fill, lay_out, thin_before_convolutions
from fedhp.model.noise import NoiseScale, head_of
from fedhp.model.position_noise import PositionNoise, standard_normal
from fedhp.pruning.taps import Taps
from fedhp.threads import torch_threads


def play(arch: Architecture, step: Step, counts: Counts, batch: int) -> Played:
    """Takes a step with so many units and samples; returns what it made."""
    module, layout = arch.build(counts).train(), arch.layout
    fill(module)
    lay_out(module, layout)
    thin_before_convolutions(module, layout)
    images = torch.zeros(batch, *arch.taken_shape(counts))
    labels = torch.zeros(batch, dtype=torch.int64)
    mask = torch.zeros(1)  # which does for any number of classes
    ledger = _TensorLedger([*module.parameters(), *module.buffers(), images, labels, mask])
    if step.noised:
        PositionNoise(module, 0.1, standard_normal)
    if step.noisy:
        NoiseScale(module.get_submodule(head_of(layout)))
    if step.tapped:
        Taps(module, layout, counts, ledger.look)
    with torch_threads(1), drawing(0, "cpu"), ledger:
        gradients(module, images, labels, Loss(mask if step.masked else None, 0.1 if step.smooth else 0.0))
    parameters = dict(module.named_parameters())
    own = [parameters[name].grad for name in layout.trained]
    return ledger.play(layout, own, torch.__version__, counter_bytes(module))


class _TensorLedger(StorageWatch, Ledger):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Notes the operation, and does as any watch does."""
        self.operations.append(str(func))
        return super().__torch_dispatch__(func, types, args, kwargs)
