"""How arrays travel between the processes of a simulation: through shared memory, copied once."""

from pickle import PickleBuffer

import ray.util
from flwr.app import Array, RecordDict


def share_arrays() -> None:
    """Lets Ray copy the bytes of Flower arrays into its store, and readers read them there.

    Call in every process. Pickled as they are, they would be copied into the pickle, from there into the
    store, and out of it again: of 1 MB messages, two thirds as many would go through. Whoever keeps an array
    keeps its place in the store taken: `own` what is to outlive the round.
    """
    ray.util.register_serializer(Array, serializer=_apart, deserializer=_together)


def _apart(array: Array) -> tuple[str, tuple[int, ...], str, PickleBuffer]:
    return array.dtype, array.shape, array.stype, PickleBuffer(array.data)


def _together(parts: tuple[str, tuple[int, ...], str, PickleBuffer]) -> Array:
    array = Array.__new__(Array)
    # The constructor takes nothing but bytes, which would be a copy. What reads an array (NumPy,
    # `io.BytesIO`, `fedhp.wire`) takes any buffer.
    array.dtype, array.shape, array.stype, data = parts
    array.data = memoryview(data)  # type: ignore[assignment]
    return array


def own(record: RecordDict) -> RecordDict:
    """Copies a record's arrays out of Ray's store, in place, and returns the record."""
    for arrays in record.array_records.values():
        for array in arrays.values():
            array.data = bytes(array.data)
    return record
