"""Reports: facts and series against a record made by hand; the page parsed, and shown in a browser."""

import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import browser
import numpy as np
import pytest
from factories import dense_layout, random_state, structure
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.errors import MissingExtraError, RecordError
from fedhp.fleet.devices import DeviceClassConfig, FleetConfig
from fedhp.pruning.options import PruneConfig
from fedhp.records import RunPlan, RunRecord, RunResult, RunTotals, load_run
from fedhp.records.rows import ClientReport, RoundReport
from fedhp.report import attendance, facts, series, write_report
from fedhp.report.survival import survival
from fedhp.report.writing import report_on
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.training.statistics import Statistics

pd = pytest.importorskip("pandas", reason="reading records needs the extra 'server'")
image = pytest.importorskip("matplotlib.image", reason="reports need the extra 'plots'")
pytest.importorskip("jinja2", reason="reports need the extra 'plots'")

LAYOUT = dense_layout(4)  # 4 units of 2 weights and a bias each: 12 parameters
EVIL = "<script>alert(1)</script> & more"
NAMES = ["accuracy", "traffic", "size", "norms", "memory", "batches", "classes", "fairness", "partition"]
NAMES += ["survivors"]
NAN = float("nan")

# Per round: the units that are left after it, and how clients voted on each.
KEPT = {0: [0, 1, 2, 3], 1: [0, 1, 3], 2: [1, 3]}
VOTES = {1: [1.0, 1.0, 0.25, NAN], 2: [0.5, 0.75, NAN, 1.0]}


def row(
    round: int, client: int, kind: str, accuracy: float, peak: int, batches: tuple[int, int]
) -> ClientReport:
    return ClientReport(
        round=round,
        client=client,
        device_class=kind,
        status="ok",
        failure="",
        num_examples=10,
        memory_budget_bytes={"big": 4096, "small": 1024}[kind],
        params_received=12,
        bytes_down=100,
        bytes_up=50,
        params_sent=9,
        units_pruned=1,
        update_norm=float(1 + round + client),
        statistics=Statistics(
            memory_predicted_bytes=peak + 8,
            memory_measured_bytes=peak,
            memory_mean_bytes=peak,
            batch_size_first=batches[0],
            batch_size_last=batches[1],
            train_loss=0.5,
            accuracy=accuracy,
            gradient_norm=2.0,
            seconds=0.1,
        ),
    )


def measuring(one: ClientReport, **figures) -> ClientReport:
    """The same row with other figures, of a client that measured any."""
    said = one.statistics and dataclasses.replace(one.statistics, **figures)
    return dataclasses.replace(one, statistics=said)


def failed(round: int, client: int, cause: str = f"train: {EVIL}") -> ClientReport:
    return ClientReport(round, client, "small", "failed", cause, 10, 1024, 12, 100)


ROWS = {
    0: (),
    1: (row(1, 0, "big", 0.5, 2000, (4, 8)), row(1, 1, "small", 0.2, 900, (2, 2)), failed(1, 2)),
    2: (
        row(2, 0, "big", 0.7, 1500, (8, 16)),
        row(2, 1, "small", 0.4, 800, (2, 4)),
        row(2, 2, "small", 0.8, 1000, (4, 4)),
    ),
}


def make_plan(**changes) -> RunPlan:
    fleet = FleetConfig(3, [DeviceClassConfig("small", 2, "1KiB"), DeviceClassConfig("big", 1, "4KiB")])
    scenario = Scenario("tiny", EVIL, 7, rounds=2, fleet=fleet, prune=PruneConfig(target_compression=2))
    plan = RunPlan(
        scenario=scenario,
        layout=LAYOUT,
        devices={"small": 2, "big": 1},
        budgets={"small": 1024, "big": 4096},
        params_full=12,
        training_bytes_full=5000,
        input_shape=(1,),
        num_classes=2,
        partition={0: [7, 3], 1: [0, 10], 2: [10, 0]},
    )
    return dataclasses.replace(plan, **changes)


