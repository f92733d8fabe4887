"""Units that come back: which, with what weights, for how long, and that the schedule's end is met."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cut_short import outcome, snapshots
from fleets import answers, asked, enlisted
from small_models import ARCHITECTURES

import fedhp
from fedhp.aggregation.regrowth import placed, remembered, returning, scheduled
from fedhp.federation.regrowing import with_returned
from fedhp.federation.server_state import ServerState
from fedhp.model.building import initial_state
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.pruning.schedule import spare
from strategies import Dense

pytestmark = pytest.mark.usefixtures("as_the_server")

ARCH = ARCHITECTURES["mlp-1-hidden"]  # 15 inputs and 11 units
LAYOUT = ARCH.layout
FULL = LAYOUT.full()
SMALL: dict[str, Any] = {"rounds": 8, "model": {"widths": [24, 16]}, "data": {"partition": {"name": "iid"}}}


def of(inputs: str, fc1: str) -> Structure:
    return Structure({"inputs": np.array([*map(int, inputs)]), "fc1": np.array([*map(int, fc1)])})


HELD = of("111110000000000", "11100000000")


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0.0, 0.4), (0.25, 0.4 * (1 + math.cos(math.pi / 3)) / 2), (0.375, 0.2), (0.75, 0.0), (0.9, 0.0)],
)
def test_fewer_and_fewer_come_back(progress, share):
    assert spare(0.4, progress) == pytest.approx(share, abs=1e-12)
    assert spare(0.0, progress) == 0


def test_the_best_of_those_away_come_back_but_for_those_just_judged():
    scores = {"inputs": np.arange(15, dtype=np.float32), "fc1": np.arange(11, 0, -1).astype(np.float32)}
    dormant = ModelState(initial_state(ARCH, 0).weights, FULL, scores)
    judged = of("111110000000011", "11111000000")
    counts = {"inputs": 7, "fc1": 5}
    assert returning(dormant, HELD, counts, None) == of("111110000000011", "11111000000")
    assert returning(dormant, HELD, counts, judged) == of("111110000001100", "11100110000")
    assert returning(dormant, HELD, {"inputs": 3, "fc1": 3}, None) == HELD
    assert returning(dormant, HELD, {"inputs": 99, "fc1": 99}, judged) == of("111111111111100", "11100111111")


def test_of_what_began_in_a_smaller_model_nothing_else_comes_back():
    start = of("111111110000000", "11111100000")
    dormant = initial_state(ARCH, 0).cut(LAYOUT, start)
    assert returning(dormant, HELD, {"inputs": 15, "fc1": 11}, None) == start


def test_what_comes_back_is_as_it_last_was_beside_what_is_trained_on():
    before, now = initial_state(ARCH, 0), initial_state(ARCH, 1).cut(LAYOUT, HELD)
    now = replace(now, scores={"inputs": np.full(5, 7, np.float32), "fc1": np.full(3, 8, np.float32)})
    known = remembered(LAYOUT, before, now)
    assert known.structure == FULL
    expected = before.weights["fc1.weight"].copy()
    expected[:3, :5] = now.weights["fc1.weight"]
    np.testing.assert_array_equal(known.weights["fc1.weight"], expected)
    expected = before.weights["head.weight"].copy()
    expected[:, :3] = now.weights["head.weight"]
    np.testing.assert_array_equal(known.weights["head.weight"], expected)
    np.testing.assert_array_equal(known.scores["fc1"], [8] * 3 + [1] * 8)
    np.testing.assert_array_equal(known.cut(LAYOUT, HELD).weights["fc1.weight"], now.weights["fc1.weight"])


@pytest.mark.parametrize("case", ["cnn-2-convs", "resnet20", "conv1d"])
def test_of_every_network_the_part_is_found_again_and_the_rest_is_untouched(case):
    layout = ARCHITECTURES[case].layout
    full = layout.full()
    part = full.without(next(iter(full.masks)), [0, 2])
    for name, array in initial_state(ARCHITECTURES[case], 0).weights.items():
        compact = layout.slice({name: np.full_like(array, 5)}, full, part)[name]
        whole = placed(layout, name, np.zeros_like(array), compact, full, part)
        assert whole.sum() == 5 * compact.size
        assert (layout.slice({name: whole}, full, part)[name] == 5).all()


def test_the_schedule_leaves_the_best_of_those_that_survive():
    scores = {"inputs": np.arange(15, 0, -1).astype(np.float32), "fc1": np.arange(11, dtype=np.float32)}
    model = replace(initial_state(ARCH, 0), scores=scores)
    survivors = of("011111111111111", "11111111110")
    assert scheduled(LAYOUT, model, survivors, {"inputs": 3, "fc1": 2}) == of(
        "011100000000000", "00000000110"
    )


def test_a_servers_optimiser_remembers_nothing_of_what_has_come_back():
    strategy = enlisted(prune={"target_compression": 4.0, "regrow": 1.0, "end": 0.5, "start": 0.0})
    layout, full = strategy.layout, strategy.layout.full()
    held = full.without("fc1", [5, 6, 7])
    state = strategy.state.cut(layout, held)
    moments = ({name: np.ones_like(state.weights[name]) for name in layout.trained},)
    found = with_returned(strategy.recipe, ServerState(state, 1, moments, dormant=strategy.state))
    back = found.model.structure
    assert back.counts["fc1"] > held.counts["fc1"]
    for name, moment in found.moments[0].items():
        assert moment.shape == layout.shape(name, back.counts)
        assert moment.sum() == moments[0][name].size
    np.testing.assert_array_equal(
        layout.slice(found.model.weights, back, held)["fc1.weight"], state.weights["fc1.weight"]
    )


def test_a_round_of_which_nothing_counts_leaves_the_model_as_it_was():
    strategy = enlisted(prune={"target_compression": 4.0, "regrow": 1.0, "end": 0.5, "start": 0.0})
    small = strategy.state.cut(strategy.layout, strategy.layout.full().without("fc1", [5, 6, 7]))
    strategy.server = ServerState(small, 1, dormant=strategy.state)
    asked(strategy, 2)
    assert strategy.state.structure.counts["fc1"] > 5
    strategy.aggregate_train(2, [])
    assert strategy.state is small


def test_where_nothing_is_pruned_nothing_comes_back_or_goes():
    strategy = enlisted(Dense, prune={"target_compression": 4.0, "regrow": 1.0})
    messages = asked(strategy)
    strategy.aggregate_train(1, answers(strategy, messages, num_cut=0))
    assert strategy.server.dormant is None
    assert strategy.state.structure == strategy.layout.full()


def structures(run) -> list[dict[str, np.ndarray]]:
    read = [json.loads(text) for text in run.rounds["structure"]]
    return [
        {g: np.unpackbits(np.frombuffer(bytes.fromhex(b), np.uint8)) for g, b in one.items()} for one in read
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("regrown") / "run"
    return fedhp.simulate("quickstart", place, show=False, **{**SMALL, "prune.regrow": 0.5})


def test_units_come_back_and_the_target_is_met(run):
    pairs = [(before[g], after[g]) for before, after in pairwise(structures(run)) for g in before]
    assert any((after & ~before).any() for before, after in pairs)
    assert run.rounds["params"].is_monotonic_decreasing
    assert run.summary["compression"] >= run.config.prune.target_compression
    assert (run.clients["memory_measured_bytes"] <= run.clients["memory_budget_bytes"]).all()


def test_without_regrowth_none_comes_back(tmp_path):
    run = fedhp.simulate("quickstart", tmp_path / "run", show=False, **SMALL)
    assert all(
        not (after[g] & ~before[g]).any() for before, after in pairwise(structures(run)) for g in before
    )


def test_it_does_not_depend_on_workers_and_goes_on_where_it_was_cut_short(run, tmp_path):
    expected = outcome(run.folder)
    alone: dict[str, Any] = {"prune.regrow": 0.5, "simulation.num_workers": 0}
    with snapshots(tmp_path / "alone", tmp_path) as taken:
        fedhp.simulate("quickstart", tmp_path / "alone", show=False, **SMALL, **alone)
    assert outcome(tmp_path / "alone") == expected
    begun = [one for one in taken if list(one.glob("checkpoint-*"))]
    folder = begun[len(begun) // 2]
    fedhp.resume(folder, show=False)
    assert outcome(folder) == expected
