"""Which updates are out of proportion, and how far an update moves a model."""

import numpy as np
import pytest
from factories import dense_layout, filled_state, structure, update
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhp.aggregation.proportion import Change, Proportion, Reference


def judged(norms, factor: float = 10.0, before: float = 0.0, judge: Proportion | None = None) -> list[bool]:
    """Whether each update of these norms is taken; None stands for a client that sent none."""
    judge = judge or Proportion(factor)
    items = [() if norm is None else (Change("weights", norm, before),) for norm in norms]
    return [not flaw for _, flaw, _ in judge.judged(items, lambda item: item)]


def test_a_change_is_measured_over_the_entries_that_came_back():
    """Units 0 and 2 of 3 are left: in.weight moved by (3, 0), in.bias by (0, 4), out.weight by (0, 12).

    So the norm is sqrt(9 + 16 + 144) = 13, and before it was sqrt(1 + 9 + 4 + 16 + 25 + 49) = sqrt(104).
    """
    layout = dense_layout()
    whole = filled_state(layout, layout.full(), in_weight=[1, 2, 3], in_bias=[2, 3, 4], out_weight=[5, 6, 7])
    kept = structure(layout, a=[0, 2])
    sent = filled_state(layout, kept, in_weight=[4, 3], in_bias=[2, 8], out_weight=[5, 19])
    (change,) = Reference(layout, whole).changes(update(sent))
    assert (change.kind, change.norm) == ("weights", pytest.approx(13))
    assert change.before == pytest.approx(np.sqrt(104))


@pytest.mark.parametrize("place", range(12))
def test_one_of_many_is_refused_whatever_its_place(place):
    norms = [1.0] * 11
    norms.insert(place, 10.1)
    assert judged(norms) == [number != place for number in range(12)]
    norms[place] = 9.9
    assert all(judged(norms))


def test_the_lower_median_counts_so_that_less_than_half_cannot_raise_it():
    assert judged([1, 1, 1, 1e9, 1e9]) == [True, True, True, False, False]
    assert judged([1, 1, 1e9, 1e9]) == [True, True, False, False]


def test_where_few_are_known_the_model_that_was_sent_is_the_measure():
    """Weights of norm 2 may change by 20; the third update is the first that has a median."""
    assert judged([19.0, 21.0], before=2.0) == [True, False]
    assert judged([1e9], before=2.0) == [False]
    assert judged([1.0, 1.0, 11.0], before=2.0) == [True, True, False]


def test_a_change_of_a_tenth_is_harmless_beside_any_other():
    assert judged([1e-6, 1e-6, 1e-6, 0.2], before=2.0) == [True] * 4
    assert judged([1e-6, 1e-6, 1e-6, 0.21], before=2.0) == [True] * 3 + [False]


def test_earlier_rounds_are_remembered_where_a_round_has_few_replies():
    judge = Proportion(10.0)
    assert all(judged([1.0] * 8, judge=judge))
    assert judged([50.0], before=100.0, judge=judge) == [False]
    assert judged([9.0], judge=judge) == [True]


def test_what_was_refused_is_not_remembered():
    judge = Proportion(10.0)
    for _ in range(40):
        assert judged([1.0, 1.0, 1.0, 1e6, 1e6], judge=judge) == [True] * 3 + [False] * 2


def test_no_factor_takes_everything():
    assert all(judged([1.0] * 9 + [1e30], factor=0.0))


def test_running_statistics_are_judged_by_themselves():
    """An update that moves the weights as far as others move their statistics cannot hide behind them."""
    usual = (Change("weights", 1.0, 1.0), Change("running statistics", 1000.0, 1.0))
    hidden = (Change("weights", 1000.0, 1.0), Change("running statistics", 1000.0, 1.0))
    beyond = (Change("weights", 1.0, 1.0), Change("running statistics", 10001.0, 1.0))
    flaws = [flaw for _, flaw, _ in Proportion(10.0).judged([usual] * 9 + [hidden, beyond], lambda one: one)]
    assert flaws[:9] == [""] * 9
    assert flaws[9].startswith("the change of its weights has norm 1e+03, beyond 10 times the median")
    assert flaws[9].endswith("; if it is honest, lower train.local_epochs or raise server.max_times_median")
    assert flaws[10].startswith("the change of its running statistics has norm 1e+04, beyond")


def test_each_kind_of_entries_is_said_to_be_so_many_times_its_own_usual():
    usual, odd = (
        (Change("weights", one, 1.0), Change("statistics", two, 1.0)) for one, two in ((1, 5), (2, 20))
    )
    said = [times for _, _, times in Proportion(0.0).judged([usual] * 9 + [odd], lambda one: one)]
    assert said == [(1.0, 1.0)] * 9 + [(2.0, 4.0)]


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(1e-3, 1e3), max_size=30))
def test_all_come_out_in_their_order_and_none_waits_for_more_than_eight_norms(norms):
    read: list[int] = []

    def items():
        for number, norm in enumerate(norms):
            read.append(number)
            yield number, () if norm is None else (Change("weights", norm, 1.0),)

    out = []
    for (number, _), _, _ in Proportion(10.0).judged(items(), lambda item: item[1]):
        out.append(number)
        told = sum(norms[ahead] is not None for ahead in read)
        assert told <= max(8, sum(norms[done] is not None for done in range(number + 1)))
    assert out == list(range(len(norms)))