def make_report(round: int, **changes) -> RoundReport:
    kept = structure(LAYOUT, a=KEPT[round])
    params = LAYOUT.num_parameters(kept.counts)
    report = RoundReport(
        round=round,
        accuracy=(0.1, 0.9, 0.8)[round],
        loss=1.0,
        structure=kept,
        params=params,
        compression=12 / params,
        training_bytes=5000 - 1000 * round,
        clients=ROWS[round],
        seconds=0.5,
        evaluation_seconds=0.125,
        votes={"a": np.array(VOTES[round])} if round in VOTES else {},
    )
    return dataclasses.replace(report, **changes)


def record(
    folder: Path, reports: list[RoundReport], plan: RunPlan | None = None, finish: bool = True
) -> RunResult:
    """Leaves the record of a run; without ``finish``, as a killed one does."""
    plan = plan or make_plan()
    written, totals = RunRecord(folder.with_name(f"{folder.name}-going-on")), RunTotals(plan)
    written.on_start(plan)
    for report in reports:
        totals.add(report)
        written.on_round(report, random_state(LAYOUT, report.structure))
    if not finish:
        shutil.copytree(written.folder, folder)
    written.on_finish(totals.summary())
    written.close()
    if finish:
        written.folder.rename(folder)
    return load_run(folder)


@pytest.fixture
def run(tmp_path) -> RunResult:
    return record(tmp_path / "run", [make_report(number) for number in range(3)])


