"""Notes before a run: the same for a fleet and for one device, and none where nothing stands out."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import STATISTICS

import fedhp
from fedhp.aggregation.assignment import fit_counts
from fedhp.data import data_notes, open_dataset
from fedhp.model.structure import Structure
from fedhp.records.rows import ClientReport, RoundReport
from fedhp.run.advice import LossNotes, cut_at_the_start, few_held_out, odd_spreads, small_budgets
from fedhp.scenario.loading import load_scenario, shipped_scenarios
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario
from fedhp.training.options import TrainConfig

SMALL = {
    "rounds": 1,
    "train.epochs": 1,
    "fleet": {"num_clients": 4, "classes": [{"name": "gateway", "memory": "256KiB"}]},
    "simulation.num_workers": 0,
}
ALL_EQUAL = "all training samples are equal in double precision, in which they are read: "


def own(folder: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    """Writes data of one's own, of which the first 20 rows are held out too, and returns what names it."""
    file = folder / "mine.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return {"data.name": "npz", "data.root": str(file)}


def noise(num_rows: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_rows, 4, 4), np.uint8)


def told(verb: str, folder: Path, **overrides) -> str:
    """Runs or trains, and returns the record's events."""
    run = {"run": fedhp.simulate, "train": fedhp.train}[verb]("quickstart", folder, **{**SMALL, **overrides})
    assert run.summary["status"] == "finished"
    return (folder / "events.log").read_text(encoding="utf-8")


# The data


def of_the_data(folder: Path, images: np.ndarray, labels: np.ndarray) -> list[str]:
    values = own(folder, images, labels)
    return list(data_notes(open_dataset(load_scenario("quickstart", values=values).data)))


def test_of_data_with_samples_of_every_class_there_is_nothing_to_say(tmp_path):
    assert of_the_data(tmp_path, noise(), np.arange(200) % 3) == []
    assert list(data_notes(open_dataset(load_scenario("quickstart").data))) == []


def test_the_classes_that_training_never_shows_are_counted_in_the_held_out_rows(tmp_path):
    """Labels 1, 2, 3 in the training rows: 0 is missing, which no held-out row has either."""
    (note,) = of_the_data(tmp_path, noise(), np.arange(200) % 3 + 1)
    assert note.startswith("no training sample has label 0, of 0 to 3; 0 of 20 held-out samples have.")


def test_a_single_class_is_noted(tmp_path):
    (note,) = of_the_data(tmp_path, noise(), np.zeros(200, int))
    assert note.startswith("all training samples have label 0: ")


def test_a_single_class_is_noted_and_so_are_those_below_its_label(tmp_path):
    first, second = of_the_data(tmp_path, noise(), np.full(200, 2))
    assert first.startswith("no training sample has label 0, 1, of 0 to 2")
    assert second.startswith("all training samples have label 2: ")


@pytest.mark.parametrize(("row", "equal"), [(None, True), (0, False), (150, False), (199, False)])
def test_samples_that_are_all_equal_are_noted_but_not_where_one_value_of_one_row_differs(
    tmp_path, row, equal
):
    """Rows 150 and 199 are compared in other slices than the first rows. Pixels that differ stay constant."""
    images = np.tile(np.arange(16, dtype=np.uint8).reshape(1, 4, 4), (200, 1, 1))
    if row is not None:
        images[row, 3, 2] += 1
    found = of_the_data(tmp_path, images, np.arange(200) % 3)
    assert [note.startswith(ALL_EQUAL) for note in found] == [True] * equal


@pytest.mark.parametrize("verb", ["run", "train"])
def test_a_run_and_a_training_note_the_same_of_the_data(tmp_path, verb):
    values = own(tmp_path, np.full((200, 4, 4), 7, np.uint8), np.ones(200, int))
    events = told(verb, tmp_path / "record", **values)
    assert "no training sample has label 0, of 0 to 1; 0 of 20 held-out samples have" in events
    assert "all training samples have label 1: " in events
    assert ALL_EQUAL in events


# Budgets


def of_budgets(chosen: Scenario, input_shape: tuple[int, ...]) -> list[str]:
    recipe = recipe_of(chosen, input_shape, 10)
    budgets = {kind.name: kind.memory_bytes for kind in chosen.fleet.classes}
    return list(small_budgets(recipe, recipe.memory_model(1), budgets))


