"""The documents say what is so: held against the schema and the registries, their commands run."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import typing
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from flwr.cli.app import app as flwr_cli
from typer.testing import CliRunner

import fedhp
from fedhp.aggregation.options import SERVER_OPTIMIZERS, UNCOVERED
from fedhp.cli import app
from fedhp.costs.rehearsal import rehearsed
from fedhp.data import SOURCES, DataConfig, open_dataset, partition_rows
from fedhp.data.checks import checked_images
from fedhp.data.config import PARTITIONS
from fedhp.errors import ScenarioError
from fedhp.latency.measuring import Stopwatch
from fedhp.model.options import NORMS, ModelConfig
from fedhp.model.zoo import MODELS, architecture
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.options import PATTERN_CHOICES, PATTERNS
from fedhp.pruning.regularizers import REGULARIZERS
from fedhp.records import tables as tables_of_records
from fedhp.scenario.loading import load_scenario, shipped_scenarios
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import WANDB_MODES, Scenario
from fedhp.scenario.tables import with_tables
from fedhp.sizes import parse_size
from fedhp.training.batches import BATCH_POLICIES, LR_SCALINGS
from fedhp.training.options import LR_SCHEDULES, OPTIMIZERS
from strategies import STRATEGIES

ROOT = Path(__file__).parent.parent
REFERENCE = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")

# Scripts of users rely on these names: none goes, or changes its meaning, without a major version.
STABLE = {
    "name",
    "seed",
    "rounds",
    "data.name",
    "data.root",
    "data.partition.name",
    "data.partition.alpha",
    "model.name",
    "model.widths",
    "fleet.num_clients",
    "fleet.classes",
    "fleet.classes[].name",
    "fleet.classes[].share",
    "fleet.classes[].memory",
    "train.local_epochs",
    "train.batch_size",
    "train.learning_rate",
    "train.optimizer",
    "train.momentum",
    "train.weight_decay",
    "prune.criterion",
    "prune.target_compression",
    "prune.start",
    "prune.end",
    "memory.batch_policy",
    "memory.max_batch",
    "memory.lr_scaling",
    "strategy.name",
    "strategy.quorum",
    "server.clients_per_round",
    "server.min_replies",
    "server.timeout_seconds",
    "simulation.num_workers",
    "simulation.address",
    "tracking.wandb.mode",
}

CHOICES = {
    "data.name": SOURCES,
    "data.partition.name": PARTITIONS,
    "model.name": MODELS,
    "model.norm": NORMS,
    "train.optimizer": OPTIMIZERS,
    "train.lr_schedule": LR_SCHEDULES,
    "prune.criterion": CRITERIA,
    "prune.regularizer": REGULARIZERS,
    "prune.pattern.name": PATTERNS,
    "prune.pattern.by": PATTERN_CHOICES,
    "memory.batch_policy": BATCH_POLICIES,
    "memory.lr_scaling": LR_SCALINGS,
    "strategy.name": STRATEGIES,
    "strategy.optimizer.name": SERVER_OPTIMIZERS,
    "strategy.uncovered": UNCOVERED,
    "tracking.wandb.mode": WANDB_MODES,
}

TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    float | None: "number or null",
    bool: "true or false",
    list[int]: "list of integers",
    list[float]: "list of numbers",
    list[str]: "list of texts",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A key as the page has it."""

    type: str
    default: Any
    allowed: str
    stable: str
    meaning: str


def tables(text: str, *header: str) -> Iterator[list[str]]:
    """Yields the rows, as cells, of all tables whose header begins with these cells."""
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("|-"):
            yield cells
        elif tuple(cells[: len(header)]) == header:
            inside = True


def documented() -> dict[str, Row]:
    rows = {}
    for key, kind, default, allowed, stable, meaning in tables(REFERENCE, "key", "type", "default"):
        assert key not in rows, f"{key} stands in the page twice"
        rows[key.strip("`")] = Row(kind, yaml.safe_load(default.strip("`")), allowed, stable, meaning)
    return rows


