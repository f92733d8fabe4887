"""The wire: exact round trips, and a refusal that names the field for everything that can be forged."""

import io
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from factories import STATISTICS, conv_layout, dense_layout, random_state, structure, update
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_models import ARCHITECTURES

from fedhp.data import Normalisation
from fedhp.errors import WireError
from fedhp.federation import wire
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.building import initial_state
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.training.method_names import PRUNING

LAYOUT = conv_layout(floor=2)
ASSIGNED = structure(LAYOUT, c=[0, 2], f=[0, 1, 3])
PROFILE = DeviceProfile("phone", 1 << 20, num_examples=50)
BRIEF = wire.Brief(
    '{"seed": 1}', (1, 8, 8), 10, Normalisation((0.25,), (1.5,)), methods=PRUNING, budgeted=False
)


@st.composite
def structures(draw):
    masks = {}
    for group, width in LAYOUT.widths.items():
        kept = draw(st.sets(st.integers(0, width - 1), min_size=LAYOUT.floors[group]))
        masks[group] = np.isin(np.arange(width), list(kept))
    return Structure(masks)


def good_reply() -> RecordDict:
    return wire.pack_update(update(random_state(LAYOUT, ASSIGNED), None, 20, client=3))


def unpack(content: RecordDict, num_local_test: int = 0):
    """Unpacks a reply of a client that announced as many held-out samples."""
    profile = replace(PROFILE, num_local_test=num_local_test)
    return wire.unpack_update(content, LAYOUT, 3, ASSIGNED, profile)


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def npy_claiming(header: str, data: bytes) -> bytes:
    """NumPy's format by hand: magic, version 1.0, little-endian header length, header, data."""
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def carrying(name: str, data: bytes, like: np.ndarray, stype: str = "numpy.ndarray") -> RecordDict:
    """A good reply but for one array, whose label says what is expected and whose bytes are given."""
    content = good_reply()
    content.array_records["model"][name] = Array(
        dtype=str(like.dtype), shape=like.shape, stype=stype, data=data
    )
    return content


@settings(max_examples=30, deadline=None)
@given(structures(), st.integers(0, 2**32 - 1))
def test_a_state_comes_back_exactly(kept, seed):
    state = random_state(LAYOUT, kept, seed)
    state.weights["f.weight"].flat[0] = np.float32(1e-45)  # the smallest denormal
    back = wire.unpack_state(wire.pack_state(state), LAYOUT, within=LAYOUT.full())
    assert back.structure == kept
    for name, array in state.weights.items():
        assert back.weights[name].dtype == np.float32
        assert back.weights[name].shape == array.shape
        assert back.weights[name].tobytes() == array.tobytes()


def test_a_transposed_view_arrives_in_its_own_order():
    state = random_state(LAYOUT, LAYOUT.full())
    turned = {**state.weights, "f.weight": np.asfortranarray(state.weights["f.weight"])}
    back = wire.unpack_state(wire.pack_state(type(state)(turned, state.structure)), LAYOUT)
    assert np.array_equal(back.weights["f.weight"], state.weights["f.weight"])


def test_what_arrives_cannot_be_written_to():
    back = wire.unpack_state(wire.pack_state(random_state(LAYOUT, LAYOUT.full())), LAYOUT)
    with pytest.raises(ValueError, match="read-only"):
        back.weights["c.bias"][0] = 1


def test_only_the_header_that_numpy_writes_by_itself_is_accepted():
    bias = np.array([1.5, -2.5], np.float32)
    assert unpack(carrying("c.bias", npy(bias, (1, 0)), bias)).state.weights["c.bias"].tolist() == [1.5, -2.5]
    with pytest.raises(WireError, match=r"c\.bias"):
        unpack(carrying("c.bias", npy(bias, (2, 0)), bias))


def test_an_update_comes_back_exactly():
    sent = update(random_state(LAYOUT, structure(LAYOUT, c=[0, 2], f=[1, 3])), ASSIGNED, 50, client=3)
    got = unpack(wire.pack_update(sent))
    assert (got.client, got.num_examples, got.statistics) == (3, 50, STATISTICS)
    assert got.assigned == ASSIGNED
    assert got.state.structure == sent.state.structure


