"""Comparing strategies: which runs there are, what the tables say, going on where it was cut short."""

import io
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.comparison.cells import comparison_cells
from fedhp.comparison.devices import devices
from fedhp.comparison.facets import Facet, facets
from fedhp.comparison.grid import Comparison, parse_grid, parse_over
from fedhp.comparison.manifest import Entry, Manifest, read_manifest, write_manifest
from fedhp.comparison.pairs import holm, identical, pair_rows
from fedhp.comparison.result import Result, Tables
from fedhp.comparison.rows import OVER_SEEDS, arm_rows, class_rows
from fedhp.comparison.terminal import show
from fedhp.comparison.texts import arm_texts, class_texts, measured, said_few, said_identical
from fedhp.comparison.tradeoffs import pareto
from fedhp.comparison.writing import escaped, write
from fedhp.data import client_shard
from fedhp.errors import DataError, RecordError, ScenarioError
from fedhp.scenario.loading import load_scenario
from fedhp.seeds import generator
from fedhp.sweep.cell import run_cell
from fedhp.sweep.folder import held
from fedhp.sweep.texts import markdown_table

CHEAP = ["rounds=2", "data.max_train=400", "fleet.num_clients=8", "simulation.num_workers=0"]


def cells(strategies, *, over=None, overrides=(), seeds=(0, 1)):
    return comparison_cells(Comparison("quickstart", strategies, seeds, over or {}, overrides))


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("strategy.quorum=0.5,1", "strategy.quorum", [0.5, 1]),
        ("strategy.levels=[1,0.5],[0.25]", "strategy.levels", [[1, 0.5], [0.25]]),
        ("memory.batch_policy=fixed,fill", "memory.batch_policy", ["fixed", "fill"]),
    ],
)
def test_what_is_varied_is_read_as_yaml_has_it(text, key, values):
    assert parse_over(text) == (key, values)


@pytest.mark.parametrize(
    "text", ["strategy.quorum", "=1,2", "strategy.quorum=", "seed=null,1", "strategy.levels=[1,["]
)
def test_what_cannot_be_read_is_refused_with_an_example(text):
    with pytest.raises(ScenarioError, match=r"--over takes key=value,value, such as"):
        parse_over(text)


def test_runs_are_those_of_every_strategy_value_and_seed():
    found = cells(["dense", "exclusive"], over={"data.partition.alpha": [0.1, 1.0]})
    assert [cell.name for cell in found] == [
        f"{strategy}/alpha-{value}/seed-{seed}"
        for strategy in ("dense", "exclusive")
        for value in (0.1, 1.0)
        for seed in (0, 1)
    ]
    first = found[0].scenario
    assert (first.strategy.name, first.data.partition.alpha, first.seed) == ("dense", 0.1, 0)


def test_two_keys_are_varied_in_all_combinations_of_what_a_strategy_has_a_use_for():
    """Whoever does not prune runs once for all values of a key of pruning, and as the scenario has it."""
    over = {"data.partition.alpha": [0.1, 1], "prune.target_compression": [2, 4]}
    found = cells(["mask_intersection", "dense"], over=over, seeds=[0])
    assert [
        (cell.name, cell.scenario.data.partition.alpha, cell.scenario.prune.target_compression)
        for cell in found
    ] == [
        ("mask_intersection/alpha-0.1/target_compression-2/seed-0", 0.1, 2),
        ("mask_intersection/alpha-0.1/target_compression-4/seed-0", 0.1, 4),
        ("mask_intersection/alpha-1/target_compression-2/seed-0", 1, 2),
        ("mask_intersection/alpha-1/target_compression-4/seed-0", 1, 4),
        ("dense/alpha-0.1/seed-0", 0.1, 6),
        ("dense/alpha-1/seed-0", 1, 6),
    ]
    first = found[0].labels
    assert first["values"] == {"data.partition.alpha": "0.1", "prune.target_compression": "2"}


def test_one_key_or_two_can_be_varied():
    assert parse_grid([]) == {}
    assert parse_grid(["rounds=2,3", "seed=0"]) == {"rounds": [2, 3], "seed": [0]}
    for texts in (["rounds=2", "rounds=3"], ["rounds=2", "seed=0", "name=x"]):
        with pytest.raises(ScenarioError, match="--over takes one key, or two different ones"):
            parse_grid(texts)


def test_an_option_is_varied_and_set_only_for_those_that_own_it():
    found = cells(["mask_intersection", "heterofl"], over={"strategy.quorum": [0.5, 1.0]}, seeds=[0])
    assert [(cell.name, cell.scenario.strategy.quorum) for cell in found] == [
        ("mask_intersection/quorum-0.5/seed-0", 0.5),
        ("mask_intersection/quorum-1.0/seed-0", 1.0),
        ("heterofl/seed-0", 1.0),
    ]
    fixed = cells(["mask_intersection", "heterofl"], overrides=["strategy.quorum=0.7"], seeds=[0])
    assert [cell.scenario.strategy.quorum for cell in fixed] == [0.7, 1.0]


def test_a_robust_rule_is_heeded_by_those_whose_updates_it_adds_up():
    fixed = cells(["mask_intersection", "dense"], overrides=["strategy.robust.rule=median"], seeds=[0])
    assert [cell.scenario.strategy.robust.rule for cell in fixed] == ["median", "median"]
    varied = cells(["dense"], over={"strategy.robust.rule": ["mean", "median"]}, seeds=[0])
    assert [cell.scenario.strategy.robust.rule for cell in varied] == ["mean", "median"]


