"""What is cut where memory is short."""

from fedhp.costs.memory import MemoryModel
from fedhp.model.state import Weights
from fedhp.model.structure import Structure
from fedhp.pruning.cutting import select
from fedhp.training.recipe import Recipe


def ahead_of_schedule(
    recipe: Recipe, memory: MemoryModel, structure: Structure, budget_bytes: int, scores: Weights
) -> Structure:
    """Returns the largest part of a structure that trains within a budget, if need be one sample a step.

    It is never beyond the schedule's end: where that does not fit, no step will.

    Args:
        recipe: How to train.
        memory: The memory model.
        structure: The units that there are.
        budget_bytes: What a step may take.
        scores: Per group, what to keep units by, of shape ``(units,)``.
    """
    least, end = memory.layout.smallest_batch, recipe.schedule.counts(1.0)
    counts = recipe.shape.largest(
        structure.counts, lambda counts: memory.training_bytes(counts, least) <= budget_bytes
    )
    return structure if counts is None else select(scores, structure, counts, end)
