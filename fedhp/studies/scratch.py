"""The honest control: a pruned network's structure, with fresh weights that fit its size."""

from pathlib import Path

from fedhp.data.dataset import open_dataset
from fedhp.model.building import fresh_state
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.records.load import load_state
from fedhp.scenario.schema import Scenario
from fedhp.seeds import derive


def fresh_start(scenario: Scenario, folder: Path) -> ModelState:
    """Returns fresh weights, of another stream than the seed's own, for the final structure of a run."""
    dataset = open_dataset(scenario.data)
    arch = architecture(scenario.model, dataset.input_shape, dataset.num_classes)
    pruned, _ = load_state(folder)
    return fresh_state(arch, pruned.structure, derive(scenario.seed, "from scratch"))