def of_the_start(chosen: Scenario, input_shape: tuple[int, ...]) -> list[str]:
    recipe = recipe_of(chosen, input_shape, 10)
    budgets = {kind.name: kind.memory_bytes for kind in chosen.fleet.classes}
    return list(cut_at_the_start(recipe, recipe.memory_model(1), budgets))


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_every_class_of_a_shipped_scenario_can_train_most_of_the_target(name):
    """But for the fleet that is made to be unequal: its weakest class holds little."""
    scenario = load_scenario(name)
    input_shape = {"digits": (1, 8, 8), "npz": (1, 9, 128)}.get(scenario.data.name, (1, 28, 28))
    noted = [note.partition(": ")[0] for note in of_budgets(scenario, input_shape)]
    assert noted == (["sensor"] if name == "unequal_fleet" else [])
    assert of_the_start(scenario, input_shape) == []


def test_a_class_that_can_train_little_of_the_target_is_named_with_what_it_holds():
    """2 units in each of 64-128-64's groups leave 2*3 + 2*3 + 10*3 = 42 of 17,226; a sixth would be 2,871."""
    fleet = {"fleet": {"classes": [{"name": "mote", "memory": "1KiB"}, {"name": "big", "memory": "1MiB"}]}}
    (note,) = of_budgets(load_scenario("quickstart", values=fleet), (1, 8, 8))
    assert note.startswith("mote: 1.0 KiB can train 42 parameters, the target is 2,8")


@pytest.mark.parametrize(
    ("least", "most", "noted"),
    [("1KiB", "1MiB", ["mote"]), ("16KiB", "1MiB", []), ("16KiB", "32KiB", ["the model starts at"])],
)
def test_without_a_target_only_the_largest_budget_must_hold_the_model(least, most, noted):
    """Dense, 64-128-64-10 takes 17,226 parameters, which 1 MiB can train; their weights alone fill 67 KiB.

    Of a smaller budget, a hundredth of them is enough, 172: in 1 KiB there are 42, in 16 KiB 4 bytes for each
    of 4,096, of which weights, gradients and momentum leave less than 1,366.
    """
    fleet = {"fleet": {"classes": [{"name": "mote", "memory": least}, {"name": "big", "memory": most}]}}
    chosen = load_scenario("quickstart", values={**fleet, "prune.target_compression": 1})
    found = [*of_budgets(chosen, (1, 8, 8)), *of_the_start(chosen, (1, 8, 8))]
    assert [note.startswith(name) for note, name in zip(found, noted, strict=True)] == [True] * len(noted)


@pytest.mark.parametrize(
    ("verb", "overrides", "named"),
    [
        (
            "run",
            {"fleet": {"num_clients": 4, "classes": [{"name": "mote", "memory": "1KiB"}]}},
            "class 'mote'",
        ),
        ("train", {"memory.budget": "1KiB"}, "memory.budget"),
    ],
)
def test_a_run_and_a_training_note_once_a_budget_in_which_the_model_starts_nearly_empty(
    tmp_path, verb, overrides, named
):
    """One note alone says to what such a budget is to be raised."""
    events = told(verb, tmp_path / "small", **overrides)
    assert f"compression is 6: {named} holds 42 of its 17,226 parameters" in events
    assert events.lower().count("raise ") == 1
    assert "to start from all" not in told(verb, tmp_path / "large")


def test_a_strategy_without_budgets_notes_none(tmp_path):
    fleet = {"fleet": {"num_clients": 4, "classes": [{"name": "mote", "memory": "1KiB"}]}}
    events = told("run", tmp_path / "dense", **fleet, **{"strategy.name": "dense"})
    assert "can train" not in events
    assert "can be trained" not in events


@pytest.mark.parametrize(
    ("name", "who"), [("heterofl", "class 'mote'"), ("smallest", "class 'big', class 'mote'")]
)
def test_a_strategy_that_sends_parts_notes_those_that_are_next_to_nothing(tmp_path, name, who):
    """With whole inputs, 2 units in each of two layers take 2*65 + 2*3 + 10*3 = 166 of 17,226 parameters."""
    classes = [{"name": "big", "memory": "256KiB"}, {"name": "mote", "memory": "2600B"}]
    fleet = {"fleet": {"num_clients": 4, "classes": classes}, "strategy.name": name}
    events = told("run", tmp_path / "run", **fleet)
    assert f" {who}: at most 166 of the full model's 17,226 parameters can be trained there" in events


# Held-out samples


@pytest.mark.parametrize(("numbers", "noted"), [([0, 9, 9, 200], "in the median 9"), ([0, 10, 10, 10], "")])
def test_few_held_out_samples_are_noted_by_their_median(numbers, noted):
    notes = list(few_held_out(numbers))
    assert [noted in note for note in notes] == [True] * bool(noted)


