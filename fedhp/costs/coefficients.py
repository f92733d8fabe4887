"""What a rehearsal tells: the bytes alive at each moment of a step, as coefficients."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tap(NamedTuple):
    """A group's activations as a layer takes them in, of so many entries per unit and sample."""

    group: str
    entries: int


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Bytes alive at each moment of a step's forward and backward pass, as coefficients.

    For unit counts ``n``, parameters of ``p`` bytes and a batch of ``b``, moment ``m`` takes
    ``gradients[m] @ p + fixed[m] @ (1, n) + per_sample[m] @ (1, n) * b`` bytes beside what lives throughout
    the step: parameters, optimiser state, the mask of classes and the input batch.

    Attributes:
        gradients: Which parameters' gradients live, of shape ``(moments, trained parameters)``.
        fixed: Bytes whatever the batch, of shape ``(moments, 1 + groups)``.
        per_sample: Bytes per sample, of shape ``(moments, 1 + groups)``.
        counters: Bytes of what layers keep beside parameters and running statistics.
        taps: Where activations are looked at, and the rows of the two arrays below.
        fixed_at_taps: As ``fixed``, when a tap looks; no gradient lives yet.
        per_sample_at_taps: As ``per_sample``, likewise.
    """

    gradients: NDArray[np.int64]
    fixed: NDArray[np.int64]
    per_sample: NDArray[np.int64]
    counters: int
    taps: tuple[Tap, ...]
    fixed_at_taps: NDArray[np.int64]
    per_sample_at_taps: NDArray[np.int64]