@pytest.mark.parametrize(
    ("strategies", "values", "match"),
    [
        (
            ["heterofl", "dense"],
            {"over": {"strategy.quorum": [1]}},
            "none of heterofl, dense has a use",
        ),
        (["hetrofl"], {}, "Did you mean 'heterofl'"),
        (["dense", "dense"], {}, "--strategies names dense twice"),
        (["dense"], {"over": {"rounds": [1, 1]}}, "--over names 1 twice"),
        (["dense"], {"overrides": ["seed=3"]}, "seed: the comparison sets this itself"),
        (
            ["dense"],
            {"overrides": ["rounds=3"], "over": {"rounds": [1]}},
            "rounds: the comparison sets",
        ),
        (["dense"], {"over": {"description": ["a b", "a_b"]}}, "would share the folder dense/desc"),
        (["dense"], {"over": {"strategy.name": ["x"]}}, "strategy.name: the comparison sets this"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(strategies, values, match):
    with pytest.raises(ScenarioError, match=match):
        cells(strategies, **values)


def test_a_comparison_is_one_group_of_weights_and_biases_unless_the_user_has_a_name_for_it():
    (cell,) = cells(["dense"], over={"rounds": [3]}, seeds=[0])
    wandb = cell.scenario.tracking.wandb
    assert (wandb.group, wandb.name) == ("compare-quickstart", "dense/rounds-3/seed-0")
    (cell,) = cells(["dense"], seeds=[0], overrides=["tracking.wandb.group=mine"])
    assert cell.scenario.tracking.wandb.group == "mine"


def run(strategy: str, seed: int, last: float, **figures):
    usual = {**dict.fromkeys(OVER_SEEDS, 1.0), "worst_class": "phone", "reason": "", "value": ""}
    return {**usual, "strategy": strategy, "seed": seed, "last": last, **figures}


RUNS = [run("a", 0, 91), run("a", 1, 93), run("a", 2, 95), run("b", 0, 90), run("b", 1, 91), run("b", 2, 92)]


def test_an_arm_is_the_mean_and_the_sample_deviation_over_its_seeds():
    a, b = arm_rows(RUNS)
    assert (a["last"], a["last_deviation"], a["seeds"]) == (93, 2, 3)
    assert (b["last"], b["last_deviation"]) == (91, 1)


def test_an_arm_of_one_seed_has_no_deviation_and_one_without_records_no_figures():
    one, none = arm_rows([RUNS[0], {"strategy": "c", "value": "", "seed": 0, "reason": "no budget"}])
    assert (one["last"], one["last_deviation"]) == (91, None)
    assert (none["last"], none["seeds"], none["reason"]) == (None, 0, "no budget")


def pairs_of(runs):
    return pair_rows(facets([], arm_rows(runs)), runs)


def test_the_difference_of_a_pair_is_paired_over_seeds():
    """Differences 1, 2, 3: mean 2, t = 2 sqrt(3) of two degrees of freedom, p = 1 - t / sqrt(2 + t^2).

    Of two degrees of freedom Student's t is below x with probability (1 + x / sqrt(2 + x^2)) / 2, which is
    .975 at x = .95 sqrt(2 / (1 - .95^2)): so many standard errors, 1 / sqrt(3), is the interval to each side.
    """
    (pair,) = pairs_of(RUNS)
    t = 2 * math.sqrt(3)
    assert (pair["points"], pair["seeds"]) == (2, 3)
    assert pair["p"] == pair["p_holm"] == pytest.approx(1 - t / math.sqrt(2 + t * t))
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert (pair["low"], pair["high"]) == pytest.approx((2 - half, 2 + half))


def test_the_last_accuracy_of_an_arm_is_within_an_interval():
    """91, 93, 95: mean 93, standard error 2 / sqrt(3); the quantile is that of two degrees of freedom."""
    a, _ = arm_rows(RUNS)
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) * 2 / math.sqrt(3)
    assert (a["last_low"], a["last_high"]) == pytest.approx((93 - half, 93 + half))


def test_two_seeds_have_a_p_but_no_interval():
    """Differences 1 and 2: t = 3 of one degree of freedom, of which p is 1 - 2 atan(3) / pi."""
    runs = [row for row in RUNS if row["seed"] < 2]
    a, b = arm_rows(runs)
    assert (a["last_low"], a["last_high"], b["last_low"], b["last_high"]) == (None,) * 4
    (pair,) = pairs_of(runs)
    assert (pair["low"], pair["high"]) == (None, None)
    assert pair["p"] == pytest.approx(1 - 2 * math.atan(3) / math.pi)


def test_intervals_keep_to_what_percentages_and_their_differences_can_be():
    """10, 50, 90 has a mean of 50 and a standard error of 23, 4.3 of which are 99 to each side."""
    runs = [run("a", seed, last) for seed, last in enumerate((10, 50, 90))]
    runs += [run("b", seed, last) for seed, last in enumerate((90, 50, 10))]
    assert [(row["last_low"], row["last_high"]) for row in arm_rows(runs)] == [(0, 100)] * 2
    (pair,) = pairs_of(runs)
    assert (pair["low"], pair["high"]) == (-100, 100)


def test_names_with_bars_stay_in_their_cell():
    assert list(markdown_table([["class", "n"], ["a|b", "1"]])) == [
        "| class | n |",
        "|---|---|",
        r"| a\|b | 1 |",
    ]


def test_small_sizes_of_classes_are_in_kib():
    sizes = {"budget_mib": 16 / 1024, "memory_mean_mib": 2.5, "memory_peak_mib": None}
    row = {"strategy": "a", "value": "", "device_class": "mote", "accuracy": 50.0, "accuracy_received": None}
    heading, told = class_texts(Facet("", {"a": {"strategy": "a", "value": ""}}), [row | sizes])
    assert dict(zip(heading, told, strict=True)).items() >= {
        ("budget", "16.0 KiB"),
        ("memory, mean", "2.50 MiB"),
        ("memory, peak", "-"),
    }


@pytest.mark.parametrize(
    ("mebibytes", "told"),
    [
        *((0.0, "0"), (0.0161, "0.0161"), (0.104, "0.104"), (0.52345, "0.523"), (1.0, "1.00")),
        *((45.678, "45.7"), (999.4, "999"), (1234567.8, "1,234,568")),
    ],
)
def test_sizes_are_written_with_three_digits_in_the_terminal_and_the_tables(mebibytes, told):
    """Networks of a few KiB send little; none of it is told as nothing."""
    size = dict.fromkeys(("memory_mean_mib", "memory_peak_mib", "up_mib", "down_mib"), mebibytes)
    row = {**arm_rows([run("a", 0, 91)])[0], **size, "latency_us": None}
    facet = Facet("", {"a": row})
    heading, texts = arm_texts(facet)
    assert [text for title, text in zip(heading, texts, strict=True) if "MiB" in title] == [told] * 4
    console = Console(width=80, record=True, file=io.StringIO())
    show(console, Result(Path(), Manifest("quickstart", [], [], []), {}, {}, Tables([], [row], [], [])))
    (line,) = re.findall(r"^1 a .*", console.export_text(), re.MULTILINE)
    assert line.split()[-2:] == [told] * 2


@pytest.mark.parametrize(
    ("chances", "corrected"),
    [
        # R's p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm"), in another order.
        ([0.03, 0.01, 0.05, 0.04, 0.02], [0.09, 0.05, 0.09, 0.09, 0.08]),
        ([0.7, 0.01, 0.4], [0.8, 0.03, 0.8]),  # 3 x .01, 2 x .4, and .7 is no less than that
        ([0.6, 0.9], [1.0, 1.0]),
        ([], []),
    ],
)
def test_chances_are_corrected_for_their_number(chances, corrected):
    assert holm(chances) == pytest.approx(corrected)


def test_pairs_are_corrected_for_those_of_their_own_facet():
    """Two strategies at each of two values: one pair each, so that nothing is to be corrected."""
    lasts = {
        ("a", "1"): (91, 93, 95),
        ("b", "1"): (90, 91, 92),
        ("a", "2"): (80, 84, 83),
        ("b", "2"): (79, 80, 81),
    }
    runs = [
        run(strategy, seed, last, value=value, rounds=value)
        for (strategy, value), own in lasts.items()
        for seed, last in enumerate(own)
    ]
    found = pair_rows(facets(["rounds"], arm_rows(runs, ["rounds"])), runs)
    assert [pair["facet"] for pair in found] == ["rounds = 1", "rounds = 2"]
    assert all(pair["p"] == pair["p_holm"] for pair in found)


def test_arms_that_are_equal_in_every_figure_of_every_seed_are_told_together():
    """Seconds differ between equal runs; d has one of the seeds only."""
    runs = [run(arm, seed, 90 + seed, seconds=ord(arm)) for arm in "abc" for seed in (0, 1)]
    runs += [run("d", 0, 90), run("b", 2, 92), run("c", 2, 92)]
    facet = Facet("", {row["strategy"]: row for row in arm_rows(runs)})
    assert identical(facet, runs) == [["b", "c"]]


def test_equal_arms_are_named_with_what_is_known_of_the_reason():
    """Two quorums are one where the schedule decides; of other arms nothing is known."""
    runs = [run("a", 0, 90, value=value, **{"strategy.quorum": value}) for value in ("0.5", "1")]
    runs.append(run("b", 0, 80, **{"strategy.quorum": ""}))
    arms = arm_rows(runs, ["strategy.quorum"])
    manifest = Manifest("quickstart", ["strategy.quorum"], [], [])
    result = Result(Path(), manifest, {}, {}, Tables(runs, arms, [], []))
    (facet,) = result.facets
    (said,) = said_identical(result, facet)
    assert said.startswith("a 0.5 and a 1 are equal in every figure: the mask intersection never has")
    (said,) = said_identical(result, Facet("", {"a": arms[0], "c": {**arms[0], "strategy": "a"}}))
    assert said == "a and c are equal in every figure."


@pytest.mark.parametrize("last", [[90, 92, 94], [90]])
def test_where_differences_do_not_vary_there_is_no_p(last):
    runs = [*RUNS[:3], *(run("b", seed, value) for seed, value in enumerate(last))]
    (pair,) = pairs_of(runs)
    assert (pair["points"], pair["p"]) == (1, None)


def test_differences_that_are_equal_but_for_rounding_do_not_vary():
    """Four of 360 samples more on every seed."""
    right = enumerate([331, 333, 347])
    runs = [run(arm, seed, 100 * (k + more) / 360) for seed, k in right for arm, more in (("a", 4), ("b", 0))]
    assert pairs_of(runs)[0]["p"] is None


def test_a_violation_on_one_seed_is_told_and_a_peak_is_the_largest_of_all_seeds():
    """A mean of 1, 0 and 0 would be written as 0, and one of peaks is no peak."""
    counts, peaks = (1, 0, 0), (3.0, 9.0, 6.0)
    runs = [
        run("a", seed, 91, violations=count, failures=2 * count, memory_peak_mib=peak)
        for seed, (count, peak) in enumerate(zip(counts, peaks, strict=True))
    ]
    (a,) = arm_rows(runs)
    assert (a["violations"], a["failures"], a["memory_peak_mib"]) == (1, 2, 9)
    heading, texts = arm_texts(Facet("", {"a": a}))
    told = dict(zip(heading, texts, strict=True))
    assert (told["over budget"], told["memory, peak (MiB)"]) == ("1", "9.00")


def record(*peaks: float, held_out: float = 0.0) -> Any:
    """A run of one round of phones, with these peaks of memory in MiB, and how its model does on a fleet.

    Right are 6 of the phones' 8 samples and 1 of the sensors' 5, which took no part.
    """
    rows = {"device_class": "phone", "round": 1, "status": "ok", "memory_budget_bytes": 8 * 2**20}
    rows |= {"accuracy": 0.5, "local_accuracy_global": 0.25 if held_out else math.nan}
    clients = pd.DataFrame([{**rows, "memory_measured_bytes": peak * 2**20} for peak in peaks])
    config = SimpleNamespace(rounds=1, data=SimpleNamespace(local_test=held_out))
    return SimpleNamespace(clients=clients, config=config)


JUDGED = pd.DataFrame(
    [(0, "phone", 6, 5), (1, "sensor", 5, 1), (2, "phone", 2, 1), (3, "watch", 0, 0)],
    columns=["client", "device_class", "samples", "right"],
)


def test_the_peak_of_a_class_is_the_largest_of_all_seeds_and_its_mean_that_of_all():
    entries = [Entry(f"a/seed-{seed}", "a", {}, seed) for seed in (0, 1)]
    records = {"a/seed-0": record(2.0, 4.0), "a/seed-1": record(6.0, 8.0)}
    row, *_ = class_rows(entries, records, dict.fromkeys(records, JUDGED))
    assert (row["device_class"], row["memory_mean_mib"], row["memory_peak_mib"]) == ("phone", 5, 8)


def test_the_model_is_judged_on_the_classes_that_a_strategy_leaves_out_too():
    """Of no use to those who have no sample to judge it on."""
    entry = Entry("a/seed-0", "a", {}, 0)
    rows = class_rows([entry], {entry.folder: record(2.0, held_out=0.2)}, {entry.folder: JUDGED})
    told = {row["device_class"]: (row["accuracy"], row["accuracy_received"]) for row in rows}
    assert told == {"phone": (75, 25), "sensor": (20, None), "watch": (None, None)}
    assert [row["memory_peak_mib"] for row in rows] == [2, None, None]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([0.0, 0.0], "samples that the devices train on"),
        ([0.2, 0.2], "samples that the devices hold out"),
        (
            [0.0, 0.2],
            "samples that the devices hold out where data.local_test is above 0, otherwise samples that the "
            "devices train on",
        ),
    ],
)
def test_what_devices_are_judged_on_is_told_of_every_run(shares, said):
    runs = dict(zip("ab", [record(1.0, held_out=share) for share in shares], strict=True))
    manifest = Manifest("quickstart", ["data.local_test"], [], [])
    assert measured(Result(Path(), manifest, runs, {}, Tables([], [], [], []))) == said