@pytest.mark.parametrize("budget", [None, 1, 2**40])
@pytest.mark.parametrize("partition", [None, 0, 7])
def test_a_profile_comes_back_exactly(budget, partition):
    profile = DeviceProfile(
        "phone", budget, 12, own_data=partition is None, num_local_test=3, spread=0.25, cores=budget and 4
    )
    assert wire.unpack_profile(wire.pack_profile(profile, partition)) == (profile, partition)


def test_a_brief_and_a_task_come_back_exactly():
    state = random_state(LAYOUT, ASSIGNED)
    task = wire.pack_task(wire.pack_state(state), BRIEF, 4)
    assert wire.unpack_brief(wire.pack_query(BRIEF)) == BRIEF
    assert wire.unpack_brief(task) == BRIEF
    features = Normalisation(tuple(map(float, range(8))), (0.5,) * 8, axis=2)
    other = replace(BRIEF, normalisation=features, label_names=("a", "b"), shares=(1.0, 0.25))
    assert wire.unpack_brief(wire.pack_query(other)) == other
    server_round, got = wire.unpack_task(task, LAYOUT)
    assert (server_round, got.structure) == (4, ASSIGNED)


def test_the_bytes_of_a_reply_are_those_of_its_arrays():
    """Each array is its raw bytes after a header of 128 bytes (NumPy pads it to a multiple of 64).

    f.weight of (3, 2*4) float32: 96; c.weight of (2, 2, 3, 3): 144; c.bias 8; head (2, 3): 24; and one byte
    of bits per group: 274; the scores of the kept units, another 4 bytes each; and 8 headers.
    """
    assert wire.update_bytes(good_reply()) == 274 + 4 * 5 + 8 * 128


def test_the_good_reply_that_the_refusals_start_from_is_accepted():
    assert unpack(good_reply()).num_examples == 20


@pytest.mark.parametrize("name", ["f.weight", "structure.c"])
def test_a_missing_array_is_refused_by_name(name):
    content = good_reply()
    del content.array_records["model"][name]
    with pytest.raises(WireError, match=rf"missing \['{name}'\]"):
        unpack(content)


def test_an_unknown_array_is_refused_by_name():
    content = good_reply()
    content.array_records["model"]["backdoor"] = Array(np.zeros(1, np.float32))
    with pytest.raises(WireError, match=r"unknown \['backdoor'\]"):
        unpack(content)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((3, 7), np.float32),
        np.zeros((8, 3), np.float32),
        np.zeros(24, np.float32),
        np.zeros((1, 3, 8), np.float32),
        np.zeros((3, 8), np.float64),
        np.zeros((3, 8), np.int32),
        np.zeros((3, 8), ">f4"),
        np.zeros((3, 8), "V4"),
        np.asfortranarray(np.zeros((3, 8), np.float32)),
        np.full((3, 8), np.nan, np.float32),
        np.full((3, 8), np.inf, np.float32),
        np.full((3, 8), -np.inf, np.float32),
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}{'F' if a.flags.f_contiguous else ''}{a.flat[0]}",
)
def test_an_array_of_another_kind_is_refused_by_name(bad):
    with pytest.raises(WireError, match=r"f\.weight"):
        unpack(carrying("f.weight", npy(bad), np.zeros((3, 8), np.float32)))


RAW = np.arange(24, dtype=np.float32).reshape(3, 8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        npy(RAW)[:-1],
        npy(RAW)[:60],
        npy(RAW) + b"\0",
        RAW.tobytes(),
        b"\0" + npy(RAW)[1:],
        b"\x93NUMPY\x09\x00" + npy(RAW)[8:],
        npy(RAW, (3, 0)),
        b"\x80\x04" + npy(RAW)[2:],
    ],
    ids=[
        "empty",
        "one byte short",
        "header only",
        "one byte more",
        "no header",
        "wrong magic",
        "unknown version",
        "version 3",
        "pickle",
    ],
)
def test_damaged_bytes_are_refused_by_name(data):
    with pytest.raises(WireError, match=r"f\.weight"):
        unpack(carrying("f.weight", data, RAW))