class Page(HTMLParser):
    """What a page holds: its tags, with the text and the attributes of each."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.tags[-1][0], data.strip()))

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag != "style").split())


# --- numbers ---------------------------------------------------------------------------------


def test_traffic_adds_up_both_ways(run):
    """Round 1: 3 messages of 100 bytes down, 2 of 50 up. Round 2: 300 and 150 more."""
    assert series.traffic(run.rounds) == [0, 400, 850]


@pytest.mark.parametrize(("last", "first"), [(0, 1), (1, 1), (5, 1), (6, 2), (49, 45), (60, 55), (100, 91)])
def test_the_last_rounds_are_a_tenth_and_no_fewer_than_five(last, first):
    assert series.first_of_last(pd.DataFrame({"round": range(last + 1)})) == first


def test_classes_stand_in_the_scenarios_order_and_unknown_ones_behind(tmp_path):
    other = dataclasses.replace(ROWS[1][0], device_class="camera", client=9)
    run = record(tmp_path / "run", [make_report(0), make_report(1, clients=(other, *ROWS[1]))])
    assert series.class_names(run) == ["small", "big", "camera"]


def test_the_rounds_of_a_class_are_those_of_the_clients_that_succeeded(run):
    """Round 2 of 'small': peaks 800 and 1000, batches 2 to 4 and 4 to 4, accuracies 0.4 and 0.8."""
    small = series.class_rounds(run.clients)["small"]
    assert small.loc[1].to_dict() == {
        "predicted": 908,
        "measured": 900,
        "batch_least": 2,
        "batch_most": 2,
        "batch": 2,
        "accuracy": pytest.approx(0.2),
    }
    assert small.loc[2].to_dict() == {
        "predicted": 1008,
        "measured": 1000,
        "batch_least": 2,
        "batch_most": 4,
        "batch": 4,
        "accuracy": pytest.approx(0.6),
    }


def test_a_clients_accuracy_is_its_mean_since_the_first_of_the_last_rounds(run):
    assert series.client_accuracies(run.clients, 1)["accuracy"].tolist() == pytest.approx([0.6, 0.3, 0.8])
    assert series.client_accuracies(run.clients, 2)["accuracy"].tolist() == pytest.approx([0.7, 0.4, 0.8])


def held_out(one: ClientReport, number: int, received: float) -> ClientReport:
    return measuring(one, num_local_test=number, local_accuracy_global=received, local_accuracy_personal=1.0)


def test_clients_are_judged_on_their_held_out_samples_where_any_has_some(tmp_path):
    """Round 2 of 'small': (1 * 0.9 + 3 * 0.5) / 4 = 0.6; of 'big', which holds none out, nothing is known."""
    big, one, other = ROWS[2]
    rows = (big, held_out(one, 1, 0.9), held_out(other, 3, 0.5))
    run = record(tmp_path / "run", [make_report(0), make_report(1), make_report(2, clients=rows)])
    classes = series.class_rounds(run.clients)
    assert classes["small"]["accuracy"].tolist() == pytest.approx([NAN, 0.6], nan_ok=True)
    assert classes["big"]["accuracy"].isna().all()
    assert series.client_accuracies(run.clients, 1)["accuracy"].to_dict() == {1: 0.9, 2: 0.5}
    small, big = facts.class_rows(run)
    assert (small.accuracy, big.accuracy) == ("70.0%", "-")
    text = Page(write_report(run.folder)).text
    assert text.count("on samples of its own that it holds out") == 3  # the table and two figures
    assert "while it trains on them" not in text
    assert "held-out accuracy" in text
    assert "training accuracy" not in text


def test_where_nothing_is_held_out_the_page_says_that_accuracy_is_on_training_samples(run):
    text = Page(write_report(run.folder)).text
    assert text.count("while it trains on them, in percent; not on held-out ones") == 3
    assert "training accuracy" in text
    assert "held-out accuracy" not in text


@pytest.mark.parametrize(
    ("shares", "limits"),
    [
        ([10, 20, 30, *[94, 95] * 10], (84.8, 95.4)),  # of a line alone, 10 points at least: 85 to 95
        ([10, 20, *range(80, 96)], (83.8, 95.4)),  # from the 7th of 18, 84, to 95: 2% and 4% of 11 beyond
        ([10] * 17 + [90], (59.4, 91.2)),  # no more than 30 below 90: 60 to 90
        ([10, 90, 91], None),  # few rounds
        ([0] * 20, None),
        ([NAN] * 20, None),
    ],
)
def test_the_first_climb_is_cut_off(shares, limits):
    from matplotlib.figure import Figure

    from fedhp.drawing.axes import Climb

    axes, before = Figure().subplots(), (3.0, 7.0)
    axes.set_ylim(before)
    climb = Climb([pd.Series(shares, dtype=float)])
    climb.cut(axes)
    assert axes.get_ylim() == pytest.approx(limits or before, abs=0.05)
    assert bool(climb.said) is (limits is not None)


def test_the_norms_of_updates_by_hand(run):
    """Norms of 2 and 3 in round 1; of 3, 4 and 5 in round 2."""
    from fedhp.report import learning_figures

    plot = learning_figures.norms(run)
    assert plot.alt == "Medians from 2.5 in round 1 to 4 in round 2."
    assert plot.caption.endswith("The largest, 5, was that of client 2 in round 2.")


def test_units_stand_by_their_lifetimes_with_the_votes_of_each_round(run):
    """Units 1 and 3 lived on, 0 was cut in round 2, 2 in round 1; nobody judged unit 3 in round 1."""
    (group,) = survival(run)
    assert (group.group, group.units.tolist(), group.survivors) == ("a", [1, 3, 0, 2], 2)
    assert group.alive.tolist() == [[True, True], [True, True], [True, True], [True, False]]
    np.testing.assert_array_equal(group.votes, [[1.0, 0.75], [NAN, 1.0], [1.0, 0.5], [0.25, NAN]])


def test_the_facts_are_those_of_the_record(run):
    """12 parameters and then 6; 300 + 300 bytes down and 100 + 150 up; 5 client rounds in 1.5 s."""
    assert {fact.name: (fact.value, fact.note) for fact in facts.facts(run)} == {
        "final accuracy": ("80.0%", "of the held-out samples"),
        "best accuracy": ("90.0%", "in round 1"),
        "compression": ("2.00x", "target 2x"),
        "parameters": ("6", "of 12"),
        "memory to train it": ("2.9 KiB", "full model 4.9 KiB"),
        "budget violations": ("0", "client rounds"),
        "failures": ("1", "client rounds"),
        "bytes moved": ("850 B", "600 B down, 250 B up"),
        "time": ("0:00:02", "3.3 client rounds per second"),
        "rounds": ("2", "of 2"),
    }


def test_the_table_of_classes_by_hand(run):
    """Of 'small': 2 devices, the largest peak 1000 of 1024; last batches 2, 4, 4; accuracies 0.3 and 0.8."""
    small, big = facts.class_rows(run)
    assert small == ("small", "2", "1.0 KiB", "1000 B (98%)", "3.3", "55.0%", "1")
    assert big == ("big", "1", "4.0 KiB", "2.0 KiB (49%)", "12.0", "60.0%", "0")


def test_failures_are_named_and_a_long_list_is_cut_with_a_count(tmp_path):
    number = facts.MOST_FAILURES + 3
    rows = tuple(failed(1, client, "train: out of\nmemory") for client in range(number))
    run = record(tmp_path / "run", [make_report(0), make_report(1, clients=rows)])
    shown, more = facts.failures(run)
    assert (len(shown), more) == (facts.MOST_FAILURES, 3)
    assert shown[1] == (1, 1, "small", "train: out of memory")
    assert "And 3 more" in Page(write_report(run.folder)).text


def test_what_guards_saw_is_told_by_class(tmp_path):
    """Of the small class, one client was short twice and one never; simulated devices have no guard."""
    short = measuring(ROWS[2][1], num_shortages=2, memory_left_bytes=3 * 2**20)
    never = measuring(ROWS[2][2], num_shortages=0, memory_left_bytes=5 * 2**20)
    last = make_report(2, clients=(ROWS[2][0], short, never))
    run = record(tmp_path / "run", [make_report(0), make_report(1), last])
    assert attendance.watched(run) == [("small", "2", "2, in 1 client rounds", "3.0 MiB")]
    assert "Memory guard" in Page(write_report(run.folder)).text


def test_who_came_and_went_is_told_with_the_round(run):
    log = run.folder / "events.log"
    began, *rest = log.read_text().splitlines()
    place = next(number for number, line in enumerate(rest) if " round 1: " in line)
    stamp = began.partition(" ")[0]
    told = ["client 2 (small) has left", f"client 9 ({EVIL}) has joined", "goes on at round 2 of 2"]
    rest[place + 1 : place + 1] = [f"{stamp} {text}" for text in (*told, "lost a worker")]
    silent = "node 7 is left out: it did not answer"
    log.write_text("\n".join([began, f"{stamp} {silent}", *rest]))
    expected = [("the first", silent), *(("round 2", text) for text in told)]
    assert attendance.events(run) == (expected, 0)
    text = Page(write_report(run.folder)).text
    assert "Who came and went" in text
    assert told[1] in text


def test_a_simulations_page_is_without_what_only_devices_have(run):
    text = Page(write_report(run.folder)).text
    assert "Memory guard" not in text
    assert "Who came and went" not in text


# --- the page --------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(run):
    page = Page(write_report(run.folder))
    links = [
        each[name] for _, each in page.tags for name in ("src", "srcset", "href", "action") if name in each
    ]
    assert len(links) > 2 * len(NAMES)
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"base64,[\w+/=]+", "", page.source))


def test_every_figure_is_there_in_both_schemes_with_title_caption_and_words_for_who_cannot_see_it(run):
    page = Page(write_report(run.folder))
    assert [each["id"] for each in page.attributes("figure")] == NAMES
    images = page.attributes("img")
    assert [each["class"] for each in images] == ["light", "dark"] * len(NAMES)
    assert all(len(each["alt"]) > 15 for each in images)
    captions = [text for tag, text in page.texts if tag == "figcaption"]
    assert len(captions) == len([text for tag, text in page.texts if tag == "h3"]) == len(NAMES)
    assert "Left out" not in page.text


def test_figures_are_files_beside_the_page(run):
    write_report(run.folder)
    files = {path.name for path in (run.folder / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    for name in NAMES:
        pixels = image.imread(run.folder / "figures" / f"{name}.png")
        assert pixels.shape[1] > 700
        assert pixels[0, 0].tolist() == [1, 1, 1, 1]  # on white paper, wherever it is put
        svg = ElementTree.parse(run.folder / "figures" / f"{name}.svg")
        assert svg.getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_whatever_a_scenario_or_a_client_says_is_text(run):
    page = Page(write_report(run.folder))
    assert not page.attributes("script")
    assert (page.source.count("<script"), page.text.count(EVIL)) == (
        0,
        3,
    )  # description, configuration, failure


def test_the_page_tells_the_run(run):
    text = Page(write_report(run.folder)).text
    for piece in ("tiny", "finished", "small", "big", "target_compression: 2.0", "numpy 2", "client rounds"):
        assert piece in text


def test_the_same_record_gives_the_same_report_and_replaces_the_one_before(run, tmp_path):
    first = write_report(run.folder).read_bytes()
    assert write_report(run.folder).read_bytes() == first
    other = write_report(run.folder, tmp_path / "deep" / "down")
    assert other == tmp_path / "deep" / "down" / "report.html"
    assert other.read_bytes() == first
    assert load_run(run.folder).summary == run.summary


def test_the_dark_scheme_has_none_of_the_light_ones_colours(run):
    from fedhp.drawing import plot, style
    from fedhp.report import figures

    assert set(style.LIGHT) == set(style.DARK)
    assert len(set(style.LIGHT.values())) == len(style.LIGHT)
    for one in figures.plots(run):
        picture = plot.render(one)
        assert style.LIGHT["ink"] in picture.light
        assert not [colour for colour in style.LIGHT.values() if colour in picture.dark]


def test_names_of_any_signs_and_length_are_drawn_as_they_are(tmp_path):
    """The second and third differ in the middle alone, which is what a panel's title leaves out."""
    names = ["$x", "a-device-of-one-long-name", "a-device-of-two-long-name", "<b>", *"efghi"]
    rows = tuple(dataclasses.replace(ROWS[1][0], client=i, device_class=n) for i, n in enumerate(names))
    run = record(tmp_path / "run", [make_report(0), make_report(1, clients=rows)])
    page = Page(write_report(run.folder))
    assert [each["id"] for each in page.attributes("figure")] == NAMES
    assert all(name in page.text for name in names)
    assert "Classes beyond the first 8, only in the table: 1." in page.text


