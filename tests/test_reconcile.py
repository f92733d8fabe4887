"""Reconciliation against hand-computed means and votes, NumPy's average, and a slow second implementation."""

import pickle

import numpy as np
import pytest
from factories import (
    GLOBAL,
    LAYOUT,
    conv_layout,
    dense_layout,
    filled_state,
    random_state,
    structure,
    two_convs_layout,
    update,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhp.aggregation.options import StrategyConfig
from fedhp.aggregation.reconcile import Reconciliation, Sums, intersection, majority
from fedhp.errors import ScenarioError
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure


def three_replies() -> Reconciliation:
    """Feeds three replies of different structures into a fresh reconciliation.

    ======  ========  ======  ========  ==========  =======  ==========
    client  assigned  kept    examples  in.weight   in.bias  out.weight
    ======  ========  ======  ========  ==========  =======  ==========
    A       0 1 2     0 1     1         1 2         0 0      1 2
    B       0 1       0       2         4           3        7
    C       0 1 2     0 1 2   1         3 6 9       2 4 6    5 6 7
    ======  ========  ======  ========  ==========  =======  ==========
    """
    two, one = structure(LAYOUT, a=[0, 1]), structure(LAYOUT, a=[0])
    a = filled_state(LAYOUT, two, in_weight=[1, 2], in_bias=[0, 0], out_weight=[1, 2])
    b = filled_state(LAYOUT, one, in_weight=[4], in_bias=[3], out_weight=[7])
    c = filled_state(LAYOUT, LAYOUT.full(), in_weight=[3, 6, 9], in_bias=[2, 4, 6], out_weight=[5, 6, 7])
    reconciliation = Reconciliation(LAYOUT, GLOBAL)
    reconciliation.add(update(a, LAYOUT.full(), 1))
    reconciliation.add(update(b, two, 2))
    reconciliation.add(update(c, LAYOUT.full(), 1))
    return reconciliation


def test_three_replies_give_the_shares_computed_by_hand():
    """A unit's share is the examples that kept it over the examples that were assigned it.

    Unit 0: all of 1+2+1 kept it: 1. Unit 1: A and C of A, B, C: 2/4. Unit 2: C of A and C (B was not
    assigned it and has no vote): 1/2.
    """
    assert three_replies().shares()["a"].tolist() == [1.0, 0.5, 0.5]


def test_votes_stand_where_the_unit_does_in_the_full_model_and_only_where_somebody_judged():
    """Units 0 and 2 are gone, nobody was assigned unit 1; 2 of 2 + 6 samples kept unit 3."""
    layout = dense_layout(4)
    left, judged = structure(layout, a=[1, 3]), structure(layout, a=[3])
    reconciliation = Reconciliation(layout, random_state(layout, left))
    reconciliation.add(update(random_state(layout, judged), judged, 2))
    reconciliation.add(update(random_state(layout, structure(layout, a=[])), judged, 6))
    votes = reconciliation.votes()["a"]
    np.testing.assert_array_equal(votes, [np.nan, np.nan, np.nan, 0.25])


def test_three_replies_give_the_means_computed_by_hand():
    """An entry is the example-weighted mean over the clients that hold it.

    Unit 0, held by A (1), B (2), C (1): in.weight (1 + 2*4 + 3)/4 = 3, in.bias (0 + 2*3 + 2)/4 = 2,
    out.weight (1 + 2*7 + 5)/4 = 5. Unit 1, held by A and C: (2 + 6)/2 = 4, (0 + 4)/2 = 2, (2 + 6)/2 = 4.
    Unit 2, held by C alone: 9, 6, 7.
    """
    mean = three_replies().mean()
    assert mean.weights["in.weight"].tolist() == [[3], [4], [9]]
    assert mean.weights["in.bias"].tolist() == [2, 2, 6]
    assert mean.weights["out.weight"].tolist() == [[5, 4, 7]]
    assert all(array.dtype == np.float32 for array in mean.weights.values())


@pytest.mark.parametrize(
    ("quorum", "bound", "kept"),
    [
        (1.0, 1, [0]),
        (0.5, 1, [0, 1, 2]),
        (0.51, 1, [0]),
        # Refilled to the bound; the tie at 1/2 goes to the lower index.
        (1.0, 2, [0, 1]),
        (1.0, 3, [0, 1, 2]),
    ],
)
def test_survivors_of_the_three_replies(quorum, bound, kept):
    """The shares are 1, 1/2, 1/2 (above)."""
    survivors = intersection(three_replies().shares(), GLOBAL.structure, {"a": bound}, quorum)
    assert survivors.kept("a").tolist() == kept


@pytest.mark.parametrize(
    ("uncovered", "weights"),
    [
        ("keep", [3, 4, 9]),
        ("zero", [3, 4, 9]),
        # Unit 0 was held by all. Unit 1: (1*2 + 1*6 + 2*20)/4 = 12. Unit 2: (1*9 + 3*30)/4 = 24.75.
        ("residual", [3, 12, 24.75]),
        # Unit 1: (2 + 6)/4 = 2. Unit 2: 9/4.
        ("zero_filled", [3, 2, 2.25]),
    ],
)
def test_what_a_client_does_not_hold_counts_as_the_rule_says(uncovered, weights):
    assert three_replies().mean(uncovered).weights["in.weight"].ravel().tolist() == weights


@pytest.mark.parametrize(
    ("uncovered", "weights"),
    [("keep", [10, -1, 30]), ("zero", [0, -1, 0]), ("residual", [10, -1, 30]), ("zero_filled", [0, -1, 0])],
)
def test_what_nobody_holds_becomes_what_the_rule_says(uncovered, weights):
    one = structure(LAYOUT, a=[1])
    reconciliation = Reconciliation(LAYOUT, GLOBAL)
    reconciliation.add(
        update(filled_state(LAYOUT, one, in_weight=[-1], in_bias=[-2], out_weight=[-3]), one, 7)
    )
    assert reconciliation.mean(uncovered).weights["in.weight"].ravel().tolist() == weights


def test_votes_are_counted_by_client_and_not_by_example():
    """Of the three replies above, unit 0 was kept by A, B, C; unit 1 by A and C; unit 2 by C."""
    assert three_replies().keepers["a"].tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("min_votes", "bound", "kept"),
    [
        (1, 2, [1, 3]),  # all but unit 0 are candidates: the best scores are those of 3 and 1
        (2, 2, [2, 3]),  # candidates 2 and 3
        (2, 1, [3]),
        (3, 2, [2, 3]),  # one candidate, 2; then 3, which has more votes than 1
        (2, 4, [0, 1, 2, 3]),
    ],
)
def test_the_best_of_those_with_enough_votes_survive(min_votes, bound, kept):
    votes, scores = {"a": np.array([0, 1, 3, 2])}, {"a": np.array([9, 3, 1, 4], np.float32)}
    layout = dense_layout(4)
    assert majority(votes, scores, layout.full(), {"a": bound}, min_votes).kept("a").tolist() == kept