def test_another_serialisation_is_refused():
    with pytest.raises(WireError, match=r"f\.weight.*torch"):
        unpack(carrying("f.weight", npy(RAW), RAW, stype="torch.Tensor"))


def test_a_header_that_claims_a_huge_shape_is_refused_and_allocates_nothing():
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576)}"
    content = carrying("f.weight", npy_claiming(header, RAW.tobytes()), RAW)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=r"f\.weight.*175 bytes"):
            unpack(content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("descr", ["'|O'", "'O'", "[('a', '<f4')]", "'<M8[s]'", "'no type'", "42"])
def test_a_header_of_another_type_is_refused_and_nothing_unpickled(descr):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (3, 8)}}"
    with pytest.raises(WireError, match=r"f\.weight"):
        unpack(carrying("f.weight", npy_claiming(header, RAW.tobytes()), RAW))


@settings(max_examples=150, deadline=None)
@example("(")
@example("'''")
@example("{[]: 1}")
@example("  {}\n {}")
@example("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 8L)}")
@example("-" * 900 + "1")
@example("{1: 1, 'a': 2}")
@given(st.text(st.characters(codec="latin-1"), max_size=60))
def test_no_header_gets_past_as_anything_but_a_wire_error(header):
    """A client must not be able to stop the server by what it writes into a header."""
    with pytest.raises(WireError, match=r"f\.weight"):
        unpack(carrying("f.weight", npy_claiming(header, RAW.tobytes()), RAW))


def with_bits(group: str, bits: list[int]) -> RecordDict:
    packed = np.packbits(np.array(bits, np.uint8))
    return carrying(f"structure.{group}", npy(packed), packed)


def test_a_bit_beyond_the_groups_width_is_refused():
    """Group f has 5 units, so that 3 bits of its byte stay zero."""
    with pytest.raises(WireError, match=r"'f'.*beyond"):
        unpack(with_bits("f", [1, 1, 0, 1, 0, 0, 0, 1]))


def test_a_unit_that_was_not_assigned_is_refused():
    """Of group f the units 0, 1, 3 were assigned; 0, 2, 3 are as many and so of the right shapes."""
    with pytest.raises(WireError, match="not assigned"):
        unpack(with_bits("f", [1, 0, 1, 1, 0]))


def test_fewer_units_than_the_floor_are_refused():
    with pytest.raises(WireError, match=r"structure\.f: 1 units, below the floor 2"):
        unpack(with_bits("f", [1, 0, 0, 0, 0]))


@pytest.mark.parametrize(
    "packed", [np.zeros(2, np.uint8), np.zeros(1, np.int8), np.zeros((1, 1), np.uint8), np.zeros(1, bool)]
)
def test_bits_of_another_kind_are_refused_by_name(packed):
    with pytest.raises(WireError, match=r"structure\.f"):
        unpack(carrying("structure.f", npy(packed), packed))


def with_metric(name: str, value) -> RecordDict:
    content = good_reply()
    content.metric_records["metrics"][name] = value
    return content


@pytest.mark.parametrize("value", [0, -1, 51, 2**62, 20.0, [20], np.float64(20)])
def test_a_number_of_examples_that_was_not_announced_is_refused(value):
    """The profile announced 50."""
    with pytest.raises(WireError, match="num-examples"):
        unpack(with_metric("num-examples", value))


def test_a_bool_is_no_number_of_examples():
    """Flower's record refuses a bool at the sender; a forged one is refused by the receiver."""
    content = good_reply()
    content.metric_records["metrics"]._data["num-examples"] = True
    with pytest.raises(WireError, match="num-examples"):
        unpack(content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train-loss", float("nan")),
        ("train-loss", float("inf")),
        ("train-loss", -1.0),
        ("train-loss", 1),
        ("train-loss", [0.5]),
        ("train-loss", np.float64(0.5)),
        ("accuracy", float("nan")),
        ("gradient-norm", float("inf")),
        ("seconds", float("-inf")),
        ("memory-predicted-bytes", -1),
        ("memory-measured-bytes", 1.5),
        ("batch-size-last", 8.0),
        pytest.param("batch-size-first", 10**400, id="beyond-float"),
    ],
)
def test_a_statistic_that_is_no_finite_number_is_refused_by_name(name, value):
    with pytest.raises(WireError, match=name):
        unpack(with_metric(name, value))