def test_a_figure_of_very_many_clients_is_of_their_classes(tmp_path):
    """3,000 clients of 'small', 'big', 'small', 'small', .. with 1 or 2 samples: no file grows with them."""
    partition = {client: [1 + client % 2, 0] for client in range(3000)}
    fleet = dataclasses.replace(make_plan().scenario.fleet, num_clients=3000)
    scenario = dataclasses.replace(make_plan().scenario, fleet=fleet)
    plan = make_plan(partition=partition, scenario=scenario)
    run = record(tmp_path / "run", [make_report(0), make_report(1)], plan)
    page = Page(write_report(run.folder))
    assert len(page.source) < 1_000_000
    assert "3,000 clients by the partition 'dirichlet'" in page.text
    assert "hold how many samples, 1 to 2;" in page.text
    assert "samples of 1 to 1 of 2 labels" in page.text
    assert (run.folder / "figures" / "partition.svg").stat().st_size < 100_000


def test_clients_that_were_never_asked_are_of_the_scenarios_class(run):
    """The fleet of 3 is small, big, small by its shares; client 0 called itself big when it was asked."""
    assert series.classes_of(run, [0, 1, 2, 3]) == ["big", "small", "small", "device"]
    unasked = dataclasses.replace(run)
    unasked.__dict__["clients"] = run.clients.head(0)
    assert series.classes_of(unasked, [0, 1, 2]) == ["small", "big", "small"]