def test_the_mean_is_cut_to_the_survivors():
    """The means of units 0 and 2 computed above, without unit 1."""
    mean = three_replies().mean().cut(LAYOUT, structure(LAYOUT, a=[0, 2]))
    assert mean.structure.kept("a").tolist() == [0, 2]
    assert mean.weights["in.weight"].tolist() == [[3], [9]]
    assert mean.weights["out.weight"].tolist() == [[5, 7]]


def test_a_unit_that_nobody_was_assigned_stays_with_its_weights():
    """One client was assigned unit 1 alone: unit 0 and 2 have no judge, so share 1 and their old values."""
    one = structure(LAYOUT, a=[1])
    reconciliation = Reconciliation(LAYOUT, GLOBAL)
    reconciliation.add(
        update(filled_state(LAYOUT, one, in_weight=[-1], in_bias=[-2], out_weight=[-3]), one, 7)
    )
    assert reconciliation.shares()["a"].tolist() == [1, 1, 1]
    mean = reconciliation.mean()
    assert mean.weights["in.weight"].tolist() == [[10], [-1], [30]]
    assert mean.weights["out.weight"].tolist() == [[100, -3, 300]]


def test_an_entry_that_nobody_held_keeps_its_value_though_both_its_units_were_held():
    """An entry of a weight with two pruned axes is held only by a client that kept both its units.

    Client A holds channel 0 and unit 0, client B channel 1 and unit 1: the blocks (unit 0, channel 1) and
    (unit 1, channel 0) of ``d.weight`` were held by nobody, and channel 2 and units 2, 3 neither.
    """
    layout = two_convs_layout()
    start = random_state(layout, layout.full(), 1)
    reconciliation = Reconciliation(layout, start)
    a = random_state(layout, structure(layout, c=[0], d=[0]), 2)
    b = random_state(layout, structure(layout, c=[1], d=[1]), 3)
    reconciliation.add(update(a, layout.full(), 5))
    reconciliation.add(update(b, layout.full(), 9))
    expected = start.weights["d.weight"].copy()
    expected[0, 0] = a.weights["d.weight"][0, 0]
    expected[1, 1] = b.weights["d.weight"][0, 0]
    np.testing.assert_allclose(reconciliation.mean().weights["d.weight"], expected, rtol=1e-6)


