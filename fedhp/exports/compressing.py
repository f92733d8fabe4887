"""A network made smaller before it is written, and what that cost."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.compression.figures import float_bits
from fedhp.compression.methods import Step, compressed
from fedhp.compression.n_of_m import has_pattern
from fedhp.compression.sparse import sparse_figures
from fedhp.exports.network import network_inputs
from fedhp.exports.packed import Compression, Patterned
from fedhp.exports.samples import RawData
from fedhp.exports.trained import Trained
from fedhp.pruning.options import PruneConfig

_TOGETHER = 256


def folder_name(steps: Sequence[Step], level: float | None = None) -> str:
    """Returns the name of the folder that an export goes to by default: of each network its own."""
    of_level = [] if level is None else [f"level-{level:g}"]
    return "-".join(["export", *of_level, *(re.sub("[^a-z0-9.]+", "-", step.said) for step in steps)])


def compressed_network(
    trained: Trained, network: nn.Module, raw: RawData, steps: Sequence[Step]
) -> tuple[nn.Module, Compression]:
    """Returns the network that is written, and what it came to.

    Args:
        trained: How samples are brought to the network.
        network: As it was trained; it is left as it is.
        raw: The run's samples, of which those for compression fit weights.
        steps: The methods.

    Raises:
        ExportError: See `compressed`.
    """
    done = compressed(network, network_inputs(trained, raw.compression), steps)
    held_out = network_inputs(trained, raw.held_out)
    before, after = (
        float((scores_of(one, held_out).argmax(1) == raw.labels).mean()) for one in (network, done.network)
    )
    methods = ",".join(step.said for step in steps)
    figures = (done.layers, done.packed_bits, float_bits(network), len(raw.labels), before, after)
    return done.network, Compression(methods, len(raw.compression), *figures)


def patterned(trained: Trained, network: nn.Module, raw: RawData, prune: PruneConfig) -> Patterned | None:
    """Returns what a network takes that was trained to have a pattern; None where it has none.

    A run that was cut short before ``prune.pattern.end`` may have left it without.
    """
    inputs = network_inputs(trained, raw.held_out[:1])
    if prune.pattern.n_of_m is None or not has_pattern(network, inputs, *prune.pattern.n_of_m):
        return None
    figures = sparse_figures(network, inputs)
    return Patterned(prune.pattern.name, figures.layers, figures.packed_bits, float_bits(network))


def scores_of(network: nn.Module, inputs: torch.Tensor) -> NDArray[np.float32]:
    """Returns the scores (samples, classes) of inputs that a network takes."""
    with torch.no_grad():
        return torch.cat([network(part) for part in inputs.split(_TOGETHER)]).numpy()