def test_batches_that_never_change_are_one_line(tmp_path):
    from fedhp.report import class_figures

    rows = tuple(measuring(one, batch_size_last=one.value("batch_size_first")) for one in ROWS[1][:2])
    run = record(tmp_path / "run", [make_report(0), make_report(1, clients=rows)])
    plot = class_figures.batches(run)
    assert (plot.draw, plot.caption) == (None, "They never change. small: 2 samples; big: 4 samples.")
    mixed = (rows[0], ROWS[1][1], ROWS[2][2])  # 'small' from 2 to 4
    run = record(tmp_path / "other", [make_report(0), make_report(1, clients=mixed)])
    assert "Where they never change: big 4." in class_figures.batches(run).caption


@pytest.mark.parametrize(
    "reports",
    [
        [
            make_report(n, loss=NAN, clients=tuple(measuring(r, train_loss=NAN) for r in ROWS[n]))
            for n in range(3)
        ],
        [make_report(0), make_report(1, clients=ROWS[1][:1])],
        [make_report(n, accuracy=0.0) for n in range(3)],
        [make_report(0), *(dataclasses.replace(make_report(1, accuracy=1.0), round=n) for n in range(1, 40))],
        [make_report(0), make_report(1), make_report(2, clients=(failed(2, 1),), votes={})],
        [make_report(0), make_report(1, clients=(), votes={})],
    ],
    ids=["no loss", "one client", "no accuracy", "constant", "nobody in the last round", "nobody asked"],
)
def test_extreme_records_are_reported_too(tmp_path, reports):
    run = record(tmp_path / "run", reports)
    text = Page(write_report(run.folder)).text
    assert "nan" not in re.sub(r"[\w./-]*nan[\w./-]+", "", text.lower())


