"""Structures as sets of units, and slicing by them, against plain NumPy indexing."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import ARCHITECTURES, CHAINS, FEW, fancy, masks, structures

from fedhp.model.axes import AxisRef
from fedhp.model.building import initial_state
from fedhp.model.layout import Layout
from fedhp.model.structure import Structure

WIDTHS = {"a": 3, "b": 8, "c": 17}

plain = st.fixed_dictionaries({g: masks(w, 0) for g, w in WIDTHS.items()}).map(Structure)


def tiny() -> Structure:
    return Structure({"a": np.array([1, 0, 1, 1, 0], bool), "b": np.array([0, 1], bool)})


# --- sets of units ---------------------------------------------------------------------------


@FEW
@given(plain, plain, plain)
def test_intersection_is_that_of_sets(a, b, c):
    assert a.intersect(a) == a
    assert a.intersect(b) == b.intersect(a)
    assert a.intersect(b).intersect(c) == a.intersect(b.intersect(c))
    assert a.intersect(Structure.full(WIDTHS)) == a
    for group in WIDTHS:
        wanted = set(a.kept(group)) & set(b.kept(group))
        assert list(a.intersect(b).kept(group)) == sorted(wanted)


@FEW
@given(plain, plain)
def test_contains_is_the_subset_relation(a, b):
    subset = all(set(b.kept(g)) <= set(a.kept(g)) for g in WIDTHS)
    assert a.contains(b) == subset
    assert a.contains(a.intersect(b))
    assert Structure.full(WIDTHS).contains(a)


@FEW
@given(plain, plain)
def test_equality_hash_and_digest_agree_with_the_kept_units(a, b):
    same = all(list(a.kept(g)) == list(b.kept(g)) for g in WIDTHS)
    assert (a == b) == same == (a.digest == b.digest)
    again = Structure({g: a.masks[g].copy() for g in reversed(WIDTHS)})
    assert again == a
    assert hash(again) == hash(a)


def test_digest_tells_padding_and_group_names_apart():
    """One byte holds 7 and 8 units alike, so the width must take part in the digest."""
    ones = {width: Structure({"a": np.eye(1, width, dtype=bool)[0]}) for width in (7, 8)}
    assert ones[7] != ones[8]
    assert Structure({"b": np.eye(1, 7, dtype=bool)[0]}) != ones[7]
    assert ones[7] != "not a structure"


@FEW
@given(plain, st.data())
def test_without_removes_exactly_those_units(structure, data):
    units = data.draw(st.lists(st.sampled_from(range(17)), unique=True))
    less = structure.without("c", units)
    assert list(less.kept("c")) == [u for u in structure.kept("c") if u not in units]
    assert list(less.kept("b")) == list(structure.kept("b"))
    assert structure.contains(less)


@FEW
@given(plain, plain)
def test_positions_say_where_the_units_sit(a, b):
    sub = a.intersect(b)
    for group in WIDTHS:
        np.testing.assert_array_equal(a.kept(group)[a.positions(sub, group)], sub.kept(group))


def test_counts_and_units():
    assert tiny().counts == {"a": 3, "b": 1}
    assert tiny().num_units() == 4
    assert list(tiny().kept("a")) == [0, 2, 3]


def test_a_structure_is_read_only_and_owns_its_masks():
    mask = np.ones(4, bool)
    structure = Structure({"a": mask})
    mask[0] = False
    assert structure.counts == {"a": 4}
    with pytest.raises(ValueError, match="read-only"):
        structure.masks["a"][0] = False
    with pytest.raises(TypeError):
        structure.masks["a"] = mask  # type: ignore[index]


def test_a_structure_travels_between_processes():
    copy = pickle.loads(pickle.dumps(tiny()))  # noqa: S301 - our own bytes, as Ray's workers exchange them
    assert copy == tiny()
    assert not copy.masks["a"].flags.writeable


# --- bits ------------------------------------------------------------------------------------


@FEW
@given(plain)
def test_bits_round_trip(structure):
    bits = structure.to_bits()
    assert [len(bits[g]) for g in WIDTHS] == [1, 1, 3]
    assert Structure.from_bits(bits, WIDTHS) == structure


def test_bits_are_most_significant_first():
    """Units 0, 2 and 3 of five: 10110 padded to 10110000 = 0xB0; unit 1 of two: 01 -> 0x40."""
    bits = tiny().to_bits()
    assert {g: b.tolist() for g, b in bits.items()} == {"a": [0xB0], "b": [0x40]}


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ({"a": [0xB0]}, "expected the groups"),
        ({"a": [0xB0], "b": [0x40], "z": [0]}, "expected the groups"),
        ({"a": [0xB0, 0], "b": [0x40]}, "'a': expected 1 bytes"),
        ({"a": [], "b": [0x40]}, "'a': expected 1 bytes"),
        ({"a": [[0xB0]], "b": [0x40]}, "'a': expected 1 bytes"),
        ({"a": [0xB4], "b": [0x40]}, "'a': a bit beyond its 5 units"),
        ({"a": [0xB0], "b": [0x41]}, "'b': a bit beyond its 2 units"),
    ],
)
def test_bits_that_fit_no_structure_are_refused(bits, said):
    packed = {group: np.array(values, np.uint8) for group, values in bits.items()}
    with pytest.raises(ValueError, match=said):
        Structure.from_bits(packed, {"a": 5, "b": 2})


def test_bits_of_another_type_are_refused():
    with pytest.raises(ValueError, match="float32"):
        Structure.from_bits({"a": np.zeros(1, np.float32)}, {"a": 5})


# --- layout ----------------------------------------------------------------------------------


def two_channels() -> Layout:
    """Two channels with 3 flattened inputs each, read by two fixed outputs."""
    return Layout({"c": 2}, {"w": (2, 6)}, {"w": (None, AxisRef("c", 3))}, {"c": 1})


def test_a_unit_owns_its_span():
    """Channel 1 of two owns the columns 3, 4 and 5."""
    layout = two_channels()
    full, sub = layout.full(), layout.full().without("c", [0])
    ((axis, take),) = layout.indices("w", full, sub)
    assert (axis, list(take)) == (1, [3, 4, 5])
    cut = layout.slice({"w": np.arange(12.0).reshape(2, 6)}, full, sub)
    np.testing.assert_array_equal(cut["w"], [[3, 4, 5], [9, 10, 11]])


def test_an_untouched_array_is_not_copied():
    weights = {"w": np.zeros((2, 6))}
    full = two_channels().full()
    assert two_channels().slice(weights, full, full)["w"] is weights["w"]


def test_slicing_to_units_that_are_not_there_is_our_own_bug():
    layout = two_channels()
    full = layout.full()
    with pytest.raises(AssertionError):
        layout.slice({"w": np.zeros((2, 3))}, full.without("c", [0]), full)


def test_a_layout_that_contradicts_itself_is_our_own_bug():
    with pytest.raises(AssertionError, match="w"):
        Layout({"c": 2}, {"w": (2, 5)}, {"w": (None, AxisRef("c", 3))}, {"c": 1})
    with pytest.raises(AssertionError, match="c"):
        Layout({"c": 2}, {"w": (2, 6)}, {"w": (None, AxisRef("c", 3))}, {"c": 3})


@pytest.mark.parametrize("case", CHAINS)
def test_slicing_is_plain_indexing_and_composes(case):
    layout = ARCHITECTURES[case].layout
    weights = dict(initial_state(ARCHITECTURES[case], 1).weights)

    @FEW
    @given(st.data())
    def check(data):
        full = layout.full()
        outer = data.draw(structures(layout))
        inner = data.draw(structures(layout, outer))
        once = layout.slice(weights, full, inner)
        twice = layout.slice(layout.slice(weights, full, outer), outer, inner)
        by_hand = fancy(weights, {g: np.flatnonzero(inner.masks[g]) for g in layout.widths})
        for name, array in once.items():
            np.testing.assert_array_equal(array, by_hand[name])
            np.testing.assert_array_equal(twice[name], array)
            assert array.shape == layout.shape(name, inner.counts)
        assert layout.num_parameters(inner.counts) == sum(a.size for a in once.values())

    check()


JOINED = Layout(
    {"a": 2, "b": 3},
    {"w": (4, 9)},
    {"w": (AxisRef("a", 2), (AxisRef("a"), AxisRef(None, 1), AxisRef("b", 2)))},
    {"a": 1, "b": 1},
)


def test_an_axis_of_joined_maps_is_cut_run_by_run():
    """Columns: a0 a1, one that is always there, b0 b0 b1 b1 b2 b2; rows: a0 a0 a1 a1."""
    whole = np.arange(36, dtype=np.float32).reshape(4, 9)
    sub = Structure({"a": [False, True], "b": [True, False, True]})
    cut = JOINED.slice({"w": whole}, JOINED.full(), sub)["w"]
    np.testing.assert_array_equal(cut, whole[2:][:, [1, 2, 3, 4, 7, 8]])
    assert JOINED.shape("w", sub.counts) == cut.shape


def test_the_rows_of_a_unit_are_found_on_every_axis():
    array = np.arange(36, dtype=np.float32).reshape(4, 9)
    places = list(JOINED.places("w", {"a": 2, "b": 3}))
    assert [(p.axis, p.group, p.start, p.num_units, p.span) for p in places] == [
        (0, "a", 0, 2, 2),
        (1, "a", 0, 2, 1),
        (1, "b", 3, 3, 2),
    ]
    np.testing.assert_array_equal(places[0].rows(array), array.reshape(2, 18))
    np.testing.assert_array_equal(places[2].rows(array)[1], array[:, 5:7].T.reshape(-1))
