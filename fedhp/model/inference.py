"""A trained model as it is used: whole and raw samples in, one plain torch module."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.data.normalisation import Normalisation
from fedhp.model.architecture import Architecture
from fedhp.model.building import to_module
from fedhp.model.scaler import Scaler
from fedhp.model.state import ModelState


def to_whole_module(arch: Architecture, state: ModelState) -> nn.Module:
    """Builds the compact module behind a layer that picks its inputs out of whole samples."""
    module, kept = to_plain_module(arch, state), arch.kept_inputs(state.structure)
    if kept is None:
        return module
    return nn.Sequential(OrderedDict(inputs=_Inputs(kept), **dict(module.named_children())))


def to_plain_module(arch: Architecture, state: ModelState) -> nn.Module:
    """Builds the compact module, which takes the inputs that are left.

    Its parameters lie in memory as PyTorch's usually do: exporters misread channels that lie innermost. What
    only training needs is left away, so that all layers are torch's own.
    """
    module = to_module(arch, state)
    for name in [name for name, layer in module.named_modules() if isinstance(layer, Scaler)]:
        module.set_submodule(name, nn.Identity())
    for parameter in module.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return module


def normalised(
    module: nn.Module, normalisation: Normalisation, input_shape: Sequence[int], layout: str = "auto"
) -> nn.Module:
    """Puts a module behind a layer that normalises raw samples, in the order of axes of the data or its own.

    Args:
        module: Takes normalised samples. What is returned takes tensors or NumPy arrays.
        normalisation: What raw values are normalised by, bytes scaled to 0 .. 1.
        input_shape: The shape (channels, height, width) of a sample that the module takes.
        layout: How samples were read, one of `LAYOUTS`; decides where a shape fits either order of axes.
    """
    layer = _Normalise(normalisation, tuple(input_shape), layout)
    return nn.Sequential(OrderedDict(normalise=layer, network=module))


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

    def __init__(self, normalisation: Normalisation, input_shape: tuple[int, ...], layout: str) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(normalisation.shaped(normalisation.mean)))
        self.register_buffer("std", torch.tensor(normalisation.shaped(normalisation.std)))
        last = (0, 2, 1) if normalisation.axis == 1 else (1, 2, 0)  # of windows over time, of images
        self._orders = [(0, 1, 2), last]
        if layout == "channels_last":
            self._orders.reverse()
        self._input_shape = input_shape

    def forward(self, samples: torch.Tensor | NDArray[Any]) -> torch.Tensor:
        if isinstance(samples, np.ndarray):
            samples = _tensor(samples).to(self.mean.device)
        scale = 255 if samples.dtype == torch.uint8 else 1
        values = self._arranged(samples).double() / scale
        return ((values - self.mean) / self.std).float()

    def _arranged(self, samples: torch.Tensor) -> torch.Tensor:
        """Returns samples with their axes in the order of (channels, height, width).

        Raises:
            ValueError: If their shape is not that of the training's samples, in neither order of axes.
        """
        shapes = [tuple(self._input_shape[axis] for axis in order) for order in self._orders]
        for order, shape in zip(self._orders, shapes, strict=True):
            if _long_axes(samples.shape[1:]) == _long_axes(shape):
                places = [1 + order.index(axis) for axis in range(3)]
                return samples.reshape(len(samples), *shape).permute(0, *places)
        wanted = " or ".join(dict.fromkeys(str(("batch", *_long_axes(shape))) for shape in shapes))
        raise ValueError(f"samples of shape {tuple(samples.shape)}, where the model takes {wanted}")


def _tensor(samples: NDArray[Any]) -> torch.Tensor:
    """Returns a copy of numbers of any type and byte order: bytes as they are, others in double precision.

    Raises:
        TypeError: If they are no numbers.
    """
    kind = np.uint8 if samples.dtype == np.uint8 else np.float64
    return torch.from_numpy(samples.astype(kind, order="C", casting="same_kind"))


def _long_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a shape without its axes of one entry, which data may leave out."""
    return tuple(size for size in shape if size != 1)