def test_a_fleet_in_which_every_device_is_a_class_of_its_own(tmp_path):
    rows = tuple(
        dataclasses.replace(ROWS[1][0], client=number, device_class=f"{number} {'long' * 15}")
        for number in range(2000)
    )
    run = record(tmp_path / "run", [make_report(0), make_report(1, clients=rows)])
    page = Page(write_report(run.folder))
    assert len(page.attributes("tr")) == 1 + facts.MOST_CLASSES
    assert "Classes that are not shown: 1900 more" in page.text
    assert "Classes beyond the first 8, only in the table: 1992." in page.text


# --- what a record may lack ------------------------------------------------------------------


def left_out(page: Path) -> dict[str, str]:
    """Returns the figures that a page does not have, each with the reason that it gives."""
    return dict(
        re.findall(r'<p class="note" id="(\w+)">Left out: (.+)</p>', page.read_text(encoding="utf-8"))
    )


def test_a_killed_run_is_reported_as_far_as_it_came(tmp_path):
    record(tmp_path / "run", [make_report(0), make_report(1)], finish=False)
    page = write_report(tmp_path / "run")
    assert left_out(page) == {}
    assert "unfinished" in Page(page).text
    assert "not recorded" in Page(page).text


def test_before_the_first_round_there_is_little_to_draw(tmp_path):
    page = write_report(record(tmp_path / "run", [make_report(0)], finish=False).folder)
    assert set(left_out(page)) == set(NAMES) - {"accuracy", "size", "partition"}
    assert "No device has been asked yet." in Page(page).text


def test_where_every_client_failed_the_page_says_so(tmp_path):
    rows = (failed(1, 1), failed(1, 2))
    run = record(tmp_path / "run", [make_report(0), make_report(1, clients=rows, votes={})])
    assert set(left_out(write_report(run.folder))) == {"norms", "memory", "batches", "classes", "fairness"}
    assert facts.class_rows(run) == [("small", "2", "1.0 KiB", "-", "-", "-", "2")]


