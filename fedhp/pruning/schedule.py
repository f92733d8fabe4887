"""When to prune, and how small by then."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from fedhp.bounds import Bounds
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.errors import ScenarioError
from fedhp.model.shrinking import Shape
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.regularizers import REGULARIZERS


@dataclass(frozen=True)
class PruneConfig:
    """How the model shrinks. Progress is the share of the *whole* training done, 0 to 1.

    Attributes:
        criterion: Which units go first: the lowest by one of the [criteria](#criteria).
        target_compression: Parameters of the full model per parameter of the final one; 1 never prunes. [How
            groups share it](#how-groups-share-the-shrinking).
        start: Progress at which cutting begins, below ``prune.end``.
        end: Progress at which the target is reached.
        cuts: Cuts between start and end, evenly spread.
        blend: Weight of the fleet's scores against the client's own: clients with few classes should not vote
            out what others need.
        marginal: Units whose contribution is below this share of their group's mean go ahead of schedule, as
            soon as ``prune.start`` is reached, but no more of a group than the target takes in the end; 0
            switches it off.
        regularizer: A penalty that presses on units while there is something left to cut: ``none``, or one of
            the [regularisers](#regularisers).
        regularizer_strength: The factor of that penalty.
    """

    criterion: Annotated[str, OneOf(CRITERIA), STABLE] = "taylor"
    target_compression: Annotated[float, Bounds(at_least=1), STABLE] = 10.0
    start: Annotated[float, Bounds(at_least=0, below=1), STABLE] = 0.05
    end: Annotated[float, Bounds(above=0, at_most=1), STABLE] = 0.6
    cuts: Annotated[int, Bounds(at_least=1)] = 40
    blend: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.5
    marginal: Annotated[float, Bounds(at_least=0, below=1)] = 0.0
    regularizer: Annotated[str, OneOf(REGULARIZERS)] = "none"
    regularizer_strength: Annotated[float, Bounds(above=0, hint="prune.regularizer=none switches it off")] = (
        1e-5
    )

    def __post_init__(self) -> None:
        check_values(self, "prune.")
        if self.start >= self.end:
            raise ScenarioError(f"prune.start must be below prune.end, got {self.start} and {self.end}")
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

    def asks_for_less(self, counts: Mapping[str, int], progress: float = 1.0) -> bool:
        """Says whether a group has more units than may be left at this progress, by default at the end."""
        allowed = self.counts(progress)
        return any(count > allowed[group] for group, count in counts.items())

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
