"""The honest control: a pruned network's structure, with fresh weights that fit its size."""

from dataclasses import replace
from pathlib import Path

from fedhp.config import Scenario
from fedhp.data import open_dataset
from fedhp.models import Architecture, architecture, initial_state
from fedhp.seeds import derive
from fedhp.state import ModelState
from fedhp.structure import Structure
from fedhp.tracking import load_state


def fresh_start(scenario: Scenario, folder: Path) -> ModelState:
    """Returns fresh weights, of another stream than the seed's own, for the final structure of a run."""
    dataset = open_dataset(scenario.data)
    arch = architecture(scenario.model, dataset.input_shape, dataset.num_classes)
    pruned, _ = load_state(folder)
    return fresh_state(arch, pruned.structure, derive(scenario.seed, "from scratch"))


def fresh_state(arch: Architecture, structure: Structure, seed: int) -> ModelState:
    """Returns a structure's initial weights as if the small network were all that there ever was.

    Each bound follows from the compact layer's own fan-in: slices of the full model's initial weights would
    be too small for it, and the comparison unfair.
    """
    layout, counts = arch.layout, structure.counts
    small = replace(
        layout,
        widths=counts,
        shapes={name: layout.shape(name, counts) for name in layout.shapes},
        floors={group: min(layout.floors[group], count) for group, count in counts.items()},
    )
    fresh = initial_state(replace(arch, layout=small), seed)
    return ModelState(fresh.weights, structure)