@pytest.mark.parametrize(
    ("over", "overrides", "shares"),
    [
        ({}, [], [0.2]),
        ({}, ["data.local_test=0"], [0.0]),
        ({"data.local_test": [0.0, 0.5]}, [], [0.0, 0.5]),
    ],
)
def test_devices_hold_samples_out_unless_it_is_said_how_many(over, overrides, shares):
    found = cells(["dense"], over=over, overrides=overrides, seeds=[0])
    assert [cell.scenario.data.local_test for cell in found] == shares


def test_every_class_that_was_worst_on_a_seed_is_named_the_most_frequent_first():
    """Of 60, 70 and 80 the mean is 70, though that of either class is another."""
    worst = enumerate([("phone", 60.0), ("sensor", 70.0), ("sensor", 80.0)])
    several = [run("a", k, 91, worst_class=name, worst_class_accuracy=is_) for k, (name, is_) in worst]
    nobody = [run("a", seed, 91, worst_class="", worst_class_accuracy=None) for seed in (0, 1)]
    found = [arm_rows(rows)[0] for rows in (several, RUNS, nobody)]
    assert [row["worst_class"] for row in found] == ["sensor, phone", "phone", ""]
    told = [dict(zip(*arm_texts(Facet("", {"a": row})), strict=True))["worst class"] for row in found]
    assert told == ["70.0 sensor, phone", "1.0 phone", "-"]