def test_units_that_every_assignee_pruned_are_not_taken_back():
    """Shares 1, 0, 1/3: a bound of 3 takes back unit 2, which somebody kept, and not unit 1."""
    shares = {"a": np.array([1.0, 0.0, 1 / 3])}
    assert intersection(shares, GLOBAL.structure, {"a": 3}, 1.0).kept("a").tolist() == [0, 2]


def test_the_most_kept_are_taken_back_first_in_full_model_coordinates():
    """Of the kept units 1, 2, 4, 7 of 8 the shares are 1/4, 3/4, 1/2, 1: the best three are 2, 4, 7."""
    layout = dense_layout(8)
    current = structure(layout, a=[1, 2, 4, 7])
    shares = {"a": np.array([0.25, 0.75, 0.5, 1.0])}
    assert intersection(shares, current, {"a": 3}, 1.0).kept("a").tolist() == [2, 4, 7]


def test_rounding_in_sums_of_examples_costs_no_unit_its_place():
    """0.1 + 0.2 over 0.3 is one unit in the last place off 1, and one third three times likewise."""
    shares = {"a": np.array([1 - 2**-53, (0.1 + 0.2) / 0.3, 3 * (1 / 3)])}
    assert intersection(shares, GLOBAL.structure, {"a": 1}, 1.0) == LAYOUT.full()


@pytest.mark.parametrize("layout", [dense_layout(4), conv_layout(), two_convs_layout()])
def test_complete_replies_give_numpys_weighted_average(layout):
    start = random_state(layout, layout.full())
    states = [random_state(layout, layout.full(), seed) for seed in (1, 2, 3)]
    examples = [3, 50, 7]
    reconciliation = Reconciliation(layout, start)
    for state, number in zip(states, examples, strict=True):
        reconciliation.add(update(state, None, number))
    mean = reconciliation.mean()
    for name, got in mean.weights.items():
        expected = np.average([s.weights[name].astype(np.float64) for s in states], 0, examples)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_without_replies_nothing_changes():
    reconciliation = Reconciliation(LAYOUT, GLOBAL)
    mean = reconciliation.mean()
    assert all(np.array_equal(mean.weights[name], GLOBAL.weights[name]) for name in GLOBAL.weights)


@pytest.mark.parametrize("quorum", [0.0, -0.5, 1.5, float("nan")])
def test_a_quorum_outside_its_range_is_refused(quorum):
    with pytest.raises(ScenarioError, match=r"strategy\.quorum"):
        StrategyConfig(quorum=quorum)


LAYOUTS = (dense_layout(4), conv_layout(), two_convs_layout())


