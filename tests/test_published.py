"""Published figures beside ours: the settings of each line, what is computed of records, and the command."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.errors import ScenarioError
from fedhp.studies.published.cells import chosen_lines, published_cells
from fedhp.studies.published.rows import line_rows, rounds_to
from fedhp.studies.published.tables import TABLES
from fedhp.studies.published.writing import columns, draw, texts


def scenarios(given: str = "") -> dict:
    """Scenarios by table and case."""
    cells = published_cells(chosen_lines(given), (0,))
    return {(cell.labels["table"], cell.labels["case"]): cell.scenario for cell in cells}


# --- rounds to a target ----------------------------------------------------------------------

# The best so far is 0.1, 0.5, 0.5, 0.9, 0.9, 1.0.
CURVE = [0.1, 0.5, 0.4, 0.9, 0.8, 1.0]


@pytest.mark.parametrize(
    ("target", "rounds"),
    [
        (0.3, 0.5),  # half-way from 0.1 to 0.5
        (0.5, 1),
        (0.7, 2.5),  # from 0.5, the best before, not from 0.4
        (0.95, 4.5),
        (1.0, 5),
        (0.1, 0),  # before training
        (1.01, None),
    ],
)
def test_rounds_to_a_target_are_where_the_best_so_far_crosses_it(target, rounds):
    found = rounds_to(target, CURVE)
    assert found == (None if rounds is None else pytest.approx(rounds))


def test_of_no_rounds_none_reaches_a_target():
    assert rounds_to(0.5, []) is None


# --- the lines -------------------------------------------------------------------------------


def test_each_line_has_a_folder_and_a_scenario_of_its_own():
    cells = published_cells(chosen_lines(""), (0, 1))
    assert len({cell.name for cell in cells}) == len(cells) == 2 * (3 + 12 + 3)
    texts = [json.dumps(cell.scenario.to_dict(), sort_keys=True) for cell in cells]
    assert len({*texts}) == len(cells)


def test_heterofls_lines_train_as_its_baseline_does():
    """Its README and base.yaml: 10 of 100 clients, 200 rounds, the rate a tenth from round 101 on."""
    lines = scenarios("heterofl")
    widths = {case: one.model.widths for (_, case), one in lines.items()}
    assert widths == {"e": [4, 8, 16, 32], "d": [8, 16, 32, 64], "d-e": [8, 16, 32, 64]}
    levels = {case: one.strategy.levels for (_, case), one in lines.items()}
    assert levels == {"e": [1], "d": [1], "d-e": [1, 0.5]}
    for one in lines.values():
        train = one.train
        assert (one.fleet.num_clients, one.server.clients_per_round, one.rounds) == (100, 10, 200)
        assert (train.local_epochs, train.batch_size, train.learning_rate) == (5, 10, 0.01)
        assert (train.momentum, train.weight_decay, train.clip_norm) == (0.9, 5e-4, 1)
        assert (train.lr_schedule, train.masked_loss, one.data.partition.name) == ("step", True, "iid")


def test_niid_benchs_lines_train_as_its_baseline_does():
    """Its README and fedavg_base.yaml."""
    lines = scenarios("niid")
    for one in lines.values():
        train = one.train
        assert (one.model.name, one.fleet.num_clients, one.server.clients_per_round) == ("lenet5", 10, 0)
        assert (one.rounds, train.local_epochs, train.batch_size) == (50, 10, 64)
        assert (train.learning_rate, train.momentum, train.weight_decay) == (0.01, 0.9, 1e-5)
        assert train.lr_schedule == "constant"
    one = lines["niid", "fashion_mnist-two-labels-fedprox"]
    assert (one.data.name, one.train.proximal_mu) == ("fashion_mnist", 0.01)
    assert (one.data.partition.name, one.data.partition.classes_per_client) == ("pathological", 2)


def test_fedavgs_lines_train_as_in_its_paper():
    """Table 2: E epochs in batches of B, plain SGD, a tenth of 100 clients; B = inf is all 600 samples."""
    found = {
        case: (one.train.local_epochs, one.train.batch_size)
        for (_, case), one in scenarios("mcmahan").items()
    }
    assert found == {"E5-B10": (5, 10), "E1-B10": (1, 10), "E20-Binf": (20, 600)}
    for line, one in zip(TABLES["mcmahan"].lines, scenarios("mcmahan").values(), strict=True):
        assert (one.fleet.num_clients, one.server.clients_per_round, one.train.momentum) == (100, 10, 0)
        assert one.rounds > line.published


def test_single_lines_and_tables_are_chosen_in_the_order_of_the_tables():
    chosen = [(name, line.case) for name, line in chosen_lines("mcmahan/E1-B10, heterofl")]
    assert chosen == [("heterofl", "e"), ("heterofl", "d"), ("heterofl", "d-e"), ("mcmahan", "E1-B10")]


@pytest.mark.parametrize(
    ("tables", "overrides", "said"),
    [
        ("fjord", [], "--tables must be of heterofl, niid, mcmahan, got 'fjord'"),
        ("heterofl/f", [], "the lines of heterofl are e, d, d-e; got 'heterofl/f'"),
        ("heterofl", ["model.widths=[2,2,2,2]"], "model.widths: a table sets this itself"),
        ("niid", ["seed=3"], "seed: a table sets this itself"),
    ],
)
def test_what_is_no_table_or_is_set_by_one_is_refused(tables, overrides, said):
    with pytest.raises(ScenarioError, match=said):
        published_cells(chosen_lines(tables), (0,), overrides)


# --- the figures -----------------------------------------------------------------------------


@pytest.fixture
def lines():
    """A line of two seeds, one of rounds that one seed has reached, and one that has no record."""
    e, rounds = {"table": "heterofl", "case": "e"}, {"table": "mcmahan", "case": "E1-B10"}
    rows = [
        {**e, "seed": 0, "last": 98.0, "best": 98.4, "seconds": 60.0, "reason": ""},
        {**e, "seed": 1, "last": 98.4, "best": 98.6, "seconds": 180.0, "reason": ""},
        {**rounds, "seed": 0, "last": 99.0, "best": 99.1, "rounds": 40.0, "seconds": 60.0, "reason": ""},
        {**rounds, "seed": 1, "last": 98.0, "best": 98.9, "rounds": None, "seconds": 60.0, "reason": ""},
        {"table": "niid", "case": "mnist-iid-fedavg", "seed": 0, "reason": "no room"},
    ]
    return SimpleNamespace(
        rows=rows, e=line_rows(rows)[0], rounds=line_rows(rows)[1], none=line_rows(rows)[2]
    )


def test_a_line_has_the_mean_over_seeds_and_its_distance_to_what_is_published(lines):
    """Last: (98.0 + 98.4) / 2 = 98.2, deviation 0.4 / sqrt(2); published 98.46. Two minutes in the mean."""
    assert lines.e["last"] == pytest.approx(98.2)
    assert lines.e["last_deviation"] == pytest.approx(0.4 / 2**0.5)
    assert lines.e["difference"] == pytest.approx(-0.26)
    assert dict(zip(columns("heterofl"), texts(lines.e), strict=True)) == {
        "run": "e",
        "seeds": "2",
        "published": "98.46",
        "last": "98.20 ± 0.28",
        "best": "98.50 ± 0.14",
        "difference": "-0.26",
        "minutes": "2",
    }


def test_seeds_that_do_not_reach_the_target_are_not_hidden(lines):
    """A mean over those alone that reach it would look better than it is: it says of how many it is."""
    assert (lines.rounds["rounds"], lines.rounds["difference"]) == (40, None)
    assert texts(lines.rounds)[3] == "40.00, 1 of 2"


def test_a_line_without_records_has_dashes(lines):
    assert texts(lines.none)[1:] == ["0", "99.09 ± 0.05", "-", "-", "-", "-"]


def test_the_picture_is_drawn_in_both_formats(lines, tmp_path):
    png, svg = draw(tmp_path, line_rows(lines.rows))
    assert png.stat().st_size > 5_000
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


# --- the command -----------------------------------------------------------------------------


def published(out: Path, *words: str):
    chosen = "heterofl/e,heterofl/d-e,mcmahan/E1-B10"
    tiny = ("data.name=digits", "data.max_train=200", "rounds=1", "fleet.num_clients=4")
    few = ("server.clients_per_round=2", "simulation.num_workers=0")
    words = ("reproduce", "published", "--quick", "--tables", chosen, "--out", str(out), *tiny, *few, *words)
    return CliRunner().invoke(app, words)


def test_the_command_leaves_tables_and_a_picture_and_goes_on_where_it_was(tmp_path):
    """On the digits, whose figures are no others' than its own."""
    first = published(tmp_path)
    assert first.exit_code == 0, first.output
    made = {"study.txt", "table.md", "table.csv", "cells.csv", "figure.png", "figure.svg"}
    assert {path.name for path in tmp_path.iterdir()} == made | {"heterofl", "mcmahan"}
    page = (tmp_path / "table.md").read_text()
    for line, figure in (("e", "98.46"), ("d-e", "99.12"), ("E1-B10", "34")):
        assert f"\n| {line} | 1 | {figure} |" in page
    assert "mean nothing" in page
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["e", "d-e", "E1-B10"]
    assert all(0 < float(row["last"]) <= 100 for row in rows)
    before = (tmp_path / "heterofl/e/seed-0/summary.json").stat().st_mtime_ns
    assert published(tmp_path).exit_code == 0
    assert (tmp_path / "heterofl/e/seed-0/summary.json").stat().st_mtime_ns == before