def schema(part: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yields key, type in words and default of all that a scenario may say, the keys of list entries too."""
    types = typing.get_type_hints(type(part))
    for entry in dataclasses.fields(part):
        key, value = prefix + entry.name, getattr(part, entry.name)
        if dataclasses.is_dataclass(value):
            yield from schema(value, f"{key}.")
        elif value and isinstance(value, list) and dataclasses.is_dataclass(value[0]):
            yield key, "list of device classes", [dataclasses.asdict(value[0])]
            yield from schema(value[0], f"{key}[].")
        else:
            yield key, TYPES[types[entry.name]], value


SCHEMA = {key: (kind, default) for key, kind, default in schema(Scenario())}
ROWS = documented()


def test_the_tables_of_keys_are_those_of_the_schema():
    wanted = with_tables(REFERENCE)
    assert wanted.count("<!-- keys of ") == wanted.count("<!-- end of keys -->") == 11
    said = "python -m fedhp.scenario.tables docs/scenarios.md writes the tables anew"
    assert wanted == REFERENCE, f"docs/scenarios.md is not as the schema has it: {said}"


def test_the_tables_of_a_record_are_those_of_the_figures():
    page = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    wanted = tables_of_records.with_tables(page)
    assert wanted.count("<!-- figures of ") == wanted.count("<!-- end of figures -->") == 4
    said = "python -m fedhp.records.tables docs/record.md writes the tables anew"
    assert wanted == page, f"docs/record.md is not as the fields have it: {said}"
    by_hand = "| `batch_size_last` | integer | samples | Samples per step after the last cut. |"
    assert by_hand in page.splitlines()


def test_a_row_says_what_the_field_beside_it_declares():
    """Of a name, of a number, of a list, and of a text: each by hand."""
    assert ROWS["train.device"].allowed == "`auto`, `cpu`, `cuda`"
    assert ROWS["server.max_times_median"].allowed == "at least 1, or 0"
    assert ROWS["strategy.levels"].allowed == "each above 0 and at most 1"
    assert ROWS["data.root"].allowed == ""
    assert ROWS["train.momentum"].meaning == "Of `sgd`; 0 keeps no state."


def test_the_page_has_every_key_of_the_schema_and_no_other():
    missing, unknown = sorted(set(SCHEMA) - set(ROWS)), sorted(set(ROWS) - set(SCHEMA))
    assert not missing, f"docs/scenarios.md lacks a row for {', '.join(missing)}"
    assert not unknown, f"docs/scenarios.md has keys that the schema lacks: {', '.join(unknown)}"


@pytest.mark.parametrize("key", sorted(set(SCHEMA) & set(ROWS)))
def test_a_row_has_the_type_and_default_of_the_schema(key):
    kind, default = SCHEMA[key]
    assert (ROWS[key].type, ROWS[key].default) == (kind, default)
    assert type(ROWS[key].default) is type(default)
    assert ROWS[key].meaning


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_a_row_names_every_value_that_can_be_chosen(key):
    missing = [name for name in CHOICES[key] if f"`{name}`" not in ROWS[key].allowed + ROWS[key].meaning]
    assert not missing, f"docs/scenarios.md: {key} does not name {', '.join(missing)}"


def test_exactly_the_keys_that_scripts_may_rely_on_are_marked_stable():
    assert {key for key, row in ROWS.items() if row.stable} == STABLE
    assert {row.stable for row in ROWS.values()} == {"", "yes"}


def test_the_page_lists_the_scenarios_that_ship():
    rows = {cells[0].strip("`"): cells[1:] for cells in tables(REFERENCE, "scenario", "clients")}
    assert set(rows) == set(shipped_scenarios())
    for name, row in rows.items():
        one = load_scenario(name)
        sampled = one.server.clients_per_round
        clients = f"{one.fleet.num_clients}, {sampled} per round" if sampled else str(one.fleet.num_clients)
        model, widths = one.model.said.split()
        assert row == [clients, str(one.rounds), f"`{one.data.name}`", f"`{model}` {widths}"]


AXES = {"rows": 2, "1": 1, "features": 30, "channels": 3, "time": 128, "height": 16, "width": 20}
STORED = list(tables(REFERENCE, "stored as", "a sample", "suits"))


@pytest.mark.parametrize("row", STORED, ids=[row[0] for row in STORED])
def test_samples_have_the_axes_of_the_page_and_suit_its_models(row):
    """The sizes tell the axes apart; a model's first layer takes as many channels as the page says."""
    stored, sample = (tuple(AXES[axis] for axis in cell.strip("`()").split(", ")) for cell in row[:2])
    values = np.arange(np.prod(stored), dtype=np.float32).reshape(stored)
    read, _ = checked_images(values, "x_train")
    assert read.shape == (AXES["rows"], *sample)
    channels_last = row[0].endswith("channels)`")
    assert (read == (np.moveaxis(values, -1, 1) if channels_last else values.reshape(read.shape))).all()
    models = re.findall(r"`(\w+)`", row[2])
    assert models
    for name in models:
        network = architecture(ModelConfig(name), sample, 3)
        assert rehearsed(network)
        first = network.layout.shapes[next(iter(network.layout.shapes))]
        channels = {"mlp": np.prod(sample), "conv1d": sample[0] * sample[1]}.get(name, sample[0])
        assert first[1] == channels


def test_channels_come_last_only_where_the_page_says_and_the_cnn_takes_the_smallest_image_that_it_says():
    """At most 4, and the second axis above 4; four convolutions halve 16 pixels to one, and 15 to none."""
    assert len(STORED) == 5
    for stored, channels in {(5, 9, 4): 4, (4, 9, 4): 4, (5, 9, 5): 5, (9, 5, 1): 1}.items():
        assert checked_images(np.zeros((2, *stored), np.uint8), "x_train")[0].shape[1] == channels
    deep = ModelConfig("cnn", [4, 4, 4, 4, 8])
    architecture(deep, (1, 16, 17), 3)
    with pytest.raises(ScenarioError, match="halves the image 4 times"):
        architecture(deep, (1, 15, 17), 3)


def test_sizes_are_as_many_bytes_as_the_page_says():
    sizes = dict(tables(REFERENCE, "written", "bytes"))
    assert len(sizes) > 5
    assert {text: parse_size(text.strip("`")) for text in sizes} == {t: int(n) for t, n in sizes.items()}


def test_groups_shrink_as_the_page_says():
    """The kept numbers follow from the exponents and the rule: no larger fraction gives a tenth."""
    rows = list(tables(REFERENCE, "group", "units", "exponent"))
    recipe = recipe_of(load_scenario("fashion_mnist", ["prune.target_compression=10"]), (1, 28, 28), 10)
    layout, shares = recipe.architecture.layout, recipe.shape.shares
    kept = recipe.schedule.counts(1.0)
    assert rows == [[f"`{g}`", str(n), f"{shares[g]:.2f}", str(kept[g])] for g, n in layout.widths.items()]
    allowed = layout.num_parameters(layout.widths) / 10
    by_rule = [
        {group: int(units * f ** shares[group]) for group, units in layout.widths.items()}
        for f in np.linspace(1, 0, 20001)
    ]
    assert next(counts for counts in by_rule if layout.num_parameters(counts) <= allowed) == kept


def headings(text: str) -> set[str]:
    """Returns the anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}, which is not there"
        if anchor:
            assert anchor in headings(file.read_text(encoding="utf-8")), f"{page}: no heading for {target}"


REAL_DATA = os.environ.get("FEDHP_DATA", "")
CHEAP = {"rounds": 1, "simulation.num_workers": 0, "train.local_epochs": 1, "data.max_train": 10_000}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# They start processes, which tests/test_devices.py does.
FOR_DEVICES = ("serve", "device")


def commands(*pages: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each page and what follows the word fedhp in a command of it."""
    for page in pages:
        for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "fedhp " in line else []
            if words and Path(words[0]).name == "fedhp":
                yield page, words[1:]


COMMANDS = [one for one in commands("README.md", "docs/scenarios.md") if one[1][0] not in FOR_DEVICES]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Someone who has followed the pages so far: in a folder with their files, and with a data file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # where the command looks for modules of one's own
    for page, language in product(("README.md", "docs/scenarios.md"), ("yaml", "python")):
        for block in blocks(page, language):
            if name := re.match(r"# (\S+\.(yaml|py))\n", block):
                (tmp_path / name[1]).write_text(block, encoding="utf-8")
    images = np.random.default_rng(0).integers(0, 256, (1500, 8, 8), np.uint8)
    labels = np.arange(1500) % 10
    np.savez("mine.npz", x_train=images, y_train=labels, x_test=images[:50], y_test=labels[:50])
    windows, people = np.random.default_rng(0).normal(size=(420, 9, 128)), np.arange(420) % 21
    held_out = {"x_test": windows[:50], "y_test": labels[:50] % 6}
    np.savez("har.npz", x_train=windows, y_train=labels[:420] % 6, client_train=people, **held_out)
    return tmp_path


def skip_without_data(arguments: list[str]) -> None:
    """Skips where the files are missing: what a hub far away has to say is no matter of the documents."""
    shown = yaml.safe_load(CliRunner().invoke(app, ["show", *arguments]).stdout)["data"]
    if SOURCES[shown["name"]].locate(shown["root"] or REAL_DATA).identity.startswith("hub:"):
        pytest.skip(f"FEDHP_DATA names no folder with {shown['name']}")


def test_the_pages_have_commands_of_every_verb():
    verbs = {
        *(
            "init",
            "run",
            "train",
            "reproduce",
            "compare",
            "report",
            "scenarios",
            "show",
            "strategies",
            "export",
            "latency",
        )
    }
    assert {words[0] for _, words in COMMANDS} == verbs
    assert len(COMMANDS) >= 10


def microseconds_for_ten_thousand_parameters(stopwatch, counts, tell=None):
    return [stopwatch.arch.layout.num_parameters(one) / 10_000 for one in counts]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words) for _, words in COMMANDS])
