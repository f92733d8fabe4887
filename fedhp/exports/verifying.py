"""Whether what was written does what the network does, on real samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import ExportError
from fedhp.exports.formats.format import FLOAT32, Runs

# Of the largest score, or of 1 where that is less.
_TOLERANCE = 1e-4
# Of int8's answers; what is exported right gives the same ones for 97 of 100 and more.
_LEAST_AGREEMENT = 0.9


@dataclass(frozen=True)
class Agreement:
    """How a file's scores compare with the network's.

    Attributes:
        num_samples: How many were compared.
        largest_difference: Of any two scores.
        agreement: The share of samples with the same best class.
        accuracy: The share of the file's answers that are right.
        accuracy_before: The same of the network as it was trained.
    """

    num_samples: int
    largest_difference: float
    agreement: float
    accuracy: float
    accuracy_before: float


def verified(
    runs: Runs,
    samples: Sequence[NDArray[Any]],
    labels: NDArray[np.int64],
    wanted: NDArray[np.float32],
    dtype: str,
) -> Agreement:
    """Holds a file against the network that it was made from.

    Args:
        runs: The file in its runtime.
        samples: Batches of one raw sample.
        labels: Their classes.
        wanted: The network's scores, of shape (samples, classes).
        dtype: Of the file's weights, one of `DTYPES`.

    Raises:
        ExportError: If float32 scores differ by more than a ten thousandth, or an answer of two that the
            network tells apart by more than that; if a tenth of int8's answers are others; or if scores are
            not finite or too few.
    """
    found = np.concatenate([np.asarray(runs(sample)).reshape(1, -1) for sample in samples])
    if found.shape != wanted.shape or not np.isfinite(found).all():
        flaw = "are not finite" if found.shape == wanted.shape else f"have the shape {found.shape[1:]}"
        raise ExportError(f"its scores {flaw}, where the network has {wanted.shape[1]} for each sample")
    difference = float(np.abs(found - wanted).max())
    tolerance = _TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    answers, right = found.argmax(1), wanted.argmax(1)
    places = np.arange(len(wanted))
    lost = wanted[places, right] - wanted[places, answers]  # 0 where the answer is the same
    same = lost <= (tolerance if dtype == FLOAT32 else 0)
    agreement = float(same.mean())
    if dtype == FLOAT32 and (difference > tolerance or not same.all()):
        raise ExportError(
            f"its scores differ from the network's by up to {difference:.2g}, where {tolerance:.2g} may be "
            f"rounding, and {(~same).sum()} of {len(same)} answers are others"
        )
    if agreement < _LEAST_AGREEMENT:
        raise ExportError(
            f"{agreement:.1%} of its answers are the network's, where {_LEAST_AGREEMENT:.0%} are wanted; "
            f"export float32, or give more samples for calibration"
        )
    return Agreement(
        len(labels),
        difference,
        agreement,
        float((answers == labels).mean()),
        float((right == labels).mean()),
    )
