"""A comparison's report: facets, fronts and places by hand; a small comparison's page parsed and shown."""

import json
import os
import re
import shutil
from itertools import combinations
from pathlib import Path

import browser
import pytest
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.comparison.rows import OVER_SEEDS

pd = pytest.importorskip("pandas", reason="reading records needs the extra 'server'")
pytest.importorskip("matplotlib", reason="reports need the extra 'plots'")
pytest.importorskip("jinja2", reason="reports need the extra 'plots'")

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from fedhp.comparison.facets import Facet, facets  # noqa: E402
from fedhp.comparison.learning import over_seeds  # noqa: E402
from fedhp.comparison.tradeoffs import far_off, front_of  # noqa: E402
from fedhp.drawing.labels import apart, around  # noqa: E402
from fedhp.drawing.style import marked_looks  # noqa: E402

NAMES = ["signature", "sent", "accuracy", "traffic", "size", "classes", "fairness", "memory"]
CHEAP = ["rounds=2", "data.max_train=400", "fleet.num_clients=8", "simulation.num_workers=0"]
STRATEGIES = ["mask_intersection", "exclusive", "dense"]


def arm(strategy: str, last: float | None, memory: float = 1.0, value: str = "") -> dict:
    return {
        **dict.fromkeys(OVER_SEEDS),
        "strategy": strategy,
        "value": value,
        "key": value,
        "last": last,
        "memory_mean_mib": memory,
        "reason": "",
    }


# --- by hand ---------------------------------------------------------------------------------


def test_the_front_is_what_nothing_beats_and_the_ceiling_is_not_on_it():
    """b is beaten by c, which is cheaper and better; d costs most and is best of those within budgets."""
    points = {"a": (80, 1), "b": (85, 3), "c": (90, 2), "d": (91, 4), "dense": (95, 9)}
    facet = Facet("", {name: arm(name, last, memory) for name, (last, memory) in points.items()})
    assert front_of(facet, "memory_mean_mib") == ["a", "c", "d"]
    alone = Facet("", {"dense": arm("dense", 95)})
    assert front_of(alone, "memory_mean_mib") == ["dense"]


@pytest.mark.parametrize(
    ("lasts", "cut"),
    [
        ([92, 72.9], []),  # one of two, without which nothing is held against anything
        ([92, 91, 90, 60], []),
        ([92, 91.5, 91, 90.5, 60], [60]),
        ([92, 91.5, 91, 90.5, 83], [83]),
        ([92, 91.5, 91, 90.5, 84], []),  # 8 points, which are shown
        ([92, 91, 88, 85, 83], []),  # two points below the next: of one line
        ([92, 91, 91, 91, 60, 50], []),  # two of six
        ([92, 91, 91, 91, 91, 91, 91, 91, 60, 50], [60, 50]),
    ],
)
def test_only_arms_far_off_that_would_flatten_many_others_are_cut_off(lasts, cut):
    named = {f"arm {number}": last for number, last in enumerate(lasts)}
    assert list(far_off(named).values()) == cut


def test_arms_are_held_against_each_other_within_a_value_the_best_first():
    arms = [
        arm("a", 80, value="0.1"),
        arm("a", 90, value="0.5"),
        arm("b", 85, value="0.1"),
        arm("b", None, value="0.5"),
        arm("c", 70),
    ]
    one, other = facets(["key"], arms)
    assert (one.title, list(one.arms)) == ("key = 0.1", ["b", "a", "c"])
    assert (other.title, list(other.arms), list(other.done)) == ("key = 0.5", ["a", "c", "b"], ["a", "c"])


def test_values_that_are_numbers_rise_however_a_comparison_was_extended():
    for values, rising in ((["1", "10", "0.5"], ["0.5", "1", "10"]), (["fixed", "fill"], ["fixed", "fill"])):
        arms = [arm(strategy, 80, value=value) for value in values for strategy in "ab"]
        assert [facet.title for facet in facets(["key"], arms)] == [f"key = {value}" for value in rising]


