"""The global model on disk: one safetensors file that says by itself which sub-model it holds.

Tensors bear their parameters' names; ``structure.<group>`` holds a group's kept units as packed
bits. The metadata say which model it is and which group indexes which axis, so that a reader can check
every shape before it builds anything; and what samples are normalised by and the classes' names, so that the
file alone can be put to use. They are one JSON text: several would stand in an order that safetensors draws
anew for every file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from fedhp.errors import RecordError
from fedhp.files.atomic import replacing
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure

_PREFIX = "structure."
_METADATA = "fedhp"
_KEYS = ("model", "input_shape", "num_classes", "widths", "shapes", "axes")
_LATER_KEYS = {"normalisation": None, "label_names": [], "layout": "auto"}  # which older files lack


def described(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata of every checkpoint of a run, from what `RunPlan.of_model` says."""
    return {_METADATA: json.dumps(values)}


def save(path: Path, state: ModelState, metadata: Mapping[str, str]) -> None:
    """Writes a state, replacing the file at once or not at all."""
    # safetensors writes a buffer as it lies in memory: a transposed view would come back wrong.
    tensors: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(array) for name, array in state.weights.items()
    }
    tensors |= {_PREFIX + group: bits for group, bits in state.structure.to_bits().items()}
    with replacing(path) as unfinished:
        unfinished.write_bytes(serialise(tensors, dict(metadata)))


def load(path: Path) -> tuple[ModelState, dict[str, Any]]:
    """Reads `save`.

    Raises:
        RecordError: If the file is missing, is not what `save` writes, or holds tensors that do
            not fit its structure.
    """
    if not path.is_file():
        raise RecordError(f"no model at {path}; a run writes it after its first evaluation")
    try:
        with safe_open(path, framework="numpy") as file:
            raw = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is no safetensors file that can be read: {error}") from None
    try:
        metadata = _metadata(raw)
        return _state(tensors, metadata), metadata
    except KeyError as error:
        raise RecordError(f"{path} is no model of a run: {error} is missing in it") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None


def _metadata(raw: Mapping[str, str]) -> dict[str, Any]:
    """Returns a file's metadata; in older files each had a text of its own."""
    told = json.loads(raw[_METADATA]) if _METADATA in raw else {key: json.loads(raw[key]) for key in _KEYS}
    return {key: told[key] for key in _KEYS} | {key: told.get(key, none) for key, none in _LATER_KEYS.items()}


def _state(tensors: dict[str, NDArray[Any]], metadata: Mapping[str, Any]) -> ModelState:
    widths, shapes, axes = metadata["widths"], metadata["shapes"], metadata["axes"]
    bits = {group: tensors.pop(_PREFIX + group) for group in widths}
    structure = Structure.from_bits(bits, widths)
    if unknown := sorted(set(tensors) - set(shapes)):
        raise ValueError(f"unknown tensors {unknown}")
    for name, shape in shapes.items():
        expected = tuple(
            sum(span * (1 if group is None else structure.counts[group]) for group, span in runs)
            if runs
            else size
            for size, runs in zip(shape, axes[name], strict=True)
        )
        got = tensors[name]
        if got.shape != expected or got.dtype != np.float32:
            raise ValueError(
                f"tensor '{name}': its structure asks for float32 of shape {expected}, "
                f"got {got.dtype} of shape {got.shape}"
            )
    return ModelState(tensors, structure)
