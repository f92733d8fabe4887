"""Batch policies: how many samples a step takes, of those that fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fedhp.bounds import LARGEST_BATCH, Bounds
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.sizes import parse_size

Policy = Callable[[int, int, float], int]

LR_SCALINGS: Mapping[str, float] = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def fixed(wanted: int, most: int, noise_scale: float) -> int:
    """The batch as configured."""
    return wanted


def fill(wanted: int, most: int, noise_scale: float) -> int:
    """As much as is allowed."""
    return most


def noise(wanted: int, most: int, noise_scale: float) -> int:
    """The configured batch doubled as often as it stays within the noise scale, and no further than allowed.

    Up to about the noise scale, a batch twice as large needs half the steps for the same progress; beyond it,
    samples are wasted (McCandlish et al. 2018, arXiv 1812.06162, section 2.2).
    """
    batch = wanted
    while 2 * batch <= min(noise_scale, most):
        batch *= 2
    return batch


BATCH_POLICIES: dict[str, Policy] = {
    "fixed": fixed,
    "fill": fill,
    "noise": noise,
}


@dataclass(frozen=True)
class MemoryConfig:
    """What is done with memory that pruning frees.

    Attributes:
        batch_policy: ``fixed`` keeps ``train.batch_size`` (or what fits, if less); ``fill`` grows the batch
            into the budget; ``noise`` does so only as far as the gradient-noise scale says that it helps. See
            [batch policies](#batch-policies).
        max_batch: The largest batch that ``fill`` and ``noise`` may reach.
        lr_scaling: How the learning rate follows the batch relative to ``train.batch_size``.
        budget: The device's budget in ``fedhp train``, a [size](#sizes); empty is no limit. A fleet ignores
            it: its classes have budgets.
    """

    batch_policy: Annotated[str, OneOf(BATCH_POLICIES), STABLE] = "fixed"
    max_batch: Annotated[int, Bounds(at_least=1, largest=LARGEST_BATCH), STABLE] = 256
    lr_scaling: Annotated[str, OneOf(LR_SCALINGS), STABLE] = "sqrt"
    budget: str = ""

    def __post_init__(self) -> None:
        check_values(self, "memory.")
        if self.budget:
            parse_size(self.budget, "memory.budget")

    @property
    def budget_bytes(self) -> int | None:
        """The budget of a device that trains alone; None where it has none."""
        return parse_size(self.budget) if self.budget else None

    def lr_factor(self, batch: int, reference: int) -> float:
        """Returns the learning rate's factor at this batch, 1 at the reference batch."""
        return (batch / reference) ** LR_SCALINGS[self.lr_scaling]