def test_of_two_keys_there_is_a_facet_for_each_combination():
    """A key that means nothing to b stands with each of its values."""
    arms = [{**arm("a", 80, value=f"{x} / {y}"), "x": x, "y": y} for x in "12" for y in "34"]
    arms += [{**arm("b", 70, value=x), "x": x, "y": ""} for x in "12"]
    found = facets(["x", "y"], arms)
    assert [facet.title for facet in found] == [
        "x = 1, y = 3",
        "x = 1, y = 4",
        "x = 2, y = 3",
        "x = 2, y = 4",
    ]
    assert [[row["value"] for row in facet.arms.values()] for facet in found] == [
        ["1 / 3", "1"],
        ["1 / 4", "1"],
        ["2 / 3", "2"],
        ["2 / 4", "2"],
    ]


def test_the_values_of_a_single_strategy_are_held_against_each_other():
    (facet,) = facets(["key"], [arm("a", 80, value="0.5"), arm("a", 90, value="1"), arm("c", 85)])
    assert (facet.title, list(facet.arms)) == ("", ["a 1", "c", "a 0.5"])


def test_a_curve_is_the_mean_over_seeds_with_a_sample_deviation():
    """80 and 84: mean 82, deviation sqrt(2^2 + 2^2)."""
    runs = [pd.Series({0: 10.0, 1: 80.0}), pd.Series({0: 10.0, 1: 84.0})]
    curve = over_seeds(runs, lambda run: run)
    assert curve.loc[0].tolist() == [10, 10, 10]
    assert curve.loc[1].tolist() == pytest.approx([82, 82 - 8**0.5, 82 + 8**0.5])
    assert over_seeds(runs[:1], lambda run: run).loc[1].tolist() == [80, 80, 80]


@pytest.mark.parametrize(
    ("wanted", "gap", "places"),
    [
        ([0.1, 0.5, 0.9], 0.2, [0.1, 0.5, 0.9]),
        ([0.5, 0.5, 0.5], 0.1, [0.5, 0.6, 0.7]),
        ([0.9, 0.95, 1.0], 0.1, [0.8, 0.9, 1.0]),
        ([0.0, 0.0, 1.0], 0.9, [0.0, 0.5, 1.0]),
    ],
)
def test_names_stand_where_they_wish_or_a_gap_apart(wanted, gap, places):
    assert apart(wanted, gap) == pytest.approx(places)


def test_names_stand_beside_their_points_without_collision_or_not_at_all():
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    crowd = {f"name {number}": (0.5, 0.5 + number / 50) for number in range(8)}
    assert around(figure, {axes: crowd}, dict.fromkeys(crowd, "#000000"))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the point
    assert len(boxes) == 8
    assert not [1 for one, other in combinations(boxes, 2) if one.overlaps(other)]
    axes = Figure(figsize=(1, 1)).subplots()
    assert not around(axes.figure, {axes: crowd}, dict.fromkeys(crowd, "#000000"))
    assert not axes.texts


def test_twelve_strategies_differ_in_their_marks_and_in_colour_and_line_together():
    found = marked_looks([str(number) for number in range(12)]).values()
    assert len({look["marker"] for look in found}) == 12
    assert len({(look["color"], str(look["linestyle"])) for look in found}) == 12


