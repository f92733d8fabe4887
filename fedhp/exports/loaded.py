"""The final network of a record, rebuilt, and held against what the record says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedhp.errors import RecordError
from fedhp.exports.trained import LOAD_BY, Trained
from fedhp.model.architecture import Architecture
from fedhp.model.inference import normalised, to_whole_module
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.records.load import load_state


def load_trained(
    folder: str | Path,
    target: Callable[..., nn.Module] | None = None,
    trust_target: bool = False,
    level: float | None = None,
) -> Trained:
    """Returns the final network of a run; see `load_model`."""
    state, metadata = load_state(folder, level)
    arch = _recorded(folder, metadata, state, target, trust_target)
    names = tuple(metadata["label_names"])
    return Trained(Path(folder), arch, state, metadata["layout"], names, metadata["normalisation"])


def load_model(
    folder: str | Path,
    *,
    normalise: bool = False,
    target: Callable[..., nn.Module] | None = None,
    trust_target: bool = False,
    level: float | None = None,
) -> nn.Module:
    """Returns the final global model of a run as a plain, compact torch module in evaluation mode.

    It returns logits of shape ``(batch, classes)``. Its attribute ``label_names`` holds the classes' names,
    where the data has some.

    Args:
        folder: The run's record.
        normalise: Whether the model takes raw samples, tensors or NumPy arrays: bytes or other numbers as
            they stand in the data, of shape ``(batch, channels, height, width)``, or with channels last as
            the data may have them, and with axes of one entry left out; any other shape raises a ValueError.
            Otherwise it takes float32 tensors of shape ``(batch, channels, height, width)``, normalised as
            in training.
        target: What builds the network, for a record of a network of one's own (``model.target``).
        trust_target: Whether the code that such a record names is imported and called instead. Only for
            records from those whose code you would run.
        level: The width of one of the narrower networks that the model stands for, as those of
            ``strategy.name=all_in_one`` do; None for the whole.

    Raises:
        RecordError: If the record holds no such model or level, it does not match its structure, names code
            that is not trusted, or does not tell what ``normalise`` needs.
    """
    found = load_trained(folder, target, trust_target, level)
    module = to_whole_module(found.arch, found.state)
    if normalise:
        module = normalised(module, found.normalisation, found.arch.input_shape, found.layout)
    module.label_names = found.label_names  # pyright: ignore[reportArgumentType]
    return module.eval()


def _recorded(
    folder: str | Path,
    metadata: Mapping[str, Any],
    state: ModelState,
    target: Callable[..., nn.Module] | None,
    trust_target: bool,
) -> Architecture:
    """Returns the architecture that a record names, which its weights fit."""
    try:
        # A record that does not name the key is older than it: until then, inputs were never cut.
        model = ModelConfig(**{"prune_inputs": False, **metadata["model"]})
        trusted = trust_target or target is not None or not model.target
        arch = (
            architecture(model, metadata["input_shape"], metadata["num_classes"], target) if trusted else None
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{folder} holds no model that this version knows: {error}; {LOAD_BY}") from None
    if arch is None:
        raise RecordError(
            f"{folder} names a network of its own, whose code would be imported and called. Give what builds "
            "it (target=...), or say that you trust the record (trust_target=True, or --trust-target)"
        )
    _check_fit(folder, model, arch, state)
    return arch


def _check_fit(folder: str | Path, model: ModelConfig, arch: Architecture, state: ModelState) -> None:
    widths = {group: len(mask) for group, mask in state.structure.masks.items()}
    shapes = {name: array.shape for name, array in state.weights.items()}
    layout, counts = arch.layout, state.structure.counts
    if widths != layout.widths or shapes != {name: layout.shape(name, counts) for name in layout.shapes}:
        raise RecordError(
            f"{folder}: the weights, of groups {widths}, do not fit the model that the record names: "
            f"{model.said}, of groups {dict(layout.widths)}; {LOAD_BY}"
        )
    if broken := [name for name, array in state.weights.items() if not np.isfinite(array).all()]:
        raise RecordError(f"{folder}: tensor '{broken[0]}' of the model holds values that are not finite")
