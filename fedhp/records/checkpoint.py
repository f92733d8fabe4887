"""What a run goes on from, on disk: a safetensors file per round, of which a record keeps the last two.

A file holds values nested as JSON has them, in one metadata entry, and the arrays among them as tensors, of
their own types. With them goes a digest: what a kill leaves is whole, but what a disk gives back may not be,
and a run must not go on from that unseen. Nothing in it is code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from fedhp.errors import RecordError
from fedhp.files.atomic import onto_disk, replacing

_METADATA = "fedhp"
_ARRAY = "\0array"  # the key that stands for the array of a number; no layer is called so
_KEPT = 2

_Arrays = dict[str, NDArray[Any]]


def save(
    folder: Path, told: int, values: Mapping[str, Any], lasting: bool = True, spared: Path | None = None
) -> Path:
    """Writes a checkpoint, whole or not at all, and removes those before the last two.

    Args:
        folder: The record.
        told: How many rounds the record tells of by now, round 0 included.
        values: What is kept: mappings, lists, texts, numbers, None, and arrays.
        lasting: Whether to wait until it would outlive a power failure.
        spared: One that is not removed.

    Returns:
        The file.
    """
    arrays: _Arrays = {}
    text = json.dumps(_without_arrays(values, arrays))
    metadata = {_METADATA: json.dumps({"digest": _digest(text, arrays), "values": text})}
    path = folder / f"checkpoint-{told:06d}.safetensors"
    with replacing(path) as unfinished:
        unfinished.write_bytes(serialise(arrays, metadata))
        if lasting:
            onto_disk(unfinished)
    if lasting:
        onto_disk(folder)
    for older in found(folder)[_KEPT:]:
        if older != spared:
            older.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """Returns the checkpoints of a record, the newest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def remove(folder: Path) -> None:
    """Removes them, the newest last: a run that has finished needs none."""
    for path in reversed(found(folder)):
        path.unlink()


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` was given; tuples come back as lists.

    Raises:
        RecordError: If the file is cut short or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            told = json.loads((file.metadata() or {})[_METADATA])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if told["digest"] != _digest(told["values"], arrays):
            raise ValueError("its digest is that of other values")
        return _with_arrays(json.loads(told["values"]), arrays)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} is cut short or damaged: {error}") from None


def _digest(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(arrays[name].data if arrays[name].size else b"")
    return digest.hexdigest()


def _without_arrays(value: Any, arrays: _Arrays) -> Any:
    """Puts the arrays of a value aside, by number, and returns the rest."""
    if isinstance(value, np.ndarray):
        number = str(len(arrays))
        # safetensors writes a buffer as it lies in memory: a transposed view would come back wrong.
        arrays[number] = np.asarray(value, order="C")
        return {_ARRAY: number}
    if isinstance(value, Mapping):
        return {key: _without_arrays(one, arrays) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(one, arrays) for one in value]
    return value


def _with_arrays(value: Any, arrays: _Arrays) -> Any:
    if isinstance(value, list):
        return [_with_arrays(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_ARRAY}:
        return arrays[value[_ARRAY]]
    return {key: _with_arrays(one, arrays) for key, one in value.items()}