LOCAL = {"num-local-test": 4, "local-accuracy-global": 0.25, "local-accuracy-personal": 1.0}


def with_local(**changes) -> RecordDict:
    """A good reply of a client with held-out samples, but for these fields; None leaves one out."""
    content = good_reply()
    metrics = content.metric_records["metrics"]
    for name, value in {**LOCAL, **{key.replace("_", "-"): value for key, value in changes.items()}}.items():
        if value is None:
            metrics.pop(name, None)
        else:
            metrics[name] = value
    return content


def test_accuracies_on_held_out_samples_come_back_exactly_where_there_are_any():
    measured = replace(STATISTICS, num_local_test=4, local_accuracy_global=0.25, local_accuracy_personal=1.0)
    watched = replace(STATISTICS, num_shortages=2, memory_left_bytes=7_000_000)
    for statistics in (STATISTICS, measured, watched):
        sent = replace(update(random_state(LAYOUT, ASSIGNED), None, 20, client=3), statistics=statistics)
        assert unpack(wire.pack_update(sent), statistics.num_local_test).statistics == statistics
    assert unpack(with_local(), 4).statistics == measured


@pytest.mark.parametrize("announced", [0, 3, 5, 2**39])
def test_another_number_of_held_out_samples_than_announced_is_refused(announced):
    """It weighs the client's accuracies in the mean of the round."""
    with pytest.raises(WireError, match=rf"num-local-test is 4, expected the {announced} that"):
        unpack(with_local(), announced)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_local_test": None}, "num-local-test: expected int, got None"),
        ({"num_local_test": -1}, "num-local-test: expected a number from 0"),
        ({"num_local_test": 4.0}, "num-local-test: expected int"),
        ({"num_local_test": 0}, "num-local-test: is 0, and of the figures .* 'local-accuracy-personal'"),
        ({"local_accuracy_global": None}, r"num-local-test: is 4, .* \['local-accuracy-personal'\]"),
        ({"local_accuracy_personal": None}, r"num-local-test: is 4, .* \['local-accuracy-global'\]"),
        ({"local_accuracy_global": 1.01}, "local-accuracy-global: expected a share from 0 to 1, got 1.01"),
        ({"local_accuracy_personal": 2.0}, "local-accuracy-personal: expected a share"),
        ({"local_accuracy_personal": -0.1}, "local-accuracy-personal: expected a number from 0"),
        ({"local_accuracy_global": float("nan")}, "local-accuracy-global"),
        ({"local_accuracy_global": 1}, "local-accuracy-global: expected float"),
    ],
)
def test_accuracies_on_held_out_samples_that_cannot_be_are_refused_by_name(changes, said):
    with pytest.raises(WireError, match=said):
        unpack(with_local(**changes), 4)


@pytest.mark.parametrize("name", ["num-examples", "train-loss", "seconds", "batch-size-first"])
def test_a_missing_metric_is_refused_by_name(name):
    content = good_reply()
    del content.metric_records["metrics"][name]
    with pytest.raises(WireError, match=name):
        unpack(content)


