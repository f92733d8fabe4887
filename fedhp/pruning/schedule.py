"""When to prune, and how small by then."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from fedhp.errors import ScenarioError
from fedhp.model.shrinking import Shape


@dataclass(frozen=True)
class PruneConfig:
    """How the model shrinks. Progress is the share of the *whole* training done, 0 to 1.

    Attributes:
        criterion: A name in ``fedhp.pruning.criteria.CRITERIA``.
        target_compression: Parameters of the full model per parameter of the final one; 1 never prunes.
        start: Progress at which cutting begins.
        end: Progress at which the target is reached.
        cuts: The number of cuts between start and end, evenly spread.
        blend: Weight of the fleet's scores against the client's own when it selects, 0 to 1: clients with few
            classes should not vote out what others need.
        marginal: Units whose contribution is below this share of their group's mean are cut ahead of
            schedule, down to the target's number; 0 switches it off.
        regularizer: A name in ``fedhp.pruning.regularizers.REGULARIZERS``; at work while there is something
            to cut.
        regularizer_strength: The factor of its penalty.
    """

    criterion: str = "taylor"
    target_compression: float = 10.0
    start: float = 0.05
    end: float = 0.6
    cuts: int = 40
    blend: float = 0.5
    marginal: float = 0.0
    regularizer: str = "none"
    regularizer_strength: float = 1e-5

    def __post_init__(self) -> None:
        if not 1 <= self.target_compression < math.inf:
            raise ScenarioError(
                f"prune.target_compression must be finite and at least 1, got {self.target_compression}"
            )
        if not 0 <= self.start < self.end <= 1:
            raise ScenarioError(
                f"prune.start and prune.end must satisfy 0 <= start < end <= 1, "
                f"got {self.start} and {self.end}"
            )
        if self.cuts < 1:
            raise ScenarioError(f"prune.cuts must be at least 1, got {self.cuts}")
        if not 0 <= self.blend <= 1:
            raise ScenarioError(f"prune.blend must be from 0 to 1, got {self.blend}")
        if not 0 <= self.marginal < 1:
            raise ScenarioError(f"prune.marginal must be in [0, 1), got {self.marginal}")
        if not 0 < self.regularizer_strength < math.inf:
            raise ScenarioError(
                f"prune.regularizer_strength must be finite and above 0, got {self.regularizer_strength}; "
                "prune.regularizer=none switches it off"
            )
        if self.marginal and self.target_compression == 1:
            raise ScenarioError(
                "prune.marginal has no effect with prune.target_compression = 1, which never prunes; "
                "raise the target or set prune.marginal=0"
            )


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


@dataclass(frozen=True, eq=False)
class Schedule:
    """How many units may be left, when.

    Attributes:
        config: When, and how small by then.
        shape: How groups shrink together.
    """

    config: PruneConfig
    shape: Shape

    def counts(self, progress: float) -> dict[str, int]:
        """Returns how many units of each group may be left at this progress of the whole training."""
        return dict(self._for_size(scheduled_size(self.config, progress)))

    @lru_cache(maxsize=1024)  # noqa: B019 - a process holds a handful of schedules
    def _for_size(self, size: float) -> Mapping[str, int]:
        layout = self.shape.layout
        allowed = size * layout.num_parameters(layout.widths)
        counts = self.shape.largest(layout.widths, lambda c: layout.num_parameters(c) <= allowed)
        return counts if counts is not None else layout.smallest()

    def check_target(self) -> None:
        """Checks that the floors leave room for the target.

        Raises:
            ScenarioError: If even the smallest structure is larger than the target asks for.
        """
        layout, target = self.shape.layout, self.config.target_compression
        full = layout.num_parameters(layout.widths)
        smallest = layout.num_parameters(layout.smallest())
        if smallest * target > full:
            raise ScenarioError(
                f"prune.target_compression = {target:g} cannot be reached: the smallest structure, of "
                f"model.floor units per group, has {smallest:,} of {full:,} parameters "
                f"({full / smallest:.1f}x); lower prune.target_compression or model.floor, or widen the model"
            )
