"""Networks as their authors write them: traced, cut right, and trained within their budgets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_networks import IMAGES
from signal_networks import SIGNALS
from small_models import (
    FEW,
    compact_and_silenced,
    random_shard,
    small_recipe,
    small_task,
    structures,
    unsettled,
)

from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.training.batches import MemoryConfig
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally

SHAPES = dict.fromkeys(IMAGES, (2, 16, 16)) | dict.fromkeys(SIGNALS, (1, 4, 32))
NETWORKS = {
    kind.__name__: architecture(ModelConfig(target=f"{kind.__module__}:{kind.__name__}", floor=1), shape, 3)
    for kind, shape in SHAPES.items()
}


@pytest.mark.parametrize("case", NETWORKS)
def test_compact_equals_full_with_the_dropped_units_zeroed(case):
    arch = NETWORKS[case]
    state = unsettled(arch)

    @settings(FEW, max_examples=5)
    @given(st.data())
    def check(data):
        structure = data.draw(structures(arch.layout))
        got, wanted = compact_and_silenced(arch, state, structure, 3)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)

    check()


@pytest.mark.parametrize("case", NETWORKS)
def test_training_stays_within_its_budget_and_cuts(case):
    arch = NETWORKS[case]
    shard = random_shard(arch.input_shape, 3, 48)
    train, memory = TrainConfig(batch_size=8, device="cpu"), MemoryConfig("fill", max_batch=16)
    prune = PruneConfig(target_compression=1.1, start=0.1, end=0.7, cuts=2)
    recipe = small_recipe(arch, train, prune, memory)
    budget = recipe.memory_model(1).training_bytes(arch.layout.widths, 8)
    update = train_locally(recipe, small_task(recipe, shard, budget), shard)
    assert update.state.structure.counts == recipe.schedule.counts(1.0) != arch.layout.widths
    assert update.statistics.memory_measured_bytes <= update.statistics.memory_predicted_bytes <= budget