def test_the_pareto_front_is_what_nothing_beats():
    points = [(2.0, 90.0), (1.0, 80.0), (3.0, 85.0), (4.0, 95.0), (1.0, 70.0)]
    assert pareto(points) == [1, 0, 3]


def test_points_that_are_equal_are_on_the_front_together():
    assert pareto([(2.0, 90.0), (1.0, 80.0), (1.0, 80.0), (1.0, 70.0), (2.0, 90.0), (3.0, 90.0)]) == [
        1,
        2,
        0,
        4,
    ]


def compare(*words: str):
    return CliRunner().invoke(app, ["compare", "quickstart", *CHEAP, *words])


def test_a_comparison_is_whole_records_tables_and_a_picture_and_goes_on(tmp_path):
    words = ["--strategies", "mask_intersection,exclusive", "--seeds", "2", "--out", str(tmp_path / "c")]
    first = compare(*words)
    assert first.exit_code == 0, first.output
    records = sorted(path.parent for path in tmp_path.rglob("summary.json"))
    assert len(records) == 4
    accuracy = [100 * fedhp.load_run(folder).summary["final_accuracy"] for folder in records]
    table = pd.read_csv(tmp_path / "c" / "table.csv").set_index("strategy")
    assert table.loc["exclusive", "last"] == pytest.approx(sum(accuracy[:2]) / 2)
    assert table.loc["mask_intersection", "last"] == pytest.approx(sum(accuracy[2:]) / 2)
    classes = pd.read_csv(tmp_path / "c" / "classes.csv").set_index("strategy")
    out = classes.loc["exclusive"].set_index("device_class")
    assert list(out.index) == ["gateway", "phone", "camera", "sensor"]
    assert out.memory_peak_mib.notna().tolist() == [True, False, False, False]
    taking_part = classes[classes.memory_peak_mib.notna()]
    assert (taking_part.memory_peak_mib <= taking_part.budget_mib).all()
    assert table.loc["exclusive", "worst_class_accuracy"] <= out.accuracy.min() + 1e-9
    text = (tmp_path / "c" / "table.md").read_text()
    assert text.count("\n| mask_intersection | 2 |") == 1
    assert (tmp_path / "c" / "figures" / "signature.svg").exists()
    assert (tmp_path / "c" / "report.html").exists()
    manifest = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert {one["status"] for one in manifest["runs"]} == {"finished"}

    (records[0] / "summary.json").unlink()  # as if it had been cut short
    kept = (records[1] / "summary.json").stat().st_mtime_ns
    again = compare(*words)
    assert again.exit_code == 0, again.output
    assert (records[0] / "summary.json").exists()
    assert (records[1] / "summary.json").stat().st_mtime_ns == kept
    runs = pd.read_csv(tmp_path / "c" / "runs.csv")
    assert set(runs["status"]) == {"finished"}  # by whichever command
    assert set(runs["held_out"]) == {True}

    other = compare("rounds=3", *words)
    assert other.exit_code == 2
    assert "rounds: 2, now 3" in other.output