def test_a_record_of_an_earlier_version_lacks_votes_and_partition(run):
    rounds = pd.read_parquet(run.folder / "rounds.parquet")
    rounds.drop(columns="votes").to_parquet(run.folder / "rounds.parquet")
    (run.folder / "partition.parquet").unlink()
    clients = pd.read_parquet(run.folder / "clients.parquet")
    clients.drop(columns="update_norm").to_parquet(run.folder / "clients.parquet")
    page = write_report(run.folder)
    assert list(left_out(page)) == ["norms", "partition"]
    assert "earlier versions did not record it" in left_out(page)["partition"]
    assert "The record holds no votes." in Page(page).text


def test_a_device_that_trains_alone_sends_nothing_and_has_no_budget(tmp_path):
    rows = [
        dataclasses.replace(one[0], bytes_up=0, bytes_down=0, memory_budget_bytes=None)
        for one in (ROWS[1], ROWS[2])
    ]
    reports = [make_report(0), *(make_report(n, clients=(rows[n - 1],), votes={}) for n in (1, 2))]
    run = record(tmp_path / "run", reports, make_plan(partition={}))
    page = write_report(run.folder)
    assert set(left_out(page)) == {"traffic", "fairness", "partition"}
    assert "its rounds are epochs" in left_out(page)["traffic"]
    assert facts.class_rows(run) == [("big", "1", "no limit", "2.0 KiB", "12.0", "60.0%", "0")]


def test_a_model_that_stays_whole_has_no_picture_of_who_survived(tmp_path):
    whole = structure(LAYOUT, a=KEPT[0])
    run = record(tmp_path / "run", [make_report(0), make_report(1, structure=whole, votes={})])
    assert left_out(write_report(run.folder))["survivors"].startswith(
        "Which units survived. No unit has been cut"
    )


# --- what is no record -----------------------------------------------------------------------


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    record(folder, [], finish=False)


def votes_damaged(folder: Path) -> None:
    rounds = pd.read_parquet(folder / "rounds.parquet")
    rounds["votes"] = json.dumps({"a": [1.0]})
    rounds.to_parquet(folder / "rounds.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no such folder; give the folder that a run named"),
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is missing.* give the folder"),
        (lambda folder: (folder / "rounds.parquet").unlink(), "rounds.parquet is missing"),
        (lambda folder: (folder / "clients.parquet").unlink(), "clients.parquet is missing"),
        (
            lambda folder: (folder / "summary.json").write_text("{"),
            "summary.json is damaged.* without that file",
        ),
        (lambda folder: (folder / "partition.parquet").write_text("{"), "partition.parquet cannot be read"),
        (emptied, "holds no round yet"),
        (votes_damaged, "rounds.parquet: structures or votes that cannot be read"),
    ],
)
def test_what_is_no_record_is_refused_by_name_in_one_line(run, damage: Callable[[Path], None], message):
    damage(run.folder)
    result = CliRunner().invoke(app, ["report", str(run.folder)])
    assert result.exit_code == 2, result.output
    assert re.match(rf"error: .*{re.escape(str(run.folder))}.*\n", result.stderr)
    assert re.search(message, result.stderr)
    assert not (run.folder / "report.html").exists()