def test_a_command_of_the_pages_works(reader, page, words, monkeypatch):
    # What networks take on this machine is not ours to promise, and takes long to measure.
    monkeypatch.setattr(Stopwatch, "times", microseconds_for_ten_thousand_parameters)
    verb, *arguments = (word.replace("/path/to/", f"{reader}/") for word in words)
    if verb == "run" and arguments[:1] == ["mine.yaml"]:
        assert CliRunner().invoke(app, ["init", "mine.npz"]).exit_code == 0  # the command before it
    if verb == "run":
        skip_without_data([word for word in arguments if word != "--out" and not word.startswith("runs/")])
        arguments += [f"{key}={value}" for key, value in CHEAP.items()]
    if verb in ("train", "reproduce"):
        skip_without_data([word for word in arguments[verb == "reproduce" :] if word != "--quick"])
        arguments += ["train.epochs=1", "data.max_train=300", "simulation.num_workers=0"]
    if verb in ("report", "export"):
        with_levels = {"strategy.name": "all_in_one"} if "--level" in arguments else {}
        # What the command before it has left.
        fedhp.simulate("quickstart", arguments[0], **CHEAP, **with_levels)
    if verb == "compare":
        arguments += [*(f"{key}={value}" for key, value in CHEAP.items()), "--seeds", "1"]
    result = CliRunner().invoke(app, [verb, *arguments])
    assert result.exit_code == 0, f"{page}: {result.output}"
    assert result.stdout or verb in ("run", "train")
    for summary in reader.rglob("summary.json"):
        assert fedhp.load_run(summary.parent).summary["status"] == "finished"
    num_records = len(list(reader.rglob("summary.json")))
    if verb in ("reproduce", "compare"):
        assert num_records > 1
        left = {path.name for path in reader.rglob("*")}
        assert left >= {"table.md", "cells.csv", "figure.png"} or verb == "compare"
    else:
        assert num_records == (verb in ("run", "train", "report", "export"))


