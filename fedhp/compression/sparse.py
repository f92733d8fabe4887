"""Figures of a network whose weights are as they were, or 0."""

import torch
from torch import nn

from fedhp.compression.figures import Compressed, LayerFigures, sparse_bits
from fedhp.compression.layers import called_layers


def sparse_figures(network: nn.Module, inputs: torch.Tensor) -> Compressed:
    """Counts zeros and bits: the weights that are not 0 and a mask, if that is less than all weights."""
    layers = []
    for name, layer in called_layers(network, inputs).items():
        size, zeros = layer.weight.numel(), int((layer.weight == 0).sum())
        layers.append(LayerFigures(name, size, zeros, sparse_bits(size, zeros)))
    return Compressed(network, layers)