def test_a_place_that_cannot_be_written_to_is_refused(run):
    out = run.folder / "summary.json" / "page"
    result = CliRunner().invoke(app, ["report", str(run.folder), "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert f"cannot be written to {out}" in result.stderr
    assert "--out writes it elsewhere" in result.stderr


def test_the_command_names_the_page(run, tmp_path):
    result = CliRunner().invoke(app, ["report", str(run.folder), "--out", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (0, f"report: {tmp_path / 'out' / 'report.html'}\n")


# --- at the end of a run ---------------------------------------------------------------------


def lacking(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Makes a library seem not installed, to modules that have loaded it before too."""
    for room in ("fedhp.report", "fedhp.drawing"):
        for name in [name for name in sys.modules if name.startswith(f"{room}.")]:
            monkeypatch.delitem(sys.modules, name)
        for name in ("figures", "page", "plot"):
            monkeypatch.delattr(import_module(room), name, raising=False)
    monkeypatch.setitem(sys.modules, library, None)


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_without_its_packages_a_report_is_refused_and_a_run_gives_a_hint(run, library, monkeypatch, caplog):
    lacking(monkeypatch, library)
    with pytest.raises(MissingExtraError, match=rf"'{library}'.*'fedhp\[plots\]'"):
        write_report(run.folder)
    with caplog.at_level(logging.INFO, "fedhp"):
        report_on(run.folder)
    (line,) = caplog.records
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith("no report: a report needs the package")


def test_a_report_that_cannot_be_written_is_told_with_what_to_do(run, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RecordError, match=r"^no report, .* cannot be written .*disk full.* tries again$"):
        report_on(run.folder)


def test_a_comparison_is_told_from_a_run(tmp_path):
    (tmp_path / "comparison.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecordError, match=r"is a comparison: 'fedhp report' takes it"):
        write_report(tmp_path)


@pytest.mark.parametrize("verb", ["run", "train"])
def test_a_run_ends_with_its_report(tmp_path, monkeypatch, caplog, verb):
    monkeypatch.chdir(tmp_path)
    small = [
        "rounds=1",
        "train.epochs=1",
        "fleet.num_clients=4",
        "data.max_train=200",
        "simulation.num_workers=0",
    ]
    with caplog.at_level(logging.INFO, "fedhp"):
        result = CliRunner().invoke(app, [verb, "quickstart", *small, "--out", "record"])
    assert result.exit_code == 0, result.output
    assert caplog.messages[-2:] == ["record: record", "report: record/report.html"]
    assert (tmp_path / "record" / "report.html").is_file()


def test_neither_the_command_line_nor_a_device_loads_what_draws():
    script = (
        "import sys, fedhp.cli, fedhp.report, clients.client_app; "
        "assert not {'matplotlib', 'pandas', 'seaborn'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- in a browser ----------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize(
    ("scheme", "media", "shown"),
    [("light", "screen", "light"), ("dark", "screen", "dark"), ("dark", "print", "light")],
)
def test_the_page_shows_every_figure_without_complaint(chromium, run, scheme, media, shown):
    """Printed, it is light whatever the screen is."""
    session = chromium.open(write_report(run.folder).as_uri(), scheme, media)
    assert chromium.evaluate(session, browser.LOADED) is True
    assert chromium.evaluate(session, browser.SHOWN) == [f"{shown} {name}" for name in NAMES]
    assert chromium.complaints == []


@pytest.mark.integration
@pytest.mark.parametrize("width", [1200, 390, 320])
def test_on_a_phone_nothing_is_wider_than_the_page(chromium, run, width):
    """Tables are, and scroll inside themselves."""
    session = chromium.open(write_report(run.folder).as_uri(), width=width)
    assert chromium.evaluate(session, "document.documentElement.scrollWidth") <= width
    table = "document.querySelector('.table')"
    scrolls = chromium.evaluate(session, f"{table}.scrollWidth > {table}.clientWidth")
    assert scrolls is (width < 1200)


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({}, True),
        ({"rounds": 3, "seed": 5, "data.partition.name": "iid"}, True),
        ({"fleet.num_clients": 3}, False),
        ({"data.name": "npz", "data.root": "mine.npz"}, False),
        ({"data.name": "npz", "data.root": "mine.npz", "description": "Three gates of ours."}, True),
        ({"data.name": "npz", "data.root": "mine.npz", "name": "ours"}, True),
    ],
)
def test_a_shipped_scenarios_description_heads_no_report_of_other_data(changed, shown):
    config = load_scenario("quickstart", values=changed)
    run = types.SimpleNamespace(config=config, partition=pd.DataFrame())
    assert facts.description(run) == (config.description if shown else "")  # type: ignore[arg-type]
    assert config.description


def test_a_shipped_scenarios_description_heads_no_report_of_devices_own_data():
    run = types.SimpleNamespace(config=load_scenario("quickstart"), partition=None)
    assert facts.description(run) == ""  # type: ignore[arg-type]
