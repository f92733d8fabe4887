"""Bytes <-> batch size: how much memory a training step takes, and the largest batch that fits a budget.

The peak of a step is the maximum over its *moments* (loading the batch, each operation's forward and
backward, the optimiser's step); at every moment the live bytes are ``fixed + per_sample * batch`` with
integers that follow from the model's operations. So the peak is exact integer arithmetic, and its inverse,
the largest batch under a budget, is a minimum of integer divisions.

What is counted: parameters, gradients, optimiser state, the activations kept for the backward pass, the
gradients that flow between operations, the input batch with its labels and its raw (unconverted) form, and
the contribution scores. What is not: the data at rest, code, the interpreter, and scratch space inside a
kernel, which the tensor library does not report.

The lifetimes below were read off PyTorch's eager autograd: ReLU works in place and keeps its result,
every operation keeps its input, a node's saved tensors go when the node has run, gradients appear one
operation after the other from the last to the first, and fused optimisers take no temporary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from fedhp.batches import BATCH_POLICIES
from fedhp.errors import ScenarioError
from fedhp.structure import Layout

FLOAT_BYTES = 4
INDEX_BYTES = 8

_SMALLEST_SHARE = 0.25

LR_SCALINGS: Mapping[str, float] = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True)
class MemoryConfig:
    """What is done with memory that pruning frees.

    Attributes:
        batch_policy: A name in ``fedhp.batches.BATCH_POLICIES``: ``fixed`` keeps ``train.batch_size`` (or
            what fits, if less); ``fill`` grows the batch into the budget; ``noise`` does so only as far as
            the gradient-noise scale says that it helps.
        max_batch: The largest batch that a policy may reach.
        lr_scaling: How the learning rate follows the batch relative to ``train.batch_size``: ``none``,
            ``sqrt`` or ``linear``.
    """

    batch_policy: str = "fixed"
    max_batch: int = 256
    lr_scaling: str = "sqrt"

    def __post_init__(self) -> None:
        if self.batch_policy not in BATCH_POLICIES:
            raise ScenarioError(
                f"memory.batch_policy must be one of {', '.join(BATCH_POLICIES)}, got '{self.batch_policy}'"
            )
        if self.lr_scaling not in LR_SCALINGS:
            raise ScenarioError(
                f"memory.lr_scaling must be one of {', '.join(LR_SCALINGS)}, got '{self.lr_scaling}'"
            )
        if self.max_batch < 1:
            raise ScenarioError(f"memory.max_batch must be at least 1, got {self.max_batch}")

    def lr_factor(self, batch: int, reference: int) -> float:
        """Returns the learning rate's factor at this batch, 1 at the reference batch."""
        return (batch / reference) ** LR_SCALINGS[self.lr_scaling]


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a chain, forward order; sizes are in bytes per sample.

    Attributes:
        parameters: Names of the parameters that it uses.
        output: Size of its output, which the next operation keeps for its backward pass.
        kept: What else it keeps for its own backward pass, such as pooling indices.
        relu: Whether an in-place ReLU follows, whose backward pass takes one more tensor of the output's
            size.
    """

    parameters: tuple[str, ...]
    output: int
    kept: int = 0
    relu: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """Live bytes at one moment of the step: ``fixed + per_sample * batch``."""

    fixed: int
    per_sample: int


@dataclass(frozen=True)
class MemoryModel:
    """Training memory of a model as a function of its unit counts and the batch.

    Attributes:
        layout: The model's wiring.
        ops: The operations of the model when each group keeps the given number of units.
        input_size: Number of scalars in one sample as it is stored.
        raw_itemsize: Bytes per scalar of the stored data (1 for 8-bit images).
        state_slots: Optimiser tensors per parameter: 0 for SGD, 1 with momentum, 2 for Adam.
        inputs: The group whose units are the scalars of a sample that the model takes; None where it
            takes all.
    """

    layout: Layout
    ops: Callable[[Mapping[str, int]], Sequence[Op]]
    input_size: int
    raw_itemsize: int
    state_slots: int
    inputs: str | None = None
    _moments: Callable[[tuple[int, ...]], tuple[Moment, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_moments", lru_cache(maxsize=512)(self._compute_moments))

    def training_bytes(self, counts: Mapping[str, int], batch: int) -> int:
        """Returns the peak bytes of a training step with ``batch`` samples."""
        return max(moment.fixed + moment.per_sample * batch for moment in self._of(counts))

    def largest_batch(self, counts: Mapping[str, int], budget_bytes: int) -> int:
        """Returns the largest batch whose step fits the budget; 0 when not even one sample fits."""
        return min(max(0, (budget_bytes - moment.fixed) // moment.per_sample) for moment in self._of(counts))

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

    def _of(self, counts: Mapping[str, int]) -> tuple[Moment, ...]:
        return self._moments(tuple(counts[group] for group in self.layout.widths))

    def _compute_moments(self, key: tuple[int, ...]) -> tuple[Moment, ...]:
        counts = dict(zip(self.layout.widths, key, strict=True))
        ops = self.ops(counts)
        sizes = [self._parameter_bytes(op, counts) for op in ops]
        # Contributions: an average and the newest score per unit.
        resting = sum(sizes) * (1 + self.state_slots) + 2 * FLOAT_BYTES * sum(counts.values())
        num_inputs = self.input_size if self.inputs is None else counts[self.inputs]
        entry = num_inputs * FLOAT_BYTES + INDEX_BYTES
        raw = num_inputs * (self.raw_itemsize if self.raw_itemsize < FLOAT_BYTES else 0)
        moments = [Moment(resting, entry + raw), Moment(resting + sum(sizes), entry)]
        moments += _loss_moments(ops, resting, entry)
        for index in range(len(ops)):
            moments += _backward_moments(ops, sizes, index, resting, entry)
        return tuple(moments)

    def _parameter_bytes(self, op: Op, counts: Mapping[str, int]) -> int:
        shapes = (self.layout.shape(name, counts) for name in op.parameters)
        return sum(FLOAT_BYTES * math.prod(shape) for shape in shapes)


def _saved(ops: Sequence[Op]) -> int:
    """Bytes per sample that these operations' outputs and extras hold for the backward pass."""
    return sum(op.output + op.kept for op in ops)


def _loss_moments(ops: Sequence[Op], resting: int, entry: int) -> list[Moment]:
    logits = ops[-1].output
    forward = entry + _saved(ops) + logits  # the log-probabilities
    backward = entry + _saved(ops[:-1]) + 3 * logits  # they, and two gradients
    return [Moment(resting, forward), Moment(resting, backward)]


def _backward_moments(
    ops: Sequence[Op], sizes: Sequence[int], index: int, resting: int, entry: int
) -> list[Moment]:
    op = ops[index]
    later_gradients = sum(sizes[index + 1 :])
    below = _saved(ops[:index]) + op.kept
    input_gradient = ops[index - 1].output if index else 0
    moments = [Moment(resting + later_gradients + sizes[index], entry + below + op.output + input_gradient)]
    if op.relu:
        moments.append(Moment(resting + later_gradients, entry + below + 3 * op.output))
    return moments
