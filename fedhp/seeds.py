"""One seed fixes everything: every random choice draws from a stream named after what it is for."""

import hashlib

import numpy as np


def derive(seed: int, *labels: int | str) -> int:
    """Returns a 63-bit seed that is a function of ``seed`` and the labels alone.

    Streams named differently are independent, so that adding a new random choice somewhere does not
    shift the others, and a client's randomness does not depend on who ran before it.
    """
    text = "/".join([str(seed), *(f"{type(label).__name__}:{label}" for label in labels)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *labels: int | str) -> np.random.Generator:
    """Returns NumPy's generator on the stream ``derive(seed, *labels)``."""
    return np.random.default_rng(derive(seed, *labels))