def test_strategies_are_compared_from_the_same_start_on_the_same_data(tmp_path):
    """Round 0 is the same model wherever nothing is left out: same seed, same accuracy."""
    words = ["--strategies", "fedrolex,dense", "--seeds", "1", "--out", str(tmp_path)]
    assert compare("model.prune_inputs=false", *words).exit_code == 0
    one, other = (fedhp.load_run(tmp_path / name / "seed-0") for name in ("fedrolex", "dense"))
    assert one.rounds.accuracy[0] == other.rounds.accuracy[0]
    shards = [run.clients.groupby("client").num_examples.first().to_dict() for run in (one, other)]
    assert shards[0] == shards[1]


def test_more_seeds_and_strategies_extend_a_comparison(tmp_path):
    out = ["--out", str(tmp_path)]
    assert compare("--strategies", "dense", "--seeds", "1", *out).exit_code == 0
    kept = (tmp_path / "dense" / "seed-0" / "summary.json").stat().st_mtime_ns
    assert compare("--strategies", "dense", "--seeds", "2", *out).exit_code == 0
    assert compare("--strategies", "exclusive", "--seeds", "2", *out).exit_code == 0
    table = pd.read_csv(tmp_path / "table.csv").set_index("strategy")
    assert table["seeds"].to_dict() == {"dense": 2, "exclusive": 2}
    assert len(pd.read_csv(tmp_path / "pairs.csv")) == 1
    assert (tmp_path / "dense" / "seed-0" / "summary.json").stat().st_mtime_ns == kept


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A whole comparison of two strategies on one seed."""
    folder = tmp_path_factory.mktemp("two") / "c"
    result = compare("--strategies", "exclusive,smallest", "--seeds", "1", "--out", str(folder))
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def earlier(two, tmp_path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "c"))


def extend(folder: Path, strategies: str = "dense"):
    return compare("--strategies", strategies, "--seeds", "1", "--out", str(folder))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_comparison_at_which_another_process_works_is_refused_and_left_as_it_is(earlier):
    before = contents(earlier)
    with held(earlier):
        refused = extend(earlier, "dense,exclusive")
    assert refused.exit_code == 2
    assert "another process is at work in" in refused.stderr
    assert contents(earlier) == before
    assert CliRunner().invoke(app, ["report", str(earlier)]).exit_code == 0


def test_a_comparison_is_held_until_its_tables_are_written(earlier, monkeypatch):
    refused = []

    def write_while_another_comes(result):
        refused.append(extend(earlier))
        write(result)

    monkeypatch.setattr("fedhp.comparison.writing.write", write_while_another_comes)
    assert extend(earlier, "exclusive").exit_code == 0
    assert ["another process is at work" in one.stderr for one in refused] == [True]


def test_what_a_killed_comparison_finished_is_kept_when_it_is_extended(earlier):
    """Killed after the first run: it had no time to tell how that ended, and the other is cut short."""
    manifest = json.loads((earlier / "comparison.json").read_text())
    for run in manifest["runs"]:
        run["status"] = "waiting"
    (earlier / "comparison.json").write_text(json.dumps(manifest))
    (earlier / "smallest" / "seed-0" / "summary.json").unlink()
    result = extend(earlier)
    assert result.exit_code == 0, result.output
    runs = pd.read_csv(earlier / "runs.csv").set_index("strategy")
    assert runs["status"].to_dict() == {"exclusive": "finished", "dense": "finished"}
    assert set(pd.read_csv(earlier / "table.csv").strategy) == {"exclusive", "dense"}


def test_a_kill_while_it_is_written_leaves_the_manifest_that_was_there(earlier, monkeypatch):
    def killed(path, text, **_):
        path.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    before = read_manifest(earlier)
    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(earlier, replace(before, overrides=["rounds=3"]))
    assert read_manifest(earlier) == before


def test_the_advice_on_a_damaged_manifest_helps_and_keeps_what_has_finished(earlier):
    damaged, words = earlier / "comparison.json", "exclusive,smallest"
    damaged.write_text(damaged.read_text()[:100])
    refused = extend(earlier, words)
    assert refused.exit_code == 2
    assert "remove this file and repeat 'fedhp compare' with all that was compared" in refused.stderr
    kept = {path: path.stat().st_mtime_ns for path in earlier.rglob("summary.json")}
    damaged.unlink()
    assert extend(earlier, words).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in earlier.rglob("summary.json")} == kept
    assert len(pd.read_csv(earlier / "table.csv")) == 2


def test_another_comparison_in_the_same_folder_is_refused_with_all_that_differs(tmp_path):
    """Of other strategies, so that no run's folder is in the way."""
    out = ["--seeds", "1", "--out", str(tmp_path)]
    assert compare("--strategies", "mask_intersection", *out).exit_code == 0
    table = (tmp_path / "table.md").read_text()
    changed = ["train.learning_rate=0.2", "strategy.quorum=0.5", "rounds=3"]
    other = compare(*changed, "--strategies", "dense", "--over", "data.partition.alpha=1", *out)
    assert other.exit_code == 2
    for said in (
        "--over: nothing, now data.partition.alpha",
        "rounds: 2, now 3",
        "train.learning_rate: 0.05, now 0.2",
        "strategy.quorum: not given, now 0.5",
        "choose another --out or remove it",
    ):
        assert said in other.stderr
    assert (tmp_path / "table.md").read_text() == table


