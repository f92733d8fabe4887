"""When to prune, and how small by then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from fedhp.errors import ScenarioError
from fedhp.structure import Layout


@dataclass(frozen=True)
class PruneConfig:
    """How the model shrinks. Progress is the share of the *whole* training done, 0 to 1.

    Attributes:
        criterion: A name in ``fedhp.criteria.CRITERIA``.
        target_compression: Parameters of the full model per parameter of the final one; 1 never prunes.
        start: Progress at which cutting begins.
        end: Progress at which the target is reached.
        cuts: The number of cuts between start and end, evenly spread.
        marginal: Units whose contribution is below this share of their group's mean are cut ahead of
            schedule; 0 switches it off.
    """

    criterion: str = "taylor"
    target_compression: float = 10.0
    start: float = 0.05
    end: float = 0.6
    cuts: int = 40
    marginal: float = 0.0

    def __post_init__(self) -> None:
        if self.target_compression < 1:
            raise ScenarioError(f"prune.target_compression must be at least 1, got {self.target_compression}")
        if not 0 <= self.start < self.end <= 1:
            raise ScenarioError(
                f"prune.start and prune.end must satisfy 0 <= start < end <= 1, "
                f"got {self.start} and {self.end}"
            )
        if self.cuts < 1:
            raise ScenarioError(f"prune.cuts must be at least 1, got {self.cuts}")
        if not 0 <= self.marginal < 1:
            raise ScenarioError(f"prune.marginal must be in [0, 1), got {self.marginal}")


def scheduled_size(config: PruneConfig, progress: float) -> float:
    """Returns the share of the full model's parameters that may be left at this progress.

    The size falls along the cubic of Zhu & Gupta 2017 (arXiv 1710.01878, equation 1), fast while much is
    redundant and slowly at the end, in ``config.cuts`` equal steps of progress: s = f + (1-f)(1-q)^3 with f
    the final share and q the progress between start and end.
    """
    reached = (progress - config.start) / (config.end - config.start)
    # The tolerance keeps a step that falls exactly on a cut from being lost to rounding.
    step = min(max(int(reached * config.cuts + 1e-9), 0), config.cuts) / config.cuts
    final = 1 / config.target_compression
    return final + (1 - final) * (1 - step) ** 3


def counts_for_fraction(layout: Layout, fraction: float, top: Mapping[str, int]) -> dict[str, int]:
    """Returns the unit counts that keep the same fraction of every group of ``top``, floors respected."""
    return {
        group: max(min(layout.floors[group], count), int(fraction * count + 1e-9))
        for group, count in top.items()
    }


def largest_counts(
    layout: Layout,
    top: Mapping[str, int],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int] | None:
    """Returns the largest unit counts, proportional to ``top``, that satisfy ``fits``.

    Args:
        layout: The model's wiring; its floors bound every group from below.
        top: The unit counts to start from, which are also the largest that may be returned.
        fits: A predicate on unit counts that stays true when units are taken away.

    Returns:
        The counts, or None when not even the floors fit.
    """
    # Proportional counts change only at multiples of 1/steps, so a bisection over them is exact enough to
    # lose at most one unit of the widest group.
    steps = max(top.values())
    low, high = 0, steps
    if not fits(counts_for_fraction(layout, 0.0, top)):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if fits(counts_for_fraction(layout, middle / steps, top)):
            low = middle
        else:
            high = middle - 1
    return counts_for_fraction(layout, low / steps, top)


def scheduled_counts(layout: Layout, config: PruneConfig, progress: float) -> dict[str, int]:
    """Returns how many units of each group may be left at this progress of the whole training."""
    return dict(_counts_for_size(layout, scheduled_size(config, progress)))


@lru_cache(maxsize=1024)
def _counts_for_size(layout: Layout, size: float) -> Mapping[str, int]:
    full = dict(layout.widths)
    allowed = size * layout.num_parameters(full)
    counts = largest_counts(layout, full, lambda c: layout.num_parameters(c) <= allowed)
    return counts if counts is not None else layout.smallest()


def check_target(layout: Layout, config: PruneConfig) -> None:
    """Checks that the floors leave room for the target.

    Raises:
        ScenarioError: If even the smallest structure is larger than the target asks for.
    """
    full = layout.num_parameters(layout.widths)
    smallest = layout.num_parameters(layout.smallest())
    if smallest * config.target_compression > full:
        raise ScenarioError(
            f"prune.target_compression = {config.target_compression:g} cannot be reached: the smallest "
            f"structure has {smallest:,} of {full:,} parameters ({full / smallest:.1f}x); "
            f"lower the target or widen the model"
        )
