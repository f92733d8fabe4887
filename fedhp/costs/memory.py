"""Bytes <-> batch size: how much memory a training step takes, and the largest batch that fits a budget.

The peak of a step is the maximum over its *moments* (loading the batch, each operation's forward and
backward, the optimiser's step); at every moment the live bytes are ``fixed + per_sample * batch`` with
integers that a rehearsal of the step has told (`fedhp.costs.rehearsal`). So the peak is exact integer
arithmetic, and its inverse, the largest batch under a budget, is a minimum of integer divisions.

What is counted: parameters, gradients, optimiser state, the activations kept for the backward pass, the
gradients that flow between operations, the input batch with its labels and its raw (unconverted) form, the
contribution scores and what they are made of, the optimiser's counts of steps, the norms of clipped
gradients, what a cut takes, and what penalties and the mask of absent classes keep. What is not: the data at
rest, code, the interpreter, and scratch space inside a kernel, which the tensor library does not report.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.coefficients import Rehearsal
from fedhp.model.layout import Layout
from fedhp.model.stored import BLOCK, POSITION_BYTES

# Live bytes at each moment of the step: what is there anyway, and what each sample adds.
Moments = tuple[NDArray[np.int64], NDArray[np.int64]]

FLOAT_BYTES = 4
INDEX_BYTES = 8

_SMALLEST_SHARE = 0.25

# Of the noise scale: what it keeps, what takes its place, and norms of gradients.
_NOISE_SCALARS = 4


def samples(number: int) -> str:
    """Says a number of samples."""
    return "one sample" if number == 1 else f"{number} samples"


@dataclass(frozen=True)
class Extras:
    """What a training holds beside the step of a network and what is kept per parameter.

    Attributes:
        slots: Tensors kept per parameter.
        temporaries: Tensors of a parameter's shape that are made at a time while there are gradients.
        masked: Whether the logits are masked.
        smooth: Whether labels are smoothed.
        noised: Whether convolutions say noise besides: see `fedhp.model.position_noise`.
        counts: Whether the optimiser counts each parameter's steps.
        clips: Whether the norm of the gradients is limited.
        noisy: Whether the gradient-noise scale is looked at.
        scratch: What a look at activations takes, as `fedhp.pruning.criteria.Criterion.scratch`; None
            without any.
        grows: Of each layer's weights, the share that is grown elsewhere at a time, at most.
        tells: Whether that is told with its gradients, for others to grow it.
        unit_bytes: Per group, the bytes per unit that scores and penalties take at most while they are made
            of gradients; empty where nothing is ever cut.
    """

    slots: int = 0
    temporaries: int = 0
    masked: bool = False
    smooth: bool = False
    noised: bool = False
    counts: bool = False
    clips: bool = False
    noisy: bool = False
    scratch: Callable[[int, int], tuple[int, int]] | None = None
    grows: float = 0.0
    tells: bool = False
    unit_bytes: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("slots", "temporaries"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise ValueError(f"{name} must be a whole number, 0 or more, got {getattr(self, name)!r}")

    @staticmethod
    def together(parts: "Sequence[Extras]") -> "Extras":
        """Returns what a training holds that holds all of these; units are looked at one after another."""
        groups = {group for part in parts for group in part.unit_bytes}
        return Extras(
            sum(part.slots for part in parts),
            max((part.temporaries for part in parts), default=0),
            any(part.masked for part in parts),
            any(part.smooth for part in parts),
            any(part.noised for part in parts),
            any(part.counts for part in parts),
            any(part.clips for part in parts),
            any(part.noisy for part in parts),
            next((part.scratch for part in parts if part.scratch is not None), None),
            max((part.grows for part in parts), default=0.0),
            any(part.tells for part in parts),
            {group: max(part.unit_bytes.get(group, 0) for part in parts) for group in sorted(groups)},
        )


NO_EXTRAS = Extras()


@dataclass(frozen=True)
class MemoryModel:
    """Training memory of a model as a function of its unit counts and the batch.

    Attributes:
        layout: The model's wiring.
        rehearsal: What lives when during the forward and backward pass.
        input_size: Number of scalars in one sample as it is stored.
        raw_itemsize: Bytes per scalar of the stored data (1 for 8-bit images).
        state_slots: Tensors kept per parameter: 0 for SGD, 1 with momentum, 2 for Adam; more for penalties.
        inputs: The group whose units are the scalars of a sample that the model takes; None where it
            takes all.
        num_masked: The number of classes, where their logits are masked; otherwise 0.
        extras: What else a training holds.
    """

    layout: Layout
    rehearsal: Rehearsal
    input_size: int
    raw_itemsize: int
    state_slots: int
    inputs: str | None = None
    num_masked: int = 0
    extras: Extras = NO_EXTRAS
    _moments: Callable[[tuple[int, ...]], Moments] = field(init=False, repr=False)
    _peak: Callable[[tuple[int, ...], int], int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_moments", lru_cache(maxsize=512)(self._compute_moments))
        object.__setattr__(self, "_peak", lru_cache(maxsize=4096)(self._compute_peak))

    def training_bytes(self, counts: Mapping[str, int], batch: int) -> int:
        """Returns the peak bytes of a training step with ``batch`` samples."""
        return self._peak(tuple(counts[group] for group in self.layout.widths), batch)

    def largest_batch(self, counts: Mapping[str, int], budget_bytes: int) -> int:
        """Returns the largest batch whose step fits the budget; 0 when not even one sample fits."""
        fixed, per_sample = self._of(counts)
        return max(0, int(((budget_bytes - fixed) // per_sample).min()))

    def shares(self, batch: int) -> dict[str, float]:
        """Returns how much of the training memory each group is behind, relative to the heaviest one.

        A group's weight is what the full model's step would save if the group were at its floor. Inputs count
        half: what they weigh is the first layer's columns, which go with that layer's units just as well. Our
        choice.

        Returns:
            Per group, a number of at least a quarter (so that every group shrinks) and at most 1.
        """
        full = self.training_bytes(self.layout.widths, batch)
        saved = {
            group: full - self.training_bytes({**self.layout.widths, group: floor}, batch)
            for group, floor in self.layout.floors.items()
        }
        heaviest = max(1, *saved.values())
        halves = {group: 0.5 if group == self.inputs else 1.0 for group in saved}
        return {
            group: max(_SMALLEST_SHARE, halves[group] * weight / heaviest) for group, weight in saved.items()
        }

    def _of(self, counts: Mapping[str, int]) -> Moments:
        return self._moments(tuple(counts[group] for group in self.layout.widths))

    def _compute_peak(self, key: tuple[int, ...], batch: int) -> int:
        fixed, per_sample = self._moments(key)
        return int((fixed + per_sample * batch).max())

    def _compute_moments(self, key: tuple[int, ...]) -> Moments:
        counts = dict(zip(self.layout.widths, key, strict=True))
        units = np.array([1, *key])
        sizes = np.array([self._bytes(name, counts) for name in self.layout.trained])
        buffers = sum(self._bytes(name, counts) for name in self.layout.buffers)
        weights = sum(counts[group] for group in self.layout.singles)
        # Contributions: an average and the newest score per unit. Of a weight, where it stands.
        beside = 2 * FLOAT_BYTES * (sum(key) - weights) + POSITION_BYTES * weights
        resting = sizes.sum() * (1 + self.state_slots) + buffers + beside
        resting += FLOAT_BYTES * self.num_masked + self.rehearsal.counters
        resting += FLOAT_BYTES * (len(sizes) * self.extras.counts + _NOISE_SCALARS * self.extras.noisy)
        num_inputs = self.input_size if self.inputs is None else counts[self.inputs]
        entry = num_inputs * FLOAT_BYTES + INDEX_BYTES
        raw = num_inputs * (self.raw_itemsize if self.raw_itemsize < FLOAT_BYTES else 0)
        told = self.rehearsal
        inside = told.gradients @ sizes + told.fixed @ units
        looks, per_look = self._looks(counts)
        looking, grown, rewiring = growth(self.layout, counts, self.extras.grows, self.extras.tells)
        # While the batch is loaded, with all gradients, while a tensor is cut or its weights are placed anew,
        # and between the first two.
        with_all = sizes.sum() + grown + self._on_gradients(counts)
        rare = [0, with_all, self._largest_cut(counts), grown + rewiring]
        inside = inside + looking + grown
        fixed = resting + np.concatenate([rare, inside, told.fixed_at_taps @ units + looks])
        at_taps = told.per_sample_at_taps @ units + per_look
        per_sample = entry + np.concatenate([[raw, 0, 0, 0], told.per_sample @ units, at_taps])
        return fixed, per_sample

    def _on_gradients(self, counts: Mapping[str, int]) -> int:
        """Returns the bytes of what is made of all gradients: scores and penalties, and then their norms."""
        # Each gradient's norm, the same once more as one vector, and what is made of them.
        norms = FLOAT_BYTES * (2 * len(self.layout.trained) + 4) if self.extras.clips else 0
        made = max((number * counts[group] for group, number in self.extras.unit_bytes.items()), default=0)
        counted_already = FLOAT_BYTES * sum(counts.values())  # the newest scores
        largest = max(self._bytes(name, counts) for name in self.layout.trained)
        made = max(made - counted_already, largest * self.extras.temporaries)
        return FLOAT_BYTES + INDEX_BYTES + max(norms, made)

    def _largest_cut(self, counts: Mapping[str, int]) -> int:
        """Returns what a cut takes at most: what is left of a tensor, and positions along its axes."""
        if not self.extras.unit_bytes:
            return 0
        shapes = [self.layout.shape(name, counts) for name in self.layout.trained]
        return max(FLOAT_BYTES * math.prod(shape) + 2 * INDEX_BYTES * sum(shape) for shape in shapes)

    def _looks(self, counts: Mapping[str, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns what looks at activations take, whatever the batch and per sample."""
        scratch, taps = self.extras.scratch, self.rehearsal.taps
        taken = [scratch(counts[tap.group], tap.entries) for tap in taps] if scratch else []
        looks = np.array(taken, np.int64).reshape(len(taps), 2)
        return looks[:, 0], looks[:, 1]

    def _bytes(self, name: str, counts: Mapping[str, int]) -> int:
        return FLOAT_BYTES * math.prod(self.layout.shape(name, counts))


