"""Which part of the global model a device is sent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import ARCHITECTURES, FEW, random_structure

from fedhp.aggregation.assignment import fit_counts, fit_structure, unit_norms
from fedhp.costs.rehearsal import memory_model
from fedhp.errors import BudgetError
from fedhp.model.axes import AxisRef
from fedhp.model.building import initial_state
from fedhp.model.layout import Layout
from fedhp.model.options import ModelConfig
from fedhp.model.shrinking import Shape
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture

ARCH = ARCHITECTURES["cnn-2-convs"]
MEMORY = memory_model(ARCH, state_slots=1, raw_itemsize=1)
SHAPE = Shape(ARCH.layout, MEMORY.shares(8))
FULL = dict(ARCH.layout.widths)


@FEW
@given(st.integers(1, 64), st.floats(0, 1))
def test_counts_are_the_largest_that_fit(batch, share):
    """A hair above the chosen fraction, the next larger counts of the family no longer fit."""
    least = MEMORY.training_bytes(ARCH.layout.smallest(), batch)
    budget = int(least + share * (MEMORY.training_bytes(FULL, batch) - least))
    counts = fit_counts(MEMORY, SHAPE, FULL, budget, batch)
    assert MEMORY.training_bytes(counts, batch) <= budget
    family = [SHAPE.counts(k / 14, FULL) for k in range(15)]
    larger = [other for other in family if sum(other.values()) > sum(counts.values())]
    assert counts in family
    assert all(MEMORY.training_bytes(other, batch) > budget for other in larger)


def test_a_device_too_small_for_the_batch_gets_a_smaller_one():
    """The budget holds the smallest structure with 5 samples; of 20, 10, 5 the last is the first to fit."""
    smallest = ARCH.layout.smallest()
    budget = MEMORY.training_bytes(smallest, 5)
    counts = fit_counts(MEMORY, SHAPE, FULL, budget, 20)
    assert MEMORY.training_bytes(counts, 5) <= budget < MEMORY.training_bytes(smallest, 10)


def test_a_device_too_small_for_anything_is_refused():
    least = MEMORY.training_bytes(ARCH.layout.smallest(), 1)
    assert fit_counts(MEMORY, SHAPE, FULL, least, 8) == ARCH.layout.smallest()
    with pytest.raises(BudgetError, match=f"conv1: 1, conv2: 1, fc1: 1.*takes {least:,} bytes"):
        fit_counts(MEMORY, SHAPE, FULL, least - 1, 8)


def test_a_device_that_can_hold_all_gets_all():
    state = initial_state(ARCH, 0)
    budget = MEMORY.training_bytes(FULL, 8)
    assert fit_structure(MEMORY, SHAPE, state, None, 8) == state.structure
    assert fit_structure(MEMORY, SHAPE, state, budget, 8) == state.structure
    assert fit_structure(MEMORY, SHAPE, state, budget - 1, 8) != state.structure


@FEW
@given(st.integers(0, 5), st.floats(0, 1))
def test_a_small_device_gets_the_units_of_the_largest_norm(seed, share):
    state = initial_state(ARCH, seed)
    current = random_structure(ARCH.layout, seed, 0.8)
    state = state.cut(ARCH.layout, current)
    least = MEMORY.training_bytes(ARCH.layout.smallest(), 8)
    budget = int(least + share * (MEMORY.training_bytes(current.counts, 8) - least))
    structure = fit_structure(MEMORY, SHAPE, state, budget, 8)
    assert current.contains(structure)
    assert MEMORY.training_bytes(structure.counts, 8) <= budget
    for group, norms in unit_norms(ARCH.layout, state).items():
        kept = current.positions(structure, group)
        gone = np.setdiff1d(np.arange(len(norms)), kept)
        assert not gone.size or norms[kept].min() >= norms[gone].max()


def test_unit_norms_by_hand():
    """Unit 0: incoming |(3, 4)| = 5, outgoing two columns |(3, 4, 0, 0)| = 5; unit 1: |(0, 2)| = 2 and
    |(0, 1, 2, 2)| = 3. The bias takes no part.
    """
    unit, wide = AxisRef("g"), AxisRef("g", 2)
    layout = Layout(
        {"g": 2},
        {"in.weight": (2, 2), "in.bias": (2,), "out.weight": (2, 4)},
        {"in.weight": (unit, None), "in.bias": (unit,), "out.weight": (None, wide)},
        {"g": 1},
    )
    weights = {
        "in.weight": np.array([[3, 4], [0, 2]], np.float32),
        "in.bias": np.array([100, 0], np.float32),
        "out.weight": np.array([[3, 4, 0, 1], [0, 0, 2, 2]], np.float32),
    }
    norms = unit_norms(layout, ModelState(weights, layout.full()))
    np.testing.assert_allclose(norms["g"], [25, 6])


def test_a_halved_batch_ends_at_the_smallest_that_the_model_can_take():
    """48, 24, 12, 6, 3 and then 2, not 1: with batch normalisation a step takes two samples."""
    arch = architecture(ModelConfig("conv1d", [6, 6]), (1, 3, 16), 4)
    memory = memory_model(arch, 1, 1)
    shape = Shape(arch.layout, memory.shares(48))
    just = memory.training_bytes(arch.layout.smallest(), 2)
    assert memory.training_bytes(arch.layout.smallest(), 3) > just
    assert fit_counts(memory, shape, arch.layout.widths, just, 48) == arch.layout.smallest()
