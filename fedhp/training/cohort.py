"""The clients of one round that are sent the same model, trained together."""

import sys
from collections.abc import Sequence
from functools import lru_cache

import torch

from fedhp.model.building import initial_state, to_module
from fedhp.model.gradients import is_dense, is_watched
from fedhp.model.grouped import MOST_GROUPS, grouped, grouping_pays
from fedhp.model.mapped import is_mappable
from fedhp.model.structure import Structure
from fedhp.training.recipe import Recipe
from fedhp.training.session import Client
from fedhp.training.trainer import train_together
from fedhp.training.update import Update

__all__ = ["Client", "train_cohort"]


def train_cohort(recipe: Recipe, clients: Sequence[Client], stack: int) -> list[Update | Exception]:
    """Trains clients as `fedhp.training.trainer.train_locally` does each.

    Dense networks are trained side by side, step by step; so are plain convolutional ones of few channels,
    and on a GPU most others; the rest one after another. Who else is there changes what becomes of a client
    by rounding alone: `fedhp.model.gradients` says where by none. So a result depends on who is in a cohort
    and in which order, and on nothing else. Figures of memory are those of a device.

    Args:
        recipe: How to train.
        clients: The clients, all with the same model, best in falling order of their numbers of samples.
        stack: How many of them are computed at a time, at most.

    Returns:
        What came of each, in their order: who fails fails alone.
    """
    if not clients:
        return []
    most = _most_beside(recipe, clients[0].task.state.structure)
    number = min(stack, most)
    outcomes: list[Update | Exception] = []
    for start in range(0, len(clients), number):
        outcomes += train_together(recipe, clients[start : start + number], beside=most > 1)
    return outcomes


def _most_beside(recipe: Recipe, structure: Structure) -> int:
    """Returns how many clients of a structure are best trained side by side, by shapes alone."""
    most, layout = _most_at_all(recipe), recipe.architecture.layout
    shapes = (layout.shape(name, structure.counts) for name in layout.shapes)
    return 1 if most == MOST_GROUPS and not grouping_pays(shapes) else most


@lru_cache(maxsize=8)  # a process holds a handful of recipes
def _most_at_all(recipe: Recipe) -> int:
    """Returns how many may take steps in turn: nothing draws from streams that they have in common."""
    arch, device = recipe.architecture, recipe.device()
    if not all(kind.stackable for kind in recipe.methods):
        return 1
    module = to_module(arch, initial_state(arch, recipe.seed), device)
    if any(map(is_watched, module.modules())):  # and what hooks draw
        return 1
    if is_dense(module):
        return sys.maxsize
    if device.type == "cpu":
        return 1 if grouped(module) is None else MOST_GROUPS
    samples = torch.randn(2, *arch.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    return sys.maxsize if is_mappable(module, samples) else 1
