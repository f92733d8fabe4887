"""When to prune and how much; also the seeds and the devices, which need little."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import ARCHITECTURES, FEW

from fedhp.errors import ScenarioError
from fedhp.fleet.devices import DeviceClassConfig, FleetConfig, assign_classes
from fedhp.model.options import ModelConfig
from fedhp.model.shrinking import Shape
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.pruning.schedule import Schedule, scheduled_size
from fedhp.seeds import derive, generator
from fedhp.sizes import format_size, parse_size

FOUR_CUTS = PruneConfig(target_compression=5, start=0.2, end=0.6, cuts=4)
LAYOUT = architecture(ModelConfig("mlp", [30, 10], 3, prune_inputs=False), (1, 4, 4), 5).layout
ALIKE = Shape(LAYOUT, {"fc1": 1.0, "fc2": 1.0})


# --- size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "size"),
    [
        (0.0, 1.0),
        (0.2, 1.0),
        (0.2999, 1.0),
        (0.3, 0.5375),
        (0.3999, 0.5375),
        (0.4, 0.3),
        (0.5, 0.2125),
        (0.6, 0.2),
        (1.0, 0.2),
    ],
)
def test_the_cubic_in_four_steps(progress, size):
    """f = 1/5. After one cut of four .2 + .8 * (3/4)^3 = .5375, after two .2 + .8 / 8 = .3, after three
    .2 + .8 / 64 = .2125, after four .2; between cuts nothing changes.
    """
    assert scheduled_size(FOUR_CUTS, progress) == pytest.approx(size, abs=1e-12)


@FEW
@given(st.floats(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_size_never_grows_and_ends_at_the_target(target, one, other):
    config = PruneConfig(target_compression=target)
    early, late = sorted((one, other))
    assert 1 >= scheduled_size(config, early) >= scheduled_size(config, late) >= 1 / target
    assert scheduled_size(config, 0) == 1
    assert scheduled_size(config, 1) == pytest.approx(1 / target)


@pytest.mark.parametrize("cuts", [1, 3, 7, 40])
def test_every_cut_falls_where_it_is_due(cuts):
    """Progress arrives as a ratio of integers; rounding must not put a cut off by a step."""
    config = PruneConfig(target_compression=8, start=0.1, end=0.7, cuts=cuts)
    for cut in range(cuts + 1):
        due = 0.1 + 0.6 * cut / cuts
        assert scheduled_size(config, due) == pytest.approx(1 / 8 + 7 / 8 * (1 - cut / cuts) ** 3)


@pytest.mark.parametrize(
    "values",
    [
        {"target_compression": 0.5},
        {"target_compression": float("nan")},
        {"start": 0.6, "end": 0.6},
        {"start": -0.1},
        {"end": 1.1},
        {"cuts": 0},
        {"marginal": 1.0},
        {"marginal": -0.1},
    ],
)
def test_impossible_schedules_are_refused(values):
    with pytest.raises(ScenarioError, match=f"prune.{next(iter(values))}"):
        PruneConfig(**values)


# --- counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_counts_follow_the_size_down_to_the_target(case):
    layout = ARCHITECTURES[case].layout
    full = layout.num_parameters(layout.widths)
    config = PruneConfig(target_compression=2.5, start=0, end=1, cuts=10)
    shape = Shape(layout, {group: 1 / (n + 1) for n, group in enumerate(layout.widths)})
    previous = dict(layout.widths)
    for progress in (0, 0.1, 0.5, 0.8, 1):
        counts = Schedule(config, shape).counts(progress)
        assert layout.num_parameters(counts) <= scheduled_size(config, progress) * full
        assert all(layout.floors[g] <= counts[g] <= previous[g] for g in counts)
        previous = counts
    assert layout.num_parameters(counts) <= full / 2.5


def test_nothing_may_go_when_the_target_is_one():
    schedule = Schedule(PruneConfig(target_compression=1), ALIKE)
    assert schedule.counts(1) == {"fc1": 30, "fc2": 10}


def test_floors_outweigh_an_unreachable_target():
    schedule = Schedule(PruneConfig(target_compression=1000), ALIKE)
    assert schedule.counts(1) == {"fc1": 3, "fc2": 3}


def test_counts_at_a_fraction():
    """Half of 30 and 10 are 15 and 5; a twentieth would be 1 and 0, so that the floors, 3, hold."""
    assert ALIKE.counts(0.5, LAYOUT.widths) == {"fc1": 15, "fc2": 5}
    assert ALIKE.counts(0.05, LAYOUT.widths) == {"fc1": 3, "fc2": 3}
    assert ALIKE.counts(0, LAYOUT.widths) == {"fc1": 3, "fc2": 3}
    assert ALIKE.counts(1, {"fc1": 2, "fc2": 9}) == {"fc1": 2, "fc2": 9}


def test_a_light_group_shrinks_by_the_root():
    """At a quarter 30 * .25 = 7 remain of the heavy group and 10 * sqrt(.25) = 5 of the light one."""
    shape = Shape(LAYOUT, {"fc1": 1.0, "fc2": 0.5})
    assert shape.counts(0.25, LAYOUT.widths) == {"fc1": 7, "fc2": 5}


def test_the_result_is_the_callers_own():
    schedule = Schedule(PruneConfig(target_compression=4), ALIKE)
    schedule.counts(1)["fc1"] = 99
    assert schedule.counts(1)["fc1"] < 30


@FEW
@given(st.integers(1, 30), st.integers(1, 10), st.integers(0, 800), st.sampled_from([1.0, 0.5, 0.05]))
def test_the_largest_counts_are_maximal(first, second, allowed, share):
    """Against trying every fraction k / 2n, with n units in the widest group, from the largest down."""
    top = {"fc1": first, "fc2": second}
    shape = Shape(LAYOUT, {"fc1": 1.0, "fc2": share})

    def fits(counts):
        return LAYOUT.num_parameters(counts) <= allowed

    steps = 2 * max(top.values())
    tried = [shape.counts(k / steps, top) for k in range(steps, -1, -1)]
    assert tried[0] == top
    wanted = next((counts for counts in tried if fits(counts)), None)
    assert shape.largest(top, fits) == wanted


def test_the_target_must_leave_room_for_the_floors():
    """Full: 16*30+30 + 30*10+10 + 10*5+5 = 875; smallest: 16*3+3 + 3*3+3 + 3*5+5 = 83; 875/83 = 10.54."""
    Schedule(PruneConfig(target_compression=10.5), ALIKE).check_target()
    with pytest.raises(ScenarioError, match=r"83 of 875 parameters \(10.5x\)"):
        Schedule(PruneConfig(target_compression=10.6), ALIKE).check_target()


def test_floors_of_whole_normalisation_groups_are_told_with_the_key_to_change():
    """8 channels are 2 units of 4: at a floor of 2 nothing can go, at 1 half of the channels."""

    def schedule(floor):
        layout = architecture(ModelConfig("conv1d", [8, 8], floor, norm="group"), (1, 3, 16), 4).layout
        assert layout.smallest() == {"conv1": floor, "conv2": floor}
        return Schedule(PruneConfig(target_compression=2), Shape(layout, dict.fromkeys(layout.widths, 1.0)))

    schedule(1).check_target()
    with pytest.raises(ScenarioError, match=r"\(1\.0x\); lower prune\.target_compression or model\.floor"):
        schedule(2).check_target()


# --- seeds -----------------------------------------------------------------------------------


def test_seeds_are_the_same_in_every_process():
    """Python's own hash differs from process to process; a run must not."""
    code = "from fedhp.seeds import derive; import sys; sys.stdout.write(str(derive(3, 'batches', 1, 2)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == derive(3, "batches", 1, 2)


