"""Channels in multiples that runtimes are made for: what is kept, at which size, in every kind of run."""

import pytest
from small_models import ARCHITECTURES, random_shard, small_recipe, small_task

import fedhp
from fedhp.errors import ScenarioError
from fedhp.model.options import ModelConfig
from fedhp.model.shrinking import Shape, block_steps
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.pruning.schedule import Schedule
from fedhp.records.load import load_state
from fedhp.scenario.loading import load_scenario
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally

IMAGES = (3, 32, 32)
WIDER = {"cnn": [32, 64, 128, 512]}
CNN = architecture(ModelConfig("cnn", [40, 20, 10], 1), (1, 8, 8), 4).layout
ALIKE = Shape(CNN, dict.fromkeys(CNN.widths, 1.0), block_steps(CNN, 8))


def total(most):
    return lambda counts: sum(counts.values()) <= most


def test_roundings_and_what_they_leave_by_hand():
    """Of 70 units 40 may stay. At a fraction below .6, 40 f + 20 f + 10 f is 23 + 11 + 5 = 39; at .6 it is
    42. Down to eights: 16 and 8. The first lost more (16/23 < 8/11): 24 + 8 + 5 = 37 fits; for the second,
    24 + 16 + 5 does not. The dense units get the rest: 24 + 8 + 8 = 40.
    """
    assert ALIKE.steps == {"conv1": 8, "conv2": 8}
    assert ALIKE.largest(CNN.widths, total(40)) == {"conv1": 24, "conv2": 8, "fc1": 8}


def test_below_the_step_its_halves_are_kept():
    """A seventh of 40, 20 and 10 is 5, 2 and 1: 5 rounds down to 4 or up to 8; 2 is a half of a half of 8."""
    assert ALIKE.largest(CNN.widths, total(9)) == {"conv1": 4, "conv2": 2, "fc1": 3}
    assert ALIKE.largest(CNN.widths, total(4)) == {"conv1": 2, "conv2": 1, "fc1": 1}
    assert ALIKE.largest(CNN.widths, total(2)) is None


def test_what_is_there_may_stay_as_it_is():
    top = {"conv1": 13, "conv2": 9, "fc1": 3}
    assert ALIKE.largest(top, total(25)) == top
    assert (ALIKE.largest(top, total(24)) or {})["conv1"] in (8, 13)


def schedule(layout, target, round_to):
    """One whose groups weigh more and less, as those of real networks do."""
    shares = {group: 1 / (1 + n % 3) for n, group in enumerate(layout.widths)}
    prune = PruneConfig(target_compression=target, round_to=str(round_to))
    return Schedule(prune, Shape(layout, shares, block_steps(layout, round_to)))


def kept(layout, target, round_to):
    return schedule(layout, target, round_to).counts(1.0)


def is_kept(count, step, width, floor):
    """A multiple, a half of the step, or what there was or must be."""
    return count % step == 0 or count in (step // 2, step // 4, step // 8, width, floor)


@pytest.mark.parametrize("round_to", [4, 8, 16])
@pytest.mark.parametrize(
    ("name", "target"), [("cnn", 4), ("cnn", 10), ("resnet20", 3), ("resnet20", 10), ("vgg11", 10)]
)
def test_channels_are_multiples_and_the_target_is_met(name, target, round_to):
    """And no group that was rounded down has room for its next multiple."""
    layout = architecture(ModelConfig(name, WIDER.get(name, [])), IMAGES, 10).layout
    counts, before = (kept(layout, target, multiple) for multiple in (round_to, 1))
    full = layout.num_parameters(layout.widths)
    channels = set(layout.widths) - {"fc1"}
    assert all(is_kept(counts[g], round_to, layout.widths[g], layout.floors[g]) for g in channels)
    assert all(counts[g] % round_to == 0 for g in channels if before[g] >= round_to)
    assert all(abs(counts[g] - before[g]) < round_to for g in channels)
    assert layout.num_parameters(counts) <= full / target
    for group in (g for g in channels if counts[g] < before[g]):
        step = round_to
        while step > counts[group]:
            step //= 2
        more = {**counts, group: counts[group] + step}
        # Dense units took what was left: with no more than their own share of it, it would not fit either.
        if "fc1" in more:
            more["fc1"] = min(counts["fc1"], before["fc1"])
        assert layout.num_parameters(more) > full / target


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_the_schedule_falls_to_the_end_and_never_below(name):
    layout = architecture(ModelConfig(name), IMAGES, 10).layout
    rounded = schedule(layout, 5, 8)
    end, last = rounded.counts(1.0), layout.widths
    for progress in [n / 50 for n in range(51)]:
        counts = rounded.counts(progress)
        assert all(end[group] <= count <= last[group] for group, count in counts.items())
        last = counts
    assert last == end


@pytest.mark.parametrize("case", ["mlp-1-hidden", "mlp-3-hidden", "mlp-whole-inputs"])
def test_a_network_without_convolutions_has_nothing_to_round(case):
    assert block_steps(ARCHITECTURES[case].layout, 16) == {}


def test_units_of_several_channels_are_rounded_by_their_channels():
    """Group normalisation makes units of four channels: two of them are 8, four 16."""
    layout = ARCHITECTURES["resnet20-group"].layout
    assert set(block_steps(layout, 16).values()) == {4}
    assert set(block_steps(layout, 8).values()) == {2}
    assert block_steps(layout, 4) == {}


@pytest.mark.parametrize("marginal", [0.0, 0.9])
def test_a_device_trains_down_to_multiples(marginal):
    arch = architecture(ModelConfig("cnn", [20, 24, 16], 1), (1, 8, 8), 4)
    prune = PruneConfig(target_compression=3, round_to="4", marginal=marginal, blend=0.0)
    recipe = small_recipe(arch, TrainConfig(local_epochs=2, batch_size=8, device="cpu"), prune)
    shard = random_shard((1, 8, 8), 4, 120)
    update = train_locally(recipe, small_task(recipe, shard), shard)
    counts = update.state.structure.counts
    assert counts == recipe.schedule.counts(1.0)
    assert [counts[g] % 4 for g in ("conv1", "conv2")] == [0, 0]


def test_a_fleet_under_budgets_comes_to_multiples(tmp_path):
    """Of which one trains a part that is no larger than what is left in the end."""
    run = fedhp.simulate(
        "quickstart",
        tmp_path / "run",
        show=False,
        **{
            "rounds": 4,
            "data.max_train": 90,
            "train.local_epochs": 1,
            "model": {"name": "cnn", "widths": [16, 32, 32]},
            "fleet": {"num_clients": 3, "classes": [{"memory": "400KiB"}, {"name": "b", "memory": "90KiB"}]},
            "prune": {"target_compression": 2, "round_to": 8},
            "simulation.num_workers": 0,
        },
    )
    counts = load_state(run.folder)[0].structure.counts
    assert run.summary["budget_violations"] == 0
    assert counts["conv1"] in (8, 16)
    assert counts["conv2"] in (8, 16, 24)


@pytest.mark.parametrize("value", ["7", "0", "-8", "32", "yes", "8.0"])
def test_other_multiples_are_refused(value):
    with pytest.raises(ScenarioError, match=r"prune\.round_to must be one of .*1, 4, 8, 16, got"):
        load_scenario("cifar10", [f"prune.round_to={value}"])


def test_a_number_is_taken_as_it_is_written():
    assert load_scenario("cifar10", ["prune.round_to=8"]).prune.round_to == "8"
