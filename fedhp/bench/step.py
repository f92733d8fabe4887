"""What a step takes once the network is small, and what watching its units costs, in the trainer's loop."""

from dataclasses import replace
from statistics import median
from typing import Any

import torch

from fedhp.aggregation.submodels import first
from fedhp.model.building import fresh_state
from fedhp.model.state import ModelState
from fedhp.run.central import Central, prepare_central
from fedhp.scenario.loading import load_scenario
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally
from fedhp.training.update import RoundTask

SCENARIOS = ("fashion_mnist", "cifar10")
_BATCH, _STEPS = 32, 100


def run_step(repeats: int = 7, steps: int = _STEPS, compression: float = 10.0) -> dict[str, Any]:
    """Times training steps of 32 samples on one thread: dense, dense and tracked, and pruned.

    Each time is that of a whole pass of the trainer by the number of its steps, so that gathering the batch,
    the update and all bookkeeping are in it. The three take turns; ratios are medians over the turns.

    Args:
        repeats: Turns.
        steps: Steps in a pass.
        compression: How much smaller the pruned network is.

    Returns:
        One row per scenario: ``dense_microseconds`` and ``pruned_microseconds`` a step, their ``ratio``, and
        ``tracking``, the share by which a step is longer whose units' contributions are tracked.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"batch": _BATCH, "rows": [_row(name, repeats, steps, compression) for name in SCENARIOS]}
    finally:
        torch.set_num_threads(threads)


def _row(name: str, repeats: int, steps: int, compression: float) -> dict[str, Any]:
    values = {
        "data.max_train": steps * _BATCH,
        "train.batch_size": _BATCH,
        "train.epochs": 1,
        "prune.target_compression": compression,
    }
    central = prepare_central(load_scenario(name, values=values))
    arms = _arms(central)
    # A turn more than is counted: in the first one, peaks of memory are measured too.
    turns = [{arm: _seconds(central, *how) for arm, how in arms.items()} for _ in range(repeats + 1)][1:]
    return {
        "scenario": name,
        "dense_microseconds": 1e6 * median(turn["dense"] for turn in turns) / steps,
        "pruned_microseconds": 1e6 * median(turn["pruned"] for turn in turns) / steps,
        "ratio": median(turn["pruned"] / turn["dense"] for turn in turns),
        "tracking": median(turn["tracked"] / turn["dense"] for turn in turns) - 1,
    }


def _arms(central: Central) -> dict[str, tuple[Recipe, ModelState]]:
    """Returns how each arm trains, and from which model."""
    recipe, layout = central.recipe, central.recipe.architecture.layout
    small = first(layout.widths, recipe.schedule.counts(1.0))
    late = replace(recipe, prune=replace(recipe.prune, start=0.9, end=1.0), rounds=2)  # of which one is run
    return {
        "dense": (recipe.without_pruning(), central.start),
        "tracked": (late, central.start),
        "pruned": (recipe.without_pruning(), fresh_state(recipe.architecture, small, recipe.seed)),
    }


def _seconds(central: Central, recipe: Recipe, state: ModelState) -> float:
    return train_locally(recipe, RoundTask(1, 0, central.profile, state), central.train).statistics.seconds
