"""A trained model as it is used: whole and raw samples in, one plain torch module."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from fedhp.models import Architecture, to_module
from fedhp.state import ModelState


def to_whole_module(arch: Architecture, state: ModelState) -> nn.Module:
    """Builds the compact module behind a layer that picks its inputs out of whole samples.

    Its parameters lie in memory as PyTorch's usually do: exporters misread channels that lie innermost.
    """
    module, kept = to_module(arch, state), arch.kept_inputs(state.structure)
    for parameter in module.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    if kept is None:
        return module
    return nn.Sequential(OrderedDict(inputs=_Inputs(kept), **dict(module.named_children())))


def normalised(module: nn.Module, mean: ArrayLike, std: ArrayLike, input_shape: Sequence[int]) -> nn.Module:
    """Puts a module behind a layer that normalises raw samples.

    Args:
        module: Takes normalised samples.
        mean: What is taken from raw values, bytes scaled to 0 .. 1; broadcasts over a sample.
        std: What the rest is divided by; broadcasts over a sample.
        input_shape: The shape of a sample that the module takes.
    """
    return nn.Sequential(OrderedDict(normalise=_Normalise(mean, std, input_shape), network=module))


class _Inputs(nn.Module):
    """Picks entries out of flattened samples."""

    def __init__(self, kept: NDArray[np.intp]) -> None:
        super().__init__()
        self.kept: torch.Tensor
        self.register_buffer("kept", torch.tensor(kept))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return samples.flatten(1).index_select(1, self.kept)  # which quantisers know, unlike an index


class _Normalise(nn.Module):
    """Brings raw samples to the mean and deviation of the training data, and to the shape of its samples.

    In double precision until the last step, as in training: values around a large one differ by little.
    """

    def __init__(self, mean: ArrayLike, std: ArrayLike, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(np.asarray(mean, np.float64)))
        self.register_buffer("std", torch.tensor(np.asarray(std, np.float64)))
        self._input_shape = tuple(input_shape)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        scale = 255 if samples.dtype == torch.uint8 else 1
        values = samples.reshape(len(samples), *self._input_shape).double() / scale
        return ((values - self.mean) / self.std).float()