def test_commands_for_devices_are_taken():
    """As far as options go; what is run for a unit ends where a pipe begins."""
    found = [words for _, words in commands("README.md", "docs/devices.md") if words[0] in FOR_DEVICES]
    assert {words[1] for words in found} >= {"init", "start", "devices", "run", "check", "unit"}
    for room, verb, *words in found:
        group = typer.main.get_group(app).commands[room]
        piped = words.index("|") if "|" in words else len(words)
        group.commands[verb].make_context(verb, words[:piped])


def test_runs_are_listed_wide_enough_to_tell_success_from_failure():
    """At 80 columns Flower shows ``finished:completed`` and ``finished:failed`` alike, cut off."""
    for page in PAGES:
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
            assert line.count("flwr list local") == line.count("COLUMNS=200 flwr list local"), page


def test_the_commands_of_flower_in_the_pages_are_there():
    """As the installed version has them: they come and go between its versions."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:^|`)(?:COLUMNS=200 )?flwr ([a-z]+)", text, re.MULTILINE))
    assert {"run", "list", "log", "stop"} <= named <= set(typer.main.get_command(flwr_cli).commands)


def test_the_script_of_the_page_makes_a_file_of_the_unpacked_data_set(reader):
    """Made-up texts in the places and form of the official ones: channel 3 is ``body_gyro_x``."""
    (script,) = [block for block in blocks("docs/scenarios.md", "python") if "har_to_npz" in block]
    kept = {}
    for split, num_rows in (("train", 5), ("test", 3)):
        signals = reader / "UCI HAR Dataset" / split / "Inertial Signals"
        signals.mkdir(parents=True)
        for name in ("body_acc", "body_gyro", "total_acc"):
            for axis in "xyz":
                values = np.random.default_rng(len(kept)).normal(size=(num_rows, 128)).round(6)
                kept[split, f"{name}_{axis}"] = values
                np.savetxt(signals / f"{name}_{axis}_{split}.txt", values, "%.8e")
        for what in ("y", "subject"):
            np.savetxt(signals.parent / f"{what}_{split}.txt", np.arange(num_rows) + 1, "%d")
    exec(script, {})  # what a reader would run
    data = open_dataset(DataConfig("npz", str(reader / "har.npz"), layout="channels_first"))
    assert data.input_shape == (1, 9, 128)
    raw = data.train_images * data.std + data.mean
    np.testing.assert_allclose(raw[:, 0, 3], kept["train", "body_gyro_x"], atol=1e-5)
    np.testing.assert_allclose(raw[:, 0, 8], kept["train", "total_acc_z"], atol=1e-5)
    assert data.client_train is not None
    assert data.train_labels.tolist() == data.client_train.tolist() == [0, 1, 2, 3, 4]
    assert data.test_labels.tolist() == [0, 1, 2]


@pytest.mark.usefixtures("reader")
def test_the_python_of_the_readme_runs(monkeypatch, capsys):
    """One block goes on where the one before ended; the accuracy by hand is the record's."""
    simulate = fedhp.simulate
    monkeypatch.setattr(fedhp, "simulate", lambda *given, **values: simulate(*given, **{**values, **CHEAP}))
    names: dict[str, Any] = {}
    for block in blocks("README.md", "python"):
        exec(block, names)  # what a reader would paste
    assert isinstance(names["model"], torch.nn.Module)
    assert "gateway" in capsys.readouterr().out
    right = (names["model"](names["samples"]).argmax(1) == names["labels"]).double().mean()
    assert float(right) == pytest.approx(names["run"].summary["final_accuracy"])


