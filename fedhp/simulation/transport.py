"""How arrays travel between the processes of a simulation: beside the pickled message, not inside it."""

from pickle import PickleBuffer

import ray.util
from flwr.app import Array


def share_arrays() -> None:
    """Lets Ray copy the bytes of Flower arrays straight into its store; call in every process.

    Pickled as they are, they would be copied into the pickle first, and out of it again.
    """
    ray.util.register_serializer(Array, serializer=_apart, deserializer=_together)


def _apart(array: Array) -> tuple[str, tuple[int, ...], str, PickleBuffer]:
    return array.dtype, array.shape, array.stype, PickleBuffer(array.data)


def _together(parts: tuple[str, tuple[int, ...], str, PickleBuffer]) -> Array:
    dtype, shape, stype, data = parts
    return Array(dtype, shape, stype, bytes(data))