@pytest.mark.parametrize(
    ("spread", "noted"), [(0.3, True), (0.34, False), (1.0, False), (2.9, False), (3.1, True)]
)
def test_values_of_an_odd_spread_are_noted_by_client(spread, noted):
    notes = list(odd_spreads({"client 4": spread, "client 5": 1.0}))
    assert [note.startswith(f"client 4: its values spread {spread} times as wide") for note in notes] == [
        True
    ] * noted


def test_a_run_notes_that_its_clients_hold_out_few_samples(tmp_path):
    """Of 1,437 digits, dealt evenly to 20 clients, 71 or 72 each: a tenth, rounded down, is 7 everywhere."""
    fleet = {"fleet": {"num_clients": 20}, "data.partition.name": "iid"}
    events = told("run", tmp_path / "few", **fleet, **{"data.local_test": 0.1})
    assert "data.local_test: 7 to 7 samples are held out per client, in the median 7: " in events
    assert "held out" not in told("run", tmp_path / "many", **fleet, **{"data.local_test": 0.2})
    assert "held out" not in told("run", tmp_path / "none", **fleet)


# A model that starts cut


def test_the_largest_budget_tells_how_far_the_model_is_cut_before_it_trains_and_what_would_hold_it():
    """What the note names is tried: it holds the whole model, and 1 KiB less does not."""
    kinds = [{"name": "big", "memory": "64KiB"}, {"name": "small", "memory": "32KiB"}]
    chosen = load_scenario("quickstart", values={"fleet.classes": kinds})
    (note,) = of_the_start(chosen, (1, 8, 8))
    (started,) = re.findall(r"at (\S+)x compression", note)
    dense, half = map(int, re.findall(r"to (\d+)KiB", note))
    assert "where prune.target_compression is 6: big, the largest budget, holds " in note
    recipe = recipe_of(chosen, (1, 8, 8), 10)
    layout, memory = recipe.architecture.layout, recipe.memory_model(1)
    full, wanted = (layout.num_parameters(c) for c in (layout.widths, recipe.schedule.counts(1.0)))

    def held(kib: int) -> int:
        return layout.num_parameters(fit_counts(memory, recipe.shape, layout.widths, 1024 * kib, 16))

    assert float(started) == pytest.approx(full / held(64), abs=0.005)
    assert held(dense) == full > held(dense - 1)
    assert held(half) <= (full + wanted) / 2 + full / 50
    assert held(half) >= (full + wanted) / 2 - full / 50


def a_network_of_ones_own(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Flatten(1), torch.nn.Linear(64, 200), torch.nn.ReLU(), torch.nn.Linear(200, num_classes)
    )


@pytest.mark.parametrize(("target", "named"), [("", True), (f"{__name__}:a_network_of_ones_own", False)])
def test_the_command_that_suits_budgets_to_data_is_named_only_where_it_can_write_the_network(target, named):
    """It has no option for a network of one's own."""
    kinds = [{"name": "small", "memory": "32KiB"}]
    chosen = load_scenario("quickstart", values={"fleet.classes": kinds, "model.target": target})
    (note,) = of_the_start(chosen, (1, 8, 8))
    assert ("fedhp init" in note) == named
    assert note.rstrip().endswith("of the cut to be judged") != named


def test_a_single_device_is_told_so_too_and_one_without_a_budget_is_not(tmp_path):
    events = told("train", tmp_path / "small", **{"memory.budget": "64KiB"})
    assert "compression is 6: memory.budget holds " in events
    assert "x compression, where" not in told("train", tmp_path / "free")


# The loss


def after_round(number: int, loss: float, training: float | None = None, params: int = 1) -> RoundReport:
    """Returns what a round reports of these losses, the training loss that of its only client."""
    rows = ()
    if training is not None:
        said = replace(STATISTICS, train_loss=training)
        rows = (ClientReport(number, 0, "device", "ok", "", 10, None, 1, 0, statistics=said),)
    return RoundReport(
        round=number,
        accuracy=0.5,
        loss=loss,
        structure=Structure.full({"a": 1}),
        params=params,
        compression=1.0,
        training_bytes=1,
        clients=rows,
        seconds=1.0,
        evaluation_seconds=1.0,
    )


def losses_told(
    held_out: Sequence[float], training: Sequence[float | None], rounds: int = 20, **train
) -> list[str]:
    """Returns what is noted of two classes, of 100 samples each, as the rounds' losses come in."""
    watch = LossNotes(np.array([100, 100]), TrainConfig(**train), rounds)
    notes = [*watch.after(after_round(0, 0.8))]
    for number, (loss, trained) in enumerate(zip(held_out, training, strict=True), 1):
        notes += watch.after(after_round(number, loss, trained))
    return notes


