"""The documents say what is so: held against the schema and the registries."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhp.config import WANDB_MODES, Scenario, load_scenario, shipped_scenarios
from fedhp.criteria import CRITERIA
from fedhp.data import SOURCES
from fedhp.data.config import PARTITIONS
from fedhp.devices import parse_size
from fedhp.memory import BATCH_POLICIES, LR_SCALINGS
from fedhp.models import MODELS
from fedhp.optimizers import LR_SCHEDULES, OPTIMIZERS
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
    "train.optimizer": OPTIMIZERS,
    "train.lr_schedule": LR_SCHEDULES,
    "prune.criterion": CRITERIA,
    "memory.batch_policy": BATCH_POLICIES,
    "memory.lr_scaling": LR_SCALINGS,
    "strategy.name": STRATEGIES,
    "tracking.wandb.mode": WANDB_MODES,
}

TYPES = {str: "text", int: "integer", float: "number", bool: "true or false", list[int]: "list of integers"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A key as the page has it."""

    type: str
    default: Any
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
    for key, kind, default, stable, meaning in tables(REFERENCE, "key", "type", "default"):
        assert key not in rows, f"{key} stands in the page twice"
        rows[key.strip("`")] = Row(kind, yaml.safe_load(default.strip("`")), stable, meaning)
    return rows


def schema(part: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yields key, type in words and default of all that a scenario may say, the keys of list entries too."""
    types = typing.get_type_hints(type(part))
    for entry in dataclasses.fields(part):
        key, value = prefix + entry.name, getattr(part, entry.name)
        if dataclasses.is_dataclass(value):
            yield from schema(value, f"{key}.")
        elif isinstance(value, list) and dataclasses.is_dataclass(value[0]):
            yield key, "list of device classes", [dataclasses.asdict(value[0])]
            yield from schema(value[0], f"{key}[].")
        else:
            yield key, TYPES[types[entry.name]], value


SCHEMA = {key: (kind, default) for key, kind, default in schema(Scenario())}
ROWS = documented()


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
    missing = [name for name in CHOICES[key] if f"`{name}`" not in ROWS[key].meaning]
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
        widths = "-".join(map(str, one.model.widths))
        assert row == [clients, str(one.rounds), f"`{one.data.name}`", f"`{one.model.name}` {widths}"]


def test_sizes_are_as_many_bytes_as_the_page_says():
    sizes = dict(tables(REFERENCE, "written", "bytes"))
    assert len(sizes) > 5
    assert {text: parse_size(text.strip("`")) for text in sizes} == {t: int(n) for t, n in sizes.items()}


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