def test_seeds_differ_by_every_label_and_its_type():
    seeds = [
        derive(0),
        derive(1),
        derive(0, "a"),
        derive(0, "b"),
        derive(0, "a", 1),
        derive(0, "a", "1"),
        derive(0, 1, "a"),
        derive(0, 11),
        derive(0, 1, 1),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_and_do_not_share_their_stream():
    first, again, other = (generator(0, label).integers(0, 2**62, 8) for label in ("a", "a", "b"))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


# --- devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512KiB", 524_288),
        (" 4 MiB ", 4_194_304),
        ("1.5MB", 1_500_000),
        ("2gib", 2_147_483_648),
        ("1GB", 10**9),
        (".5KB", 500),
        ("7B", 7),
        (300, 300),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-4MiB", "4 bananas", "MiB", "1..5MB", "0.4B", "1e6", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ScenarioError, match="not a memory size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (4 * 2**20, "4.0 MiB"), (3 * 2**29, "1.50 GiB")],
)
def test_sizes_are_written(num_bytes, text):
    assert format_size(num_bytes) == text


def classes(*shares: float) -> list[DeviceClassConfig]:
    return [DeviceClassConfig(f"class{n}", share) for n, share in enumerate(shares)]


def counts_of(shares: tuple[float, ...], num_clients: int) -> list[int]:
    given_out = [entry.name for entry in assign_classes(FleetConfig(num_clients, classes(*shares)))]
    assert len(given_out) == num_clients
    return [given_out.count(f"class{n}") for n in range(len(shares))]


def test_classes_are_interleaved():
    """Shares 2 : 1 : 1. Lags after each client: (.5 .25 .25), (0 .5 .5), (.5 -.25 .75), (1 0 0)."""
    fleet = FleetConfig(8, classes(2, 1, 1))
    assert [entry.name[-1] for entry in assign_classes(fleet)] == list("01200120")


@FEW
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 60))
def test_classes_get_their_shares(shares, num_clients):
    for count, share in zip(counts_of(tuple(shares), num_clients), shares, strict=True):
        assert abs(count - num_clients * share / sum(shares)) < 1.5


def test_a_class_of_the_fleet():
    assert DeviceClassConfig("a", 1.0, "2KiB").memory_bytes == 2048
    for bad in ({"share": 0.0}, {"memory": "lots"}):
        with pytest.raises(ScenarioError):
            DeviceClassConfig("a", **bad)


def test_impossible_fleets_are_refused():
    with pytest.raises(ScenarioError, match="num_clients"):
        FleetConfig(0)
    with pytest.raises(ScenarioError, match="each of another name; got a, a"):
        FleetConfig(2, [DeviceClassConfig("a"), DeviceClassConfig("a")])
    with pytest.raises(ScenarioError, match=r"one or more, .*; got none"):
        FleetConfig(2, [])