def test_the_strategy_of_the_page_asks_the_devices_with_the_most_samples(reader):
    lines = "".join(blocks("docs/scenarios.md", "sh")).splitlines()
    (line,) = [line for line in lines if "strategy.name=my_strategy" in line]
    _, *words = shlex.split(line)
    cheap = [f"{key}={value}" for key, value in {**CHEAP, "rounds": 2}.items()]
    result = CliRunner().invoke(app, [*words, *cheap, "--out", "run"])
    assert result.exit_code == 0, result.output
    run = fedhp.load_run(reader / "run")
    sizes = [len(rows) for rows in partition_rows(run.config.data, 20, 0)]
    asked = run.clients.groupby("round")["num_examples"].apply(list)
    assert [sorted(one) for one in asked] == [sorted(sizes)[-5:]] * 2


def test_the_strategy_from_scratch_passes_lint_in_the_place_that_the_page_gives_it():
    """Step 1 as step 3 changes it, by the project's own rules."""
    (block,) = re.findall(r"^   ```python\n(.*?)^   ```$", REFERENCE, re.MULTILINE | re.DOTALL)
    source = textwrap.dedent(block).replace("from strategies.", "from .")
    lint = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "strategies/last_units.py", "-"]
    done = subprocess.run(lint, input=source, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_lint_leaves_what_readers_write_beside_the_project_alone(tmp_path):
    """Their files lie where the pages' commands are typed, in the checkout."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    own = [tmp_path / folder / "own.py" for folder in ("clients", "fedhp/data", "strategies", "tests")]
    for file in (*own, tmp_path / "my_net.py", tmp_path / "mine" / "fedhp" / "net.py"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    listed = [sys.executable, "-m", "ruff", "check", "--show-files"]
    done = subprocess.run(listed, cwd=tmp_path, capture_output=True, text=True)
    assert {Path(line) for line in done.stdout.splitlines()} == {*own, tmp_path / "pyproject.toml"}


def test_the_agent_of_a_sweep_gives_a_command_that_fedhp_takes():
    """By W&B's own expansion of the file's command, with the first value of each parameter."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "docs" / "sweep.yaml").read_text())
    parameters = sweep["parameters"]
    drawn = {key: {"value": one.get("values", [one.get("min")])[0]} for key, one in parameters.items()}
    given = create_sweep_command_args({"args": drawn})["args_no_hyphens"]
    command = create_sweep_command(sweep["command"])
    words = [word for part in command for word in (given if part == "${args_no_hyphens}" else [part])]
    _, program, verb, name, *overrides = words
    assert (program, verb) == ("fedhp", "run")
    scenario = load_scenario(name, overrides)
    assert scenario.train.learning_rate == parameters["train.learning_rate"]["min"]
    assert scenario.tracking.wandb.mode == "online"
    assert sweep["metric"]["name"] in ("accuracy", "loss")