def growth(
    layout: Layout, counts: Mapping[str, int], share: float, tells: bool = False
) -> tuple[int, int, int]:
    """Returns what it takes to look for places in a gradient, what was found, and what to place it.

    The best places of a block are values and indices before they are positions, and the best of two blocks
    are found among both's. Where they are placed, positions are sorted, and each tensor of a layer is written
    anew in their order.

    Args:
        layout: The wiring of a network that holds a part of its weights.
        counts: How many of each layer.
        share: Of those, what is grown elsewhere at a time at most; 0 where nothing is.
        tells: Whether places are kept with their gradients, and nothing is placed.
    """
    if not share:
        return 0, 0, 0
    numbers = {group: counts[group] for group in layout.singles}
    grown = {group: int(share * number) for group, number in numbers.items()}
    ranked, placed = FLOAT_BYTES + INDEX_BYTES, FLOAT_BYTES + POSITION_BYTES
    looking = FLOAT_BYTES + max(
        number * (ranked + placed) + min(number, BLOCK) * placed for number in grown.values()
    )
    if tells:
        return looking, (POSITION_BYTES + FLOAT_BYTES) * sum(grown.values()), 0
    sorting = max(2 * placed * numbers[group] + ranked * number for group, number in grown.items())
    return looking, POSITION_BYTES * sum(grown.values()), sorting
