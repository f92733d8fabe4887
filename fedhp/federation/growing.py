"""Gradients of weights that a network does not have, on the wire: where a server may grow some."""

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedhp.errors import WireError
from fedhp.federation.arrays import read_array, row_length, write_array
from fedhp.federation.checks import check_names, check_values
from fedhp.model.structure import Structure
from fedhp.training.update import Gradients

_GRADIENTS, _PLACES, _VALUES = "gradients", "places.", "gradient."
_PLACE, _FLOAT = np.dtype(np.int32), np.dtype(np.float32)


def pack_gradients(gradients: Mapping[str, Gradients]) -> RecordDict:
    """Packs gradients, by layer; where there are none, nothing."""
    arrays = {}
    for layer, told in gradients.items():
        arrays[_PLACES + layer] = write_array(told.places)
        arrays[_VALUES + layer] = write_array(told.values)
    return RecordDict({_GRADIENTS: ArrayRecord(arrays)} if arrays else {})


def unpack_gradients(
    content: RecordDict, assigned: Structure, asked: Mapping[str, int]
) -> dict[str, Gradients]:
    """Unpacks `pack_gradients`, which came beside an update.

    Args:
        content: What arrived.
        assigned: The weights that the client was sent.
        asked: By layer, of how many others it was asked for the gradients, at most.

    Raises:
        WireError: If layers are missing or were not asked for, places are too many, out of order or of
            weights that it was sent, or gradients are no numbers.
    """
    arrived = content.array_records.get(_GRADIENTS, ArrayRecord())
    check_names(arrived, *([_PLACES + layer, _VALUES + layer] for layer in asked))
    return {layer: _gradients(layer, arrived, assigned.masks[layer], most) for layer, most in asked.items()}


def _gradients(layer: str, arrived: ArrayRecord, held: NDArray[np.bool_], most: int) -> Gradients:
    name, array = _PLACES + layer, arrived[_PLACES + layer]
    number = row_length(array, _PLACE)
    if number is None or number > most:
        raise WireError(f"{name}: expected {most} places at most, got {len(array.data)} bytes")
    places: NDArray[np.int32] = read_array(name, array, (number,), _PLACE)
    if number and not (places[0] >= 0 and places[-1] < len(held) and (np.diff(places) > 0).all()):
        raise WireError(f"{name}: expected strictly increasing places from 0 to {len(held) - 1}")
    if held[places].any():
        raise WireError(f"{name}: holds places of weights that were sent")
    values = read_array(_VALUES + layer, arrived[_VALUES + layer], (number,), _FLOAT)
    check_values(_VALUES + layer, values)
    return Gradients(places, values)
