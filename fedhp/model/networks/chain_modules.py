"""Chains of declared layers as modules, built straight away: for every client of every round."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.layout import Layout
from fedhp.model.networks.chain import Layer
from fedhp.seeds import derive


def build(layers: Sequence[Layer], counts: Mapping[str, int]) -> nn.Module:
    """Builds the chain of these layers, of so many units, its weights not initialised."""
    convolutions = [layer for layer in layers if layer.kernel]
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number, layer in enumerate(convolutions, 1):
        rows, columns = layer.sizes(counts)
        convolution = _Conv2d(columns, rows, kernel_size=layer.kernel[0], padding=layer.padding)
        modules[layer.name] = _plain(convolution, nn.Conv2d)
        modules[f"relu_{layer.name}"] = nn.ReLU(inplace=True)
        modules[f"pool{number}"] = nn.MaxPool2d(2)
    modules["flatten"] = nn.Flatten()
    for layer in layers[len(convolutions) :]:
        rows, columns = layer.sizes(counts)
        modules[layer.name] = _plain(_Linear(columns, rows), nn.Linear)
        if layer.outgoing is not None:
            modules[f"relu_{layer.name}"] = nn.ReLU(inplace=True)
    return nn.Sequential(modules)


def uniform_weights(layout: Layout, seed: int) -> dict[str, NDArray[np.float32]]:
    """Returns initial weights of a chain: uniform in +-1/sqrt(fan_in), as ``torch.nn.Linear`` draws them."""
    weights = {}
    fan_in = 1
    for name, shape in layout.shapes.items():
        if len(shape) > 1:  # a bias follows its weight and shares its bound
            fan_in = math.prod(shape[1:])
        stream = torch.Generator().manual_seed(derive(seed, "initial weights", name))
        bound = 1 / math.sqrt(fan_in)
        weights[name] = torch.empty(shape).uniform_(-bound, bound, generator=stream).numpy()
    return weights


class _Linear(nn.Linear):
    """A linear layer that skips initialisation: its weights always come from a `ModelState`."""

    def reset_parameters(self) -> None:
        pass


class _Conv2d(nn.Conv2d):
    """A convolution that skips initialisation: its weights always come from a `ModelState`."""

    def reset_parameters(self) -> None:
        pass


def _plain(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Makes a layer one of torch's own: quantisers and exporters pass over subclasses without a word."""
    layer.__class__ = kind
    return layer