INPUTS = "model.prune_inputs"


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([], [f"{INPUTS}=false"], f"{INPUTS}: not given, now false"),
        ([f"{INPUTS}=false"], [], f"{INPUTS}: false, now not given"),
        # Nothing of the model is the same in all runs where a key of it is varied.
        (["model.floor=2"], ["model.floor=3"], "model.floor: 2, now 3"),
    ],
)
def test_what_a_model_is_given_for_some_strategies_or_values_must_be_given_for_all(
    tmp_path, monkeypatch, before, now, said
):
    """Of strategies one of which never prunes inputs: its runs have the same model either way."""
    monkeypatch.setattr("fedhp.comparison.cells.run_fleet", leave_undone)
    varied = [] if INPUTS in said else ["--over", "model.name=mlp,cnn"]
    words = ["--seeds", "1", "--out", str(tmp_path), *varied]
    assert "nothing was run" in compare(*before, "--strategies", "heterofl", *words).stderr
    other = compare(*now, "--strategies", "mask_intersection", *words)
    assert other.exit_code == 2
    assert f"holds another comparison ({said})" in other.stderr


def leave_undone(cell, root):
    raise DataError("nothing was run")


def test_the_terminal_shows_seeds_units_the_varied_key_and_every_p(tmp_path):
    words = ["--strategies", "exclusive,dense", "--seeds", "2", "--over", "data.partition.alpha=0.5,1"]
    result = compare(*words, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "quickstart, seeds 0, 1; varied: data.partition.alpha = 0.5, 1" in result.stdout
    assert result.stdout.count("last, % class, % smaller") == 2
    assert "MiB" in result.stdout
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    for value in (0.5, 1):
        (p,) = pairs[pairs.facet == f"data.partition.alpha = {value}"].p_holm
        assert f" {p:.2f}".replace(" 0", " ") in result.stdout or p < 0.01
    assert max(map(len, result.stdout.splitlines())) <= 80
    told = " ".join(result.stdout.split())
    assert f"varied: data.partition.alpha = 0.5, 1; overridden: {', '.join(CHEAP)} " in told
    assert "Intervals and p need three seeds or more" in told


@pytest.mark.parametrize(("seeds", "few"), [((3, 5), False), ((3, 2), True), ((0, 3), False), ((), False)])
def test_what_few_seeds_cannot_tell_is_said_where_an_arm_has_few(seeds, few):
    tables = Tables([], [{"seeds": number} for number in seeds], [], [])
    assert bool(said_few(Result(Path(), Manifest("quickstart", [], [], []), {}, {}, tables))) is few


@pytest.mark.parametrize(("name", "called"), [("name: my fleet\n", "my fleet"), ("", "mine")])
def test_pages_name_a_scenario_of_ones_own_by_its_name_and_not_by_where_it_lies(
    tmp_path, monkeypatch, name, called
):
    monkeypatch.setattr("fedhp.comparison.cells.run_fleet", leave_undone)
    file = tmp_path / "mine.yaml"
    file.write_text(f"{name}rounds: 1\nsimulation: {{num_workers: 0}}\n")
    words = ["compare", str(file), "--strategies", "dense", "--seeds", "1", "--out", str(tmp_path / "c")]
    assert "nothing was run" in CliRunner().invoke(app, words).stderr
    assert read_manifest(tmp_path / "c").title == f"Strategies on {called}"
    assert "nothing was run" in CliRunner().invoke(app, words).stderr  # again, in a folder of its own title


def test_all_strategies_are_those_that_ship_and_others_are_named_by_commas(tmp_path, monkeypatch):
    """README.md has fifteen; spaces beside commas mean nothing."""
    monkeypatch.setattr("fedhp.comparison.cells.run_fleet", leave_undone)
    for said, number in (("all", 15), ("dense , exclusive", 2)):
        result = compare("--strategies", said, "--seeds", "1", "--out", str(tmp_path / said))
        assert f"{number} of {number} runs failed" in result.stderr


@pytest.mark.parametrize("library", ["pandas", "scipy.stats"])
def test_without_its_packages_a_comparison_is_refused_before_anything_is_run(tmp_path, monkeypatch, library):
    for name in [name for name in sys.modules if name.startswith("fedhp.comparison.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    result = compare("--out", str(tmp_path / "c"))
    assert result.exit_code == 2, result.output
    assert re.search(r"error: a comparison needs the package '(pandas|scipy)", result.stderr)
    assert "'fedhp[server]'" in result.stderr
    assert not (tmp_path / "c").exists()


def test_what_is_varied_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--strategies", "exclusive", "--seeds", "1"]
    assert compare(*words).exit_code == 0
    assert compare(*words, "--over", "data.partition.alpha=1").exit_code == 0
    assert {path.name for path in Path("runs").iterdir()} == {
        "compare-quickstart",
        "compare-quickstart-alpha",
    }


def test_what_comes_first_may_be_an_override_of_the_usual_scenario():
    result = CliRunner().invoke(app, ["compare", "rounds=few"])
    assert (result.exit_code, "rounds must be an integer" in result.stderr) == (2, True)


def test_a_run_that_can_never_work_is_refused_and_not_to_be_tried_again(tmp_path):
    """Of a fleet none of whose devices holds the full model, which `exclusive` trains."""
    fleet = "fleet.classes=[{name: mote, memory: 32KiB}]"
    words = ["--strategies", "exclusive,smallest", "--seeds", "1", "--out", str(tmp_path)]
    result = compare(fleet, *words)
    assert result.exit_code == 0, result.output
    runs = pd.read_csv(tmp_path / "runs.csv").set_index("strategy")
    assert runs["status"].to_dict() == {"exclusive": "refused", "smallest": "finished"}
    assert "no device of the fleet can take part in strategy 'exclusive'" in runs.reason["exclusive"]
    assert "tries them again" not in result.stderr


def test_devices_are_judged_as_one_who_loads_the_model_judges_them(two):
    """By hand: the model as users load it, on the samples that each device draws from its own to hold out."""
    run = fedhp.load_run(two / "exclusive" / "seed-0")
    model, config, right = fedhp.load_model(run.folder), run.config, []
    for client in range(config.fleet.num_clients):
        own = client_shard(config.data, config.fleet.num_clients, 0, client)
        _, held_out = own.hold_out(0.2, generator(0, "local test", client))
        assert held_out is not None
        samples, labels = held_out.batch(np.arange(len(held_out)))
        right.append(int((model(samples).argmax(1) == labels).sum()))
    judged = pd.read_csv(run.folder / "devices.csv")
    assert judged["right"].tolist() == right
    assert judged["device_class"].tolist() == ["gateway", "phone", "camera", "sensor"] * 2
    shares = judged.groupby("device_class")[["right", "samples"]].sum().eval("100 * right / samples")
    table = pd.read_csv(two / "table.csv").set_index("strategy").loc["exclusive"]
    assert (table.worst_class, table.worst_class_accuracy) == (shares.idxmin(), pytest.approx(shares.min()))


def test_a_comparison_from_before_devices_were_judged_is_judged_as_it_is_read(earlier):
    before = (earlier / "report.html").read_text()
    for path in earlier.rglob("devices.csv"):
        path.unlink()
    assert CliRunner().invoke(app, ["report", str(earlier)]).exit_code == 0
    assert (earlier / "report.html").read_text() == before
    next(earlier.rglob("seed-0")).joinpath("devices.csv").write_text("client,right\n0,x\n")
    refused = CliRunner().invoke(app, ["report", str(earlier)])
    assert refused.exit_code == 2
    assert re.fullmatch(r"error: .*devices\.csv is damaged: .*; remove it, .*\n", refused.stderr)


def test_the_tables_are_written_for_latex_with_names_as_they_are(two):
    tex = (two / "table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\bottomrule") == 2
    last = pd.read_csv(two / "table.csv").set_index("strategy")["last"]
    assert rf"exclusive & 1 & {last['exclusive']:.2f} & " in tex
    assert r"95\% interval" in tex
    assert "memory, mean (MiB) & memory, peak (MiB) & over budget & up (MiB) & down (MiB) &" in tex
    captions = re.findall(r"\\caption\{(.*)\}", tex)
    overridden = escaped(", ".join(CHEAP))
    assert r"data.max\_train=" in overridden
    assert all(f"; overridden: {overridden}. " in caption for caption in captions)
    assert [["Worst class:" in told, "Smaller:" in told, "(column less)" in told] for told in captions] == [
        [True, True, False],
        [False, False, True],
    ]
    assert f"; overridden: {', '.join(CHEAP)}." in (two / "table.md").read_text()
    assert escaped(r"a_b 5% {x}\y ~^#&$ ±") == (
        r"a\_b 5\% \{x\}\textbackslash{}y \textasciitilde{}\textasciicircum{}\#\&\$ $\pm$"
    )


def test_a_manifest_of_an_earlier_version_is_read_as_it_was_meant(tmp_path):
    run = {"folder": "a/alpha-1/seed-0", "strategy": "a", "seed": 0, "status": "finished", "reason": ""}
    rest = {"overrides": [], "settings": {}, "tracked_as": "1234"}
    earlier = {
        "scenario": "quickstart",
        "key": "alpha",
        "runs": [{**run, "value": "1"}, {**run, "value": ""}],
    }
    (tmp_path / "comparison.json").write_text(json.dumps({**earlier, **rest}))
    found = read_manifest(tmp_path)
    assert (found.keys, [entry.values for entry in found.runs]) == (["alpha"], [{"alpha": "1"}, {}])


@pytest.mark.parametrize(
    "changes", [{"seed": "0"}, {"values": {"alpha": 1}}, {"values": "alpha"}, {"folder": 3}]
)
def test_a_manifest_with_values_of_other_types_is_damaged(tmp_path, changes):
    manifest = Manifest("quickstart", ["alpha"], [], [Entry("a/seed-0", "a", {}, 0)])
    write_manifest(tmp_path, manifest)
    told = json.loads((tmp_path / "comparison.json").read_text())
    told["runs"][0].update(changes)
    (tmp_path / "comparison.json").write_text(json.dumps(told))
    with pytest.raises(RecordError, match=r"comparison\.json is damaged"):
        read_manifest(tmp_path)


def test_how_many_seeds_an_arm_has_is_told_where_that_differs(earlier):
    more = compare("--strategies", "dense", "--seeds", "2", "--out", str(earlier))
    assert more.exit_code == 0, more.output
    rows = [
        line.split()
        for line in more.stdout.splitlines()
        if re.match(r"^\d (exclusive|smallest|dense) ", line)
    ]
    assert {row[1]: row[2] for row in rows[:3]} == {"exclusive": "1", "smallest": "1", "dense": "2"}


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ("fleet.num_clients=500", "1437 training rows cannot be divided among 500 clients"),
        ("data.partition.name=natural", "needs data that names each row's owner"),
        ("fleet.classes=[{name: mote, memory: 512B}]", "fleet class 'mote' (512B)"),
    ],
)
def test_what_no_second_try_helps_is_refused(tmp_path, over, reason):
    (cell,) = cells(["mask_intersection"], overrides=[over], seeds=[0])
    _, outcome = run_cell(cell, tmp_path)
    assert outcome.status == "refused"
    assert reason in outcome.reason


def test_a_device_class_is_called_as_it_is(tmp_path):
    """NA and nan are names like others, not figures that are missing."""
    (tmp_path / "devices.csv").write_text("client,device_class,samples,right\n0,NA,4,1\n1,nan,2,2\n")
    run: Any = SimpleNamespace(folder=tmp_path)
    assert devices(run)["device_class"].tolist() == ["NA", "nan"]


def test_a_report_runs_no_code_that_a_record_names(tmp_path):
    """A comparison's folder may be anybody's; without what was judged, its network would be built anew."""
    values = {"model.target": "fedhp_no_such_module:build", "model.name": "mlp"}
    run: Any = SimpleNamespace(folder=tmp_path, config=load_scenario("quickstart", values=values))
    with pytest.raises(RecordError, match=r"devices\.csv is missing, and .* whose code is not run"):
        devices(run)


def test_networks_may_be_exported_which_gives_columns_of_time_and_size(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    words = ["compare", "quickstart", "rounds=1", "--strategies", "mask_intersection", "--seeds", "1"]
    done = CliRunner().invoke(app, [*words, "--out", "c", "--export", "torch"])
    assert done.exit_code == 0, done.output
    assert [line for line in caplog.messages if line.startswith("exporting 1 of 1 to torch: ")]
    assert [line for line in done.stdout.splitlines() if re.match(r".*strategy .*torch *$", line)]
    (row,) = pd.read_csv("c/table.csv").to_dict("records")
    (file,) = Path("c").rglob("model.pt2")
    facts = json.loads((file.parent / "export.json").read_text())
    assert row["file_kib"] == pytest.approx(file.stat().st_size / 1024)
    assert row["latency_us"] == facts["files"][0]["microseconds"]
    assert "| one sample, torch (us) | file, torch (KiB) |" in Path("c/table.md").read_text()
    caplog.clear()
    again = CliRunner().invoke(app, [*words, "--out", "c", "--export", "torch"])
    assert again.exit_code == 0, again.output
    assert not [line for line in caplog.messages if line.startswith("exporting")]
    assert json.loads((file.parent / "export.json").read_text()) == facts
    file.write_bytes(b"cut short")
    CliRunner().invoke(app, [*words, "--out", "c", "--export", "torch"])
    assert file.read_bytes() != b"cut short"
    refused = CliRunner().invoke(app, [*words, "--out", "d", "--export", "paper"])
    assert refused.exit_code == 2
    assert "there is no format 'paper'; choose of onnx" in refused.output
    assert not Path("d").exists()
