"""What networks draw while they compute: dropout, stochastic depth, noise of their own."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def drawing(seed: int, device: torch.device | str) -> Iterator[None]:
    """Within it, whatever layers and functions draw is a function of the seed alone.

    They draw from the global generators of torch, or of NumPy or Python where users wrote them so. Afterwards
    those go on as if nothing had happened in between: nobody else's randomness shifts.

    Args:
        seed: A seed from `fedhp.seeds.derive`.
        device: Where the network computes.
    """
    pythons, numpys = random.getstate(), np.random.get_state()
    gpus = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds all GPUs
        if gpus:
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)
