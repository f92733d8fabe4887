"""Which part of a dense model a device trains: the published rules on small cases, and what fits."""

import re

import numpy as np
import pytest
from small_models import ARCHITECTURES

from fedhp.aggregation.submodels import first, level_counts, random_part, rolling
from fedhp.costs.rehearsal import memory_model
from fedhp.errors import BudgetError
from fedhp.model.shrinking import at_level

WIDTHS = {"a": 5, "b": 3}
MLP = ARCHITECTURES["mlp-whole-inputs"]  # 12 inputs, hidden 7 and 6, 3 classes; floors 1
MEMORY = memory_model(MLP, state_slots=1, raw_itemsize=4)


def test_first_takes_the_first_units():
    part = first(WIDTHS, {"a": 2, "b": 3})
    assert part.kept("a").tolist() == [0, 1]
    assert part.kept("b").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("server_round", "a", "b"),
    [
        (0, [0, 1], [0]),
        # roll([0 1 2 3 4], 1) = [4 0 1 2 3]; roll([0 1 2], 1) = [2 0 1]
        (1, [0, 4], [2]),
        (2, [3, 4], [1]),
        (3, [2, 3], [0]),
        (5, [0, 1], [1]),  # 5 mod 5 = 0, 5 mod 3 = 2: roll([0 1 2], 2) = [1 2 0]
    ],
)
def test_the_window_rolls_as_published(server_round, a, b):
    part = rolling(WIDTHS, {"a": 2, "b": 1}, server_round)
    assert part.kept("a").tolist() == a
    assert part.kept("b").tolist() == b


def test_a_rolling_window_gives_every_unit_as_many_turns():
    turns = sum(rolling({"a": 5}, {"a": 2}, n).masks["a"].astype(int) for n in range(5))
    assert turns.tolist() == [2] * 5


def test_a_random_part_has_the_right_size_and_reaches_every_unit():
    stream = np.random.default_rng(0)
    parts = [random_part(WIDTHS, {"a": 2, "b": 2}, stream) for _ in range(60)]
    assert {tuple(part.counts.values()) for part in parts} == {(2, 2)}
    assert np.logical_or.reduce([part.masks["a"] for part in parts]).all()
    assert len({part.digest for part in parts}) > 10


def test_a_level_is_rounded_up_as_heterofl_does():
    assert at_level(MLP.layout, 0.5) == {"fc1": 4, "fc2": 3}
    assert at_level(MLP.layout, 0.01) == {"fc1": 1, "fc2": 1}
    assert at_level(MLP.layout, 1.0) == {"fc1": 7, "fc2": 6}


def test_the_widest_level_that_fits_is_chosen():
    half = MEMORY.training_bytes(at_level(MLP.layout, 0.5), 8)
    levels = [0.25, 1.0, 0.5]
    assert level_counts(MEMORY, levels, half, 8) == at_level(MLP.layout, 0.5)
    assert level_counts(MEMORY, levels, half - 1, 8) == at_level(MLP.layout, 0.25)
    assert level_counts(MEMORY, levels, None, 8) == {"fc1": 7, "fc2": 6}


def test_a_device_too_small_for_every_level_trains_one_with_fewer_samples():
    quarter = MEMORY.training_bytes(at_level(MLP.layout, 0.25), 1)
    assert level_counts(MEMORY, [0.25, 1.0], quarter, 8) == at_level(MLP.layout, 0.25)
    with pytest.raises(BudgetError, match=rf"strategy.levels, 0\.25, takes {quarter:,} bytes.* level 0\."):
        level_counts(MEMORY, [0.25, 1.0], quarter - 1, 8)


@pytest.mark.parametrize("short", [1, 100])
def test_where_no_level_fits_one_that_does_is_named(short):
    """The widest in whole units: with a unit more of each group, 1/6 of the smaller, it fits no more."""
    budget = MEMORY.training_bytes(at_level(MLP.layout, 0.5), 1) - short
    with pytest.raises(BudgetError) as refusal:
        level_counts(MEMORY, [1.0], budget, 8)
    (level,) = re.findall(r"Add the level (0\.\d+)", str(refusal.value))
    assert MEMORY.training_bytes(at_level(MLP.layout, float(level)), 1) <= budget
    assert MEMORY.training_bytes(at_level(MLP.layout, float(level) + 1 / 6), 1) > budget


def test_where_not_even_the_smallest_part_fits_no_level_is_named():
    with pytest.raises(BudgetError, match="No level is small enough: raise the budget"):
        level_counts(MEMORY, [1.0], 100, 8)


def test_without_levels_all_groups_are_cut_alike_to_what_fits():
    budget = MEMORY.training_bytes({"fc1": 5, "fc2": 4}, 8)
    counts = level_counts(MEMORY, (), budget, 8)
    assert MEMORY.training_bytes(counts, 8) <= budget
    assert abs(counts["fc1"] / 7 - counts["fc2"] / 6) < 1 / 6
    assert level_counts(MEMORY, (), None, 8) == {"fc1": 7, "fc2": 6}