@st.composite
def rounds(draw):
    """A layout, a global structure, and clients' nested (assigned, kept) structures with examples."""
    layout = draw(st.sampled_from(LAYOUTS))

    def within(outer: Structure) -> Structure:
        masks = {}
        for group, mask in outer.masks.items():
            units = outer.kept(group).tolist()
            chosen = draw(st.sets(st.sampled_from(units), min_size=1))
            masks[group] = np.isin(np.arange(len(mask)), list(chosen))
        return Structure(masks)

    current = (draw(st.booleans()) and layout.full()) or within(layout.full())
    clients = []
    for _ in range(draw(st.integers(0, 9))):
        if clients and draw(st.booleans()):  # of a structure that was there before
            clients.append((*draw(st.sampled_from(clients))[:2], draw(st.integers(1, 1000))))
            continue
        assigned = (draw(st.booleans()) and current) or within(current)
        kept = (draw(st.booleans()) and assigned) or within(assigned)
        clients.append((assigned, kept, draw(st.integers(1, 1000))))
    return layout, current, clients


@settings(max_examples=60, deadline=None)
@given(rounds(), st.sampled_from([1.0, 0.5, 0.75]), st.integers(1, 4))
def test_random_rounds_agree_with_a_slow_second_implementation(round_, quorum, bound):
    layout, current, clients = round_
    start = random_state(layout, current, 99)
    states = [random_state(layout, kept, seed) for seed, (_, kept, _) in enumerate(clients)]
    reconciliation = Reconciliation(layout, start)
    for state, (assigned, _, examples) in zip(states, clients, strict=True):
        reconciliation.add(update(state, assigned, examples))

    shares = reconciliation.shares()
    slow_shares = slow_votes(current, clients)
    for group in layout.widths:
        expected = [slow_shares[group][unit] for unit in current.kept(group)]
        np.testing.assert_allclose(shares[group], expected, rtol=1e-12)

    bounds = dict.fromkeys(layout.widths, bound)
    survivors = intersection(shares, current, bounds, quorum)
    assert survivors == slow_survivors(layout, slow_shares, bounds, quorum)

    mean = reconciliation.mean()
    for name, expected in slow_mean(layout, start, states, clients).items():
        whole, held = embed(layout, mean, name)
        np.testing.assert_allclose(whole[held], expected[held], rtol=1e-6, atol=1e-7)


def summed(layout, start, members) -> Sums:
    """What a worker sends of clients that were assigned the same; pickled, as it would be on the way."""
    apart = Reconciliation(layout, start.cut(layout, members[0].assigned))
    for one in members:
        apart.add(one)
    return pickle.loads(pickle.dumps(apart.sums()))  # noqa: S301 - our own, as Ray hands it on


def in_parts(updates, size: int) -> list:
    """Cuts updates into parts of equal assignments."""
    by_assigned: dict = {}
    for one in updates:
        by_assigned.setdefault(one.assigned, []).append(one)
    return [part[at : at + size] for part in by_assigned.values() for at in range(0, len(part), size)]


@settings(max_examples=60, deadline=None)
@given(rounds(), st.integers(1, 4))
def test_parts_of_a_round_that_are_summed_apart_come_to_what_the_whole_does(round_, size):
    """Counts are exact; sums are to the rounding of float64, which a mean in float32 does not show."""
    layout, current, clients = round_
    start = random_state(layout, current, 99)
    updates = [
        update(random_state(layout, kept, seed), assigned, examples)
        for seed, (assigned, kept, examples) in enumerate(clients)
    ]
    whole, merged = Reconciliation(layout, start), Reconciliation(layout, start)
    for one in updates:
        whole.add(one)
    for part in in_parts(updates, size):
        merged.merge(summed(layout, start, part))
    for group in layout.widths:
        assert np.array_equal(whole.shares()[group], merged.shares()[group])
        assert np.array_equal(whole.votes()[group], merged.votes()[group], equal_nan=True)
        assert np.array_equal(whole.keepers[group], merged.keepers[group])
        np.testing.assert_allclose(whole.scores()[group], merged.scores()[group], rtol=1e-6)
    for uncovered in ("keep", "residual", "zero_filled") if clients else ("keep",):
        one, other = whole.mean(uncovered), merged.mean(uncovered)
        for name in one.weights:
            np.testing.assert_allclose(one.weights[name], other.weights[name], rtol=1e-6, atol=1e-9)


