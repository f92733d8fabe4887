"""How noisy a model's gradients are: the scale up to which a larger batch pays."""

import math
from typing import Any

import torch
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.layout import Layout

# Every how many steps the noise is looked at, and the weight of the newest look in its averages: they cover
# four hundred steps, since the gradient's square drowns in the noise that it is to be told from.
_STRIDE = 8
_NEWEST = 0.02


class NoiseScale:
    """The gradient-noise scale ``B = tr(S) / |G|^2`` of the last layer, while a module is trained.

    S is the covariance of the gradients of single samples and G their mean (McCandlish et al. 2018, arXiv
    1812.06162, equation 2.9). With n samples of gradients g_i, the mean of which is g, ``|g|^2`` exceeds
    ``|G|^2`` by ``tr(S) / n`` in expectation, so that

        |G|^2 = (n * |g|^2 - mean |g_i|^2) / (n - 1)    and    tr(S) = mean |g_i|^2 - |G|^2

    are without bias; each is averaged over steps, and then they are divided. For a linear layer that takes in
    a_i and whose outputs have the gradient d_i, ``|g_i|^2 = |d_i|^2 * (|a_i|^2 + 1)`` with the bias: no pass
    per sample and no memory. That the last layer stands for all is our choice.

    Args:
        head: The last layer, linear.
    """

    def __init__(self, head: nn.Module) -> None:
        self._head = head
        self._num_steps = self._num_looks = self._num_samples = 0
        self._single = torch.zeros(())
        self._square = self._variance = 0.0
        self._handle = head.register_forward_hook(self._forward)

    @property
    def value(self) -> float:
        """The scale in samples; 0 before the first look, infinite where noise is all that there is."""
        if not self._num_looks:
            return 0.0
        return self._variance / self._square if self._square > 0 else math.inf

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that is kept between steps."""
        return [self._single]

    def observe(self) -> None:
        """Takes in the step just done; call after the backward pass, before gradients go."""
        if self._num_steps % _STRIDE == 0 and self._num_samples > 1:
            n, single = self._num_samples, float(self._single)
            whole = sum(float(p.grad.norm()) ** 2 for p in self._head.parameters() if p.grad is not None)
            square = (n * whole - single) / (n - 1)
            self._num_looks += 1
            weight = max(_NEWEST, 1 / self._num_looks)
            self._square += weight * (square - self._square)
            self._variance += weight * (single - square - self._variance)
        self._num_steps += 1

    def kept(self) -> dict[str, float]:
        """Returns what is known between steps."""
        return {
            "steps": self._num_steps,
            "looks": self._num_looks,
            "square": self._square,
            "variance": self._variance,
        }

    def take_up(self, steps: int, looks: int, square: float, variance: float) -> None:
        """Goes on with what was known."""
        self._num_steps, self._num_looks = int(steps), int(looks)
        self._square, self._variance = float(square), float(variance)

    def close(self) -> None:
        """Leaves the module as it was."""
        self._handle.remove()

    def _forward(self, head: nn.Module, inputs: tuple[Any, ...], outputs: torch.Tensor) -> None:
        if self._num_steps % _STRIDE or not torch.is_grad_enabled():
            return
        lengths = torch.linalg.vector_norm(inputs[0].detach(), dim=1).square_()
        if self._head.bias is not None:
            lengths.add_(1)

        def backward(gradients: torch.Tensor) -> None:
            # Of the mean loss: n times less than those of the samples' own losses.
            n = self._num_samples = len(gradients)
            self._single = n * torch.dot(torch.linalg.vector_norm(gradients, dim=1).square_(), lengths)

        outputs.register_hook(backward)


def head_of(layout: Layout) -> str:
    """Returns the name of a model's last linear layer: that whose outputs are classes, not units to cut.

    A network of the user's own may name its layers in any order. Where no linear layer makes the classes, it
    is the last that has a weight of two axes.

    Raises:
        ScenarioError: If there is none.
    """
    weights = [name for name in layout.trained if len(layout.shapes[name]) == 2]
    if not weights:
        raise ScenarioError(
            "memory.batch_policy = noise measures the noise at the model's last linear layer, and it has "
            "none; choose another policy"
        )
    heads = [name for name in weights if not any(run.group for run in layout.runs(name)[0])]
    return (heads or weights)[-1].rpartition(".")[0]