# --- of a real comparison --------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "c"
    words = ["compare", "quickstart", *CHEAP, "--strategies", ",".join(STRATEGIES), "--seeds", "2"]
    result = CliRunner().invoke(app, [*words, "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def comparison(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "c"))


def report(folder: Path, *words: str):
    return CliRunner().invoke(app, ["report", str(folder), *words])


def test_a_comparison_ends_with_its_report_and_the_command_writes_it_again(comparison, tmp_path):
    first = (comparison / "report.html").read_text(encoding="utf-8")
    result = report(comparison, "--out", str(tmp_path / "out"))
    assert (result.exit_code, result.stdout) == (0, f"report: {tmp_path / 'out' / 'report.html'}\n")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == first
    for name in NAMES:
        assert (tmp_path / "out" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "out" / "figures" / f"{name}.svg").read_text(encoding="utf-8")


def test_the_page_says_what_was_compared_and_what_was_equal_and_needs_nothing_else(comparison):
    source = (comparison / "report.html").read_text(encoding="utf-8")
    bare = re.sub(r"base64,[\w+/=]+", "", source)
    assert not re.search(r"url\(|@import|https?://|<script", bare)
    assert re.findall(r'<figure id="(\w+)">', source) == NAMES
    shared = re.search(r"<pre[^>]*>(.*?)</pre>", source, re.DOTALL)
    assert shared
    assert "rounds: 2" in shared[1]
    assert "seed:" not in shared[1]
    assert "quorum" not in shared[1]
    table = pd.read_csv(comparison / "table.csv").set_index("strategy")
    for name in STRATEGIES:
        last, spread = table.loc[name, "last"], table.loc[name, "last_deviation"]
        assert f"<td class=text>{name}</td><td>2</td><td>{last:.2f} ± {spread:.2f}</td>" in bare


def test_a_folder_of_records_is_answered_with_what_it_holds_the_newest_first(tmp_path):
    names = ["run-0", "run-1", "compare-x", "run-3", "run-4", "run-5", "run-6"]
    for age, name in enumerate(names):
        file = tmp_path / name / ("comparison.json" if name == "compare-x" else "config.yaml")
        file.parent.mkdir()
        file.touch()
        os.utime(file, (10**9 - age, 10**9 - age))
    result = report(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    listed = ", ".join(str(tmp_path / name) for name in names[:5])
    assert f"{tmp_path} is no run record, but holds {listed} and 2 more: give one of these" in result.stderr


def emptied(folder: Path) -> None:
    manifest = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps({**manifest, "runs": []}))


def half_written(folder: Path) -> None:
    (folder / "dense" / "seed-1" / "summary.json").unlink()


def changed(folder: Path) -> None:
    path = folder / "dense" / "seed-1" / "config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.05", "learning_rate: 0.5"))


def made_a_study(folder: Path) -> None:
    (folder / "comparison.json").unlink()


def made_nothing(folder: Path) -> None:
    made_a_study(folder)
    (folder / "study.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (half_written, r"dense/seed-1 is not finished, but unfinished after 2 of 2 rounds; repeat"),
        (lambda folder: shutil.rmtree(folder / "dense" / "seed-0"), "dense/seed-0 is missing.*repeat"),
        (emptied, "is a comparison of which no run has a record"),
        (lambda folder: (folder / "comparison.json").write_text("{"), "comparison.json is damaged"),
        (changed, r"differ in more than what is compared \(train.learning_rate: 0.05, now 0.5\)"),
        (made_a_study, "is a study, which has no report: look at its table.md"),
        (made_nothing, "config.yaml is missing: the folder is no complete run record"),
    ],
)
def test_what_is_no_whole_comparison_is_refused_in_one_line(comparison, damage, message):
    (comparison / "report.html").unlink()
    damage(comparison)
    result = report(comparison)
    assert result.exit_code == 2, result.output
    assert re.match(rf"error: .*{message}.*\n$", result.stderr), result.stderr
    assert not (comparison / "report.html").exists()


def test_a_run_that_failed_is_told_and_the_others_are_reported(comparison):
    path = comparison / "comparison.json"
    manifest = json.loads(path.read_text())
    for run in manifest["runs"]:
        if run["strategy"] == "dense":
            run.update(status="failed", reason="<b>lost</b>")
    path.write_text(json.dumps(manifest))
    assert report(comparison).exit_code == 0
    assert "dense: &lt;b&gt;lost&lt;/b&gt;" in (comparison / "report.html").read_text()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("scheme", "media", "shown"),
    [("light", "screen", "light"), ("dark", "screen", "dark"), ("dark", "print", "light")],
)
def test_the_page_shows_every_figure_without_complaint(chromium, finished, scheme, media, shown):
    session = chromium.open((finished / "report.html").as_uri(), scheme, media)
    assert chromium.evaluate(session, browser.LOADED) is True
    assert chromium.evaluate(session, browser.SHOWN) == [f"{shown} {name}" for name in NAMES]
    assert chromium.complaints == []


@pytest.mark.integration
@pytest.mark.parametrize("width", [1200, 390, 320])
def test_on_a_phone_nothing_is_wider_than_the_page(chromium, finished, width):
    session = chromium.open((finished / "report.html").as_uri(), width=width)
    assert chromium.evaluate(session, "document.documentElement.scrollWidth") <= width


@pytest.mark.integration
def test_the_tables_fit_a_usual_window(chromium, finished):
    session = chromium.open((finished / "report.html").as_uri(), width=1280)
    wider = "[...document.querySelectorAll('.table')].filter(table => table.scrollWidth > table.clientWidth)"
    assert chromium.evaluate(session, f"{wider}.map(table => table.ariaLabel)") == []