def test_sums_of_sums_count_exactly_whatever_is_merged_first():
    """Five clients, each with cuts of its own: ((A B) (C D)) E and A (B (C (D E)))."""
    layout = conv_layout()
    start = random_state(layout, layout.full())
    kept = [structure(layout, c=c, f=f) for c, f in [((0,), (1, 2)), ((1, 2), (0,)), ((0, 2), (4,))] * 2][:5]
    singles = [
        summed(layout, start, [update(random_state(layout, one, seed), layout.full(), 3 + seed)])
        for seed, one in enumerate(kept)
    ]

    def merged(*parts: Sums) -> Reconciliation:
        together = Reconciliation(layout, start)
        for part in parts:
            together.merge(part)
        return together

    a, b, c, d, e = singles
    one = merged(merged(merged(a, b).sums(), merged(c, d).sums()).sums(), e)
    other = merged(a, merged(b, merged(c, merged(d, e).sums()).sums()).sums())
    for group in layout.widths:
        assert np.array_equal(one.votes()[group], other.votes()[group])
        assert np.array_equal(one.keepers[group], other.keepers[group])
    for name, weights in one.mean().weights.items():
        np.testing.assert_allclose(weights, other.mean().weights[name], rtol=1e-6)


def test_more_structures_than_are_counted_at_a_time_are_all_counted():
    """130 clients, client n of n + 1 examples: all keep unit 0, and each its own unit n."""
    layout = dense_layout(130)
    reconciliation = Reconciliation(layout, random_state(layout, layout.full()))
    for n in range(130):
        held = structure(layout, a=[0, n])
        reconciliation.add(update(random_state(layout, held, n), layout.full(), n + 1))
    total = 130 * 131 / 2
    assert reconciliation.shares()["a"].tolist() == [1.0, *((n + 1) / total for n in range(1, 130))]
    assert reconciliation.keepers["a"].tolist() == [130, *([1] * 129)]


def embed(layout, state: ModelState, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Spreads a compact parameter over its full shape, entry by entry; and says which entries it holds."""
    whole, held = np.zeros(layout.shapes[name]), np.zeros(layout.shapes[name], bool)
    for entry in np.ndindex(whole.shape):
        place = []
        for position, runs in zip(entry, layout.axes[name], strict=True):
            if not runs:
                place.append(position)
                continue
            (ref,) = runs
            unit, offset = divmod(position, ref.span)
            kept = state.structure.kept(ref.group).tolist()
            if unit not in kept:
                break
            place.append(kept.index(unit) * ref.span + offset)
        else:
            whole[entry], held[entry] = state.weights[name][tuple(place)], True
    return whole, held


def slow_mean(layout, start, states, clients) -> dict[str, np.ndarray]:
    means = {}
    for name in layout.shapes:
        total, weight = np.zeros(layout.shapes[name]), np.zeros(layout.shapes[name])
        for state, (_, _, examples) in zip(states, clients, strict=True):
            whole, held = embed(layout, state, name)
            total += np.where(held, whole * examples, 0)
            weight += np.where(held, examples, 0)
        means[name] = np.where(weight > 0, total / np.maximum(weight, 1), embed(layout, start, name)[0])
    return means


def slow_votes(current, clients) -> dict[str, dict[int, float]]:
    votes = {}
    for group in current.masks:
        votes[group] = {}
        for unit in current.kept(group).tolist():
            judges = [c for c in clients if unit in c[0].kept(group)]
            kept = sum(c[2] for c in judges if unit in c[1].kept(group))
            votes[group][unit] = kept / sum(c[2] for c in judges) if judges else 1.0
    return votes


def slow_survivors(layout, votes, bounds, quorum) -> Structure:
    kept = {}
    for group, shares in votes.items():
        ranking = sorted(shares, key=lambda unit: (-shares[unit], unit))
        chosen = [unit for unit in ranking if shares[unit] >= quorum]
        for unit in ranking[len(chosen) :]:
            if len(chosen) < bounds[group] and shares[unit] > 0:
                chosen.append(unit)
        kept[group] = chosen
    return structure(layout, **kept)