def test_missing_records_are_refused_by_name():
    content = good_reply()
    with pytest.raises(WireError, match="no array record 'model'"):
        unpack(RecordDict({"metrics": content["metrics"]}))
    with pytest.raises(WireError, match="no metric record 'metrics'"):
        unpack(RecordDict({"model": content["model"]}))
    with pytest.raises(WireError, match="no array record 'model'"):
        unpack(RecordDict({"model": MetricRecord(), "metrics": content["metrics"]}))
    with pytest.raises(WireError, match="missing"):
        unpack(RecordDict({"model": ArrayRecord(), "metrics": content["metrics"]}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device-class", 3),
        ("device-class", ""),
        ("device-class", "  "),
        ("device-class", "n" * 65),
        ("device-class", "camera\nround 9: accuracy 99.9%"),
        ("device-class", "\x1b[2Jcamera"),
        ("device-class", "camera\u2028"),
        ("memory-bytes", 2**60),
        ("partition-id", -2),
        ("memory-bytes", 0),
        ("memory-bytes", -2),
        ("memory-bytes", 1.5),
        ("num-examples", -1),
        ("num-examples", 2**40),
        ("num-examples", True),
        ("num-local-test", -1),
        ("num-local-test", 2**40),
        ("num-local-test", 3.0),
        ("own-data", 1),
        ("partition-id", "0"),
        ("spread", -0.5),
        ("spread", float("nan")),
        ("spread", 1),
        ("cores", 0),
        ("cores", 2.0),
    ],
)
def test_a_profile_out_of_range_is_refused_by_field(name, value):
    content = wire.pack_profile(PROFILE, 0)
    content.config_records["profile"][name] = value
    with pytest.raises(WireError, match=name):
        wire.unpack_profile(content)


@pytest.mark.parametrize(
    "name",
    [
        "device-class",
        "memory-bytes",
        "num-examples",
        "num-local-test",
        "own-data",
        "partition-id",
        "spread",
        "cores",
    ],
)
def test_a_profile_without_a_field_is_refused_by_field(name):
    content = wire.pack_profile(PROFILE, 0)
    del content.config_records["profile"][name]
    with pytest.raises(WireError, match=name):
        wire.unpack_profile(content)


def test_a_message_without_its_record_is_refused():
    with pytest.raises(WireError, match="no config record 'profile'"):
        wire.unpack_profile(RecordDict({"profile": MetricRecord()}))
    with pytest.raises(WireError, match="no config record 'task'"):
        wire.unpack_brief(RecordDict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scenario", 1),
        ("input-shape", [1, 0, 8]),
        ("input-shape", [1.0, 8.0]),
        ("input-shape", 8),
        ("num-classes", "10"),
        ("mean", 0.5),
        ("mean", [0.1, 0.2]),
        ("mean", [float("nan")]),
        ("std", [0.0]),
        ("std", [float("inf")]),
        ("std", []),
        ("label-names", "ab"),
        ("shares", [0.0]),
        ("shares", [1.5]),
        ("shares", [1]),
        ("shares", [float("nan")]),
        ("label-names", [1, 2]),
        ("normalised-axis", 3),
        ("normalised-axis", -1),
        ("methods", 1),
        ("methods", [1]),
        ("budgeted", "yes"),
    ],
)
def test_a_brief_of_other_types_is_refused_by_field(name, value):
    content = wire.pack_query(BRIEF)
    content.config_records["task"][name] = value
    with pytest.raises(WireError, match=name):
        wire.unpack_brief(content)


def test_a_task_without_a_round_is_refused():
    layout = dense_layout()
    content = wire.pack_task(wire.pack_state(random_state(layout, layout.full())), BRIEF, 1)
    content["task"] = ConfigRecord()
    with pytest.raises(WireError, match="server-round"):
        wire.unpack_task(content, layout)


def test_statistics_that_no_samples_have_are_refused_by_name():
    """A mean square below the square of the mean would be a variance below zero."""
    arch = ARCHITECTURES["vgg11"]
    state = initial_state(arch, 0)
    for square, fine in ((1.0, True), (0.5, False), (-1.0, False)):
        mean = np.full(3, -0.9, np.float32)
        weights = {
            **state.weights,
            "norm1.running_mean": mean,
            "norm1.running_square": np.full(3, square, np.float32),
        }
        record = wire.pack_state(ModelState(weights, state.structure))
        if fine:
            wire.unpack_state(record, arch.layout)
            continue
        with pytest.raises(WireError, match=r"norm1.running_square: is below the square of the mean"):
            wire.unpack_state(record, arch.layout)
