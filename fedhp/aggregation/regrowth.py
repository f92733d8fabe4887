"""Units that come back: what has been cut is kept at the server, and the best of it is tried again.

A cut is a judgement on few samples. As sparse training grows weights back (RigL: Evci et al. 2020, arXiv
1911.11134), so units that were cut return here, with the weights that they last had, in numbers that fall to
zero. Gradients of what is not there would cost a device the memory that cuts are for; so those return of
which devices last thought most, and the next round judges them anew.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.pruning.cutting import select


def returning(
    dormant: ModelState, held: Structure, counts: Mapping[str, int], barred: Structure | None
) -> Structure:
    """Returns the structure with which a round begins: those held, and the best of those that were cut.

    Args:
        dormant: What is known of all units.
        held: Those that the model has.
        counts: Per group, how many units the round may begin with.
        barred: Those that have only just been judged: what of them was cut stays away for a round.
    """
    masks = {}
    for group, mask in held.masks.items():
        known = dormant.structure.masks[group]
        away = known & ~mask if barred is None else known & ~mask & ~barred.masks[group]
        scores = np.full(len(mask), -np.inf)
        scores[known] = dormant.scores[group]
        number = max(0, min(counts[group] - int(mask.sum()), int(away.sum())))
        best = np.argsort(-np.where(away, scores, -np.inf), kind="stable")[:number]
        masks[group] = mask.copy()
        masks[group][best] = True
    return Structure(masks)


def scheduled(
    layout: Layout, model: ModelState, survivors: Structure, counts: Mapping[str, int]
) -> Structure:
    """Returns the best of those that survive a round that began with more units than it is to leave.

    Args:
        layout: The model's wiring.
        model: What the updates made, of all units that the round began with.
        survivors: Those that the strategy lets survive.
        counts: Per group, how many units the round leaves.
    """
    scores = {g: known[model.structure.positions(survivors, g)] for g, known in model.scores.items()}
    return select(scores, survivors, counts, layout.floors)


def remembered(layout: Layout, dormant: ModelState, model: ModelState) -> ModelState:
    """Returns a model with the weights and scores that a part of it has come to."""
    within, part = dormant.structure, model.structure
    weights = {
        name: placed(layout, name, known, model.weights[name], within, part)
        for name, known in dormant.weights.items()
    }
    scores = {}
    for group, known in dormant.scores.items():
        scores[group] = known.copy()
        scores[group][within.positions(part, group)] = model.scores[group]
    return ModelState(weights, within, scores)


def placed(
    layout: Layout,
    name: str,
    into: NDArray[np.float32],
    array: NDArray[np.float32],
    within: Structure,
    part: Structure,
) -> NDArray[np.float32]:
    """Returns an array of a structure, with the given entries of a part of it in their places."""
    takes = dict(layout.indices(name, within, part))
    if not takes:
        return array
    out = into.copy()
    out[np.ix_(*(takes.get(axis, np.arange(size)) for axis, size in enumerate(into.shape)))] = array
    return out
