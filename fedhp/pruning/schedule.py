"""When to prune, and how small by then."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from fedhp.errors import ScenarioError
from fedhp.model.layout import Layout
from fedhp.model.shrinking import Shape, block_steps
from fedhp.pruning.moving import falling
from fedhp.pruning.options import AUTO, PatternConfig, PruneConfig

_REGROWN = 0.75  # progress from which no unit comes back any more: RigL's, for ImageNet
_BLOCK = 8  # channels, in which runtimes compute convolutions


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


def spare(regrow: float, progress: float) -> float:
    """Returns how many units more than scheduled devices train, as a share of those.

    It falls along a cosine, as what RigL grows does.
    """
    return falling(regrow, progress, _REGROWN)


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
        """Returns how many units of each group may be left at this progress of the whole training.

        At the end they are rounded, where `Shape` has steps. Until then they are not, but never below the
        end's, and so fall with every cut.
        """
        end, size = self._end, scheduled_size(self.config, progress)
        if size <= 1 / self.config.target_compression:
            return dict(end)
        return {group: max(count, end[group]) for group, count in self._for_size(size, False).items()}

    def held(self, progress: float) -> dict[str, int]:
        """Returns how many units of each group devices may train at this progress, returned ones included."""
        more = 1 + spare(self.config.regrow, progress)
        widths = self.shape.layout.widths
        return {g: min(math.ceil(count * more), widths[g]) for g, count in self.counts(progress).items()}

    def asks_for_less(self, counts: Mapping[str, int], progress: float = 1.0) -> bool:
        """Says whether a group has more units than may be left at this progress, by default at the end."""
        allowed = self.held(progress)
        return any(count > allowed[group] for group, count in counts.items())

    @property
    def _end(self) -> Mapping[str, int]:
        if self.config.widths:
            return dict(zip(self.shape.layout.widths, self.config.widths, strict=True))
        return self._for_size(1 / self.config.target_compression, True)

    @lru_cache(maxsize=1024)  # noqa: B019 - a process holds a handful of schedules
    def _for_size(self, size: float, rounded: bool) -> Mapping[str, int]:
        layout, shape = self.shape.layout, self.shape if rounded else replace(self.shape, steps={})
        allowed = size * layout.num_parameters(layout.widths)
        counts = shape.largest(layout.widths, lambda c: layout.num_parameters(c) <= allowed)
        return counts if counts is not None else layout.smallest()

    def check_target(self) -> None:
        """Checks that there is a target that can be met.

        Raises:
            ScenarioError: If even the smallest structure is larger than the target asks for, or it is one in
                milliseconds, for which no widths were chosen.
        """
        if self.config.target_latency and not self.config.widths:
            raise ScenarioError(
                "prune.target_latency has to become prune.widths first, which run, train and compare do; "
                "'fedhp latency' says what they would be"
            )
        if self.config.widths:  # which `settled` has held against the floors
            return
        layout, target = self.shape.layout, self.config.target_compression
        full = layout.num_parameters(layout.widths)
        smallest = layout.num_parameters(layout.smallest())
        if smallest * target > full:
            raise ScenarioError(
                f"prune.target_compression = {target:g} cannot be reached: the smallest structure, of "
                f"model.floor units per group, has {smallest:,} of {full:,} parameters "
                f"({full / smallest:.1f}x); lower prune.target_compression or model.floor, or widen the model"
            )


def settled(config: PruneConfig, layout: Layout) -> PruneConfig:
    """Returns the options with the target that final widths come to, where these are given.

    Raises:
        ScenarioError: If the model has other groups, or none so wide.
    """
    if not config.widths:
        return config
    groups = ", ".join(f"{group} {layout.floors[group]} to {width}" for group, width in layout.widths.items())
    fits = len(config.widths) == len(layout.widths) and all(
        layout.floors[group] <= kept <= width
        for kept, (group, width) in zip(config.widths, layout.widths.items(), strict=True)
    )
    if not fits:
        raise ScenarioError(
            f"prune.widths = {list(config.widths)} does not fit the model, whose groups may keep: {groups}"
        )
    counts = dict(zip(layout.widths, config.widths, strict=True))
    target = layout.num_parameters(layout.widths) / layout.num_parameters(counts)
    marginal = 0.0 if target == 1 else config.marginal  # there is no schedule to be ahead of
    return replace(config, target_compression=target, marginal=marginal)


def rounded(config: PruneConfig, shape: Shape) -> Shape:
    """Returns how groups come to the end, numbers of channels rounded as a scenario says."""
    return replace(shape, steps=block_steps(shape.layout, int(_rounding(config, shape))))


def unpruned(config: PruneConfig) -> PruneConfig:
    """Returns the options of a model of which nothing is cut."""
    return replace(
        config,
        target_compression=1.0,
        widths=[],
        marginal=0.0,
        regrow=0.0,
        regularizer="none",
        pattern=PatternConfig(),
    )


def _rounding(config: PruneConfig, shape: Shape) -> str:
    """Returns of what numbers of channels are multiples.

    Left to ``auto``, of 8 where every convolution keeps 8 and more in the end, and else of 1: of the networks
    that were measured, see docs/export.md, this was fastest.
    """
    if config.round_to != AUTO:
        return config.round_to
    kept = Schedule(config, replace(shape, steps={})).counts(1.0)
    steps = block_steps(shape.layout, _BLOCK)
    return str(_BLOCK) if all(kept[group] >= step for group, step in steps.items()) else "1"