def test_a_loss_that_never_falls_below_guessing_is_noted_once_after_five_rounds():
    """Two classes, one as frequent as the other: guessing costs ln 2 = 0.693."""
    flat = [0.7] * 8
    (note,) = losses_told(flat, flat, learning_rate=0.5)
    assert note.startswith("nothing is learned: in 5 rounds the held-out loss was 0.70 at best, ")
    assert (
        "that of guessing is 0.69; lower train.learning_rate (0.5) or set train.clip_norm=1, and check"
        in note
    )
    assert losses_told([0.7, 0.69, 0.7, 0.7, 0.7], flat[:5]) == []
    assert losses_told(flat[:4], flat[:4]) == []
    assert len(losses_told(flat[:3], flat[:3], rounds=3)) == 1
    assert losses_told(flat[:2], flat[:2], rounds=2) == []


def test_a_run_that_was_short_is_told_to_run_longer():
    (note,) = losses_told([0.7] * 3, [0.7] * 3, rounds=3, learning_rate=0.5)
    assert "in 3 rounds" in note
    assert "; run longer, or lower train.learning_rate (0.5) or " in note
    assert "longer" not in losses_told([0.7] * 5, [0.7] * 5)[0]


@pytest.mark.parametrize(
    ("parts", "missed"), [([[15], [15, 49], [100], [15], [15]], 4), ([[15], [50]] * 2, 0)]
)
def test_where_hardly_anybody_held_half_of_the_model_the_rate_is_not_to_blame(parts, missed):
    """Of 100 parameters; two of four rounds are not most. Those who failed trained nothing."""
    watch = LossNotes(np.array([100, 100]), TrainConfig(), len(parts))
    notes = [*watch.after(after_round(0, 0.8, params=100))]
    for number, received in enumerate(parts, 1):
        rows = [ClientReport(number, 0, "device", "ok", "", 10, None, part, 0) for part in received]
        rows.append(ClientReport(number, 1, "device", "failed", "", 10, None, 100, 0))
        notes += watch.after(replace(after_round(number, 0.7, params=100), clients=tuple(rows)))
    (note,) = notes
    told = f"in {missed} of 5 rounds no device that answered held half of the model"
    assert (told in note, "train.learning_rate" in note) == (missed > 0, missed == 0)


def test_a_training_loss_above_that_of_the_first_round_is_noted_once_and_other_rises_are_not():
    """Two hundredths of ln 2 are 0.014; what pruning costs late, and overfitting, stay below round 1."""
    poor = [0.8] * 4
    (note,) = losses_told(poor, [0.5, 0.51, 0.52, 0.9], clip_norm=1.0, learning_rate=0.5)
    assert note.startswith("the training loss rises: 0.52 in round 3, after 0.50 in the first; ")
    assert note.endswith("; lower train.learning_rate (0.5)")
    assert losses_told(poor, [0.5, 0.1, 0.4, 0.51]) == []
    assert losses_told([0.3, 0.2, 0.5, 0.9], [0.5, 0.3, 0.1, 0.0]) == []
    assert losses_told(poor, [None, 0.5, None, 0.51]) == []
    assert len(losses_told(poor, [None, 0.5, None, 0.52])) == 1


def test_a_training_loss_that_rises_is_not_noted_while_the_model_is_better_than_before_training():
    """Before training, the held-out loss is 0.8. In the second case it is better only in round 2."""
    rising = [0.5, 0.6, 0.7, 0.9]
    assert losses_told([0.79, 0.7, 0.6, 0.5], rising) == []
    (note,) = losses_told([0.8, 0.6, 0.85, 0.9], rising)
    assert note.startswith("the training loss rises: 0.70 in round 3, after 0.50 in the first; ")


def test_classes_without_held_out_samples_count_for_nothing():
    watch = LossNotes(np.array([0, 50, 0, 50]), TrainConfig(), 3)
    assert [len(list(watch.after(after_round(number, 0.7)))) for number in (1, 2, 3)] == [0, 0, 1]


@pytest.mark.parametrize("verb", ["run", "train"])
def test_a_rate_that_diverges_is_noted_in_the_events(tmp_path, verb):
    long = {"rounds": 3, "train.epochs": 3, "train.local_epochs": 1}
    assert "nothing is learned" in told(verb, tmp_path / "wild", **long, **{"train.learning_rate": 3.0})
    assert "loss" not in "".join(
        line for line in told(verb, tmp_path / "tame", **long).splitlines() if "WARNING" in line
    )
