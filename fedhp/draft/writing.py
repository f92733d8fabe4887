"""The draft as a file that explains itself, and as a few lines that tell what was found."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fedhp.data.config import DataConfig
from fedhp.draft.looking import Kind, Look
from fedhp.draft.planning import SHARES, Draft
from fedhp.fleet.devices import DeviceClassConfig
from fedhp.sizes import format_size

_PAGE = """\
# Drafted by 'fedhp init': {found}.
# All of it is yours to change; 'fedhp show FILE' prints every other key, docs/scenarios.md explains them.
name: {name}
description: {description}
seed: {scenario.seed}
rounds: {scenario.rounds}
data:
  {source}
  # {divided}
  partition: {partition}
model: {model}
fleet:
  num_clients: {scenario.fleet.num_clients}
  # Training the dense model with {batch} samples takes {dense}, which the first class has.
  # The others can train parts of it, with {shares} of its parameters.
  classes:
{classes}
# Steps are bounded by clip_norm, which keeps the rate safe on data that nobody has tried it on.
train: {train}
# The small local data sets make the default's Taylor term noisy.
prune: {prune}
server: {{clients_per_round: {scenario.server.clients_per_round}}}
"""


def page(look: Look, draft: Draft) -> str:
    """Returns the scenario as YAML with comments."""
    scenario = draft.scenario
    train, prune = scenario.train, scenario.prune
    _, *parts = SHARES.values()
    return _PAGE.format(
        scenario=scenario,
        found=found(look),
        name=_text(scenario.name),
        description=_text(scenario.description),
        source="\n  ".join(_source(scenario.data)),
        divided=_divided(look),
        partition=_partition(scenario.data),
        model=_flow({"name": scenario.model.name, "widths": list(scenario.model.widths), **_norm(draft)}),
        batch=scenario.train.batch_size,
        dense=format_size(draft.dense_bytes),
        shares=_listed([f"{share:.0%}" for share in parts]),
        classes="\n".join(f"    - {_class(kind)}" for kind in scenario.fleet.classes),
        train=_flow(
            {
                "local_epochs": train.local_epochs,
                "batch_size": train.batch_size,
                "learning_rate": train.learning_rate,
                "clip_norm": train.clip_norm,
            }
        ),
        prune=_flow({"target_compression": prune.target_compression, "criterion": prune.criterion}),
    )


def found(look: Look) -> str:
    """Says in one line what the data is."""
    dataset = look.dataset
    channels, height, width = dataset.input_shape
    size = {
        Kind.FEATURES: f"{width} numbers each",
        Kind.WINDOWS: f"{look.num_sensors} channels over {width} steps{_stored(look)}",
        Kind.IMAGES: f"{channels} x {height} x {width}{_stored(look)}",
    }[look.kind]
    owners = f", of {len(look.owner_rows)} owners" if look.owner_rows else ""
    return (
        f"{look.num_rows:,} {look.kind.value} ({size}){owners}, and {len(dataset.test_labels):,} held out; "
        f"{dataset.num_classes} classes"
    )


def _stored(look: Look) -> str:
    first = "time first" if look.kind is Kind.WINDOWS else "channels last"
    return f", stored {first}" if look.config.layout == "channels_last" else ""


def told(draft: Draft) -> Iterator[str]:
    """Yields what was made of the data, a line each."""
    scenario = draft.scenario
    yield (
        f"model: {scenario.model.said}, {draft.num_parameters:,} parameters, to be pruned "
        f"{scenario.prune.target_compression:g}x"
    )
    budgets = _listed(f"{kind.name} {kind.memory}" for kind in scenario.fleet.classes)
    yield f"fleet: {scenario.fleet.num_clients} clients ({scenario.data.partition.name}); budgets: {budgets}"


def _source(data: DataConfig) -> Iterator[str]:
    yield f"name: {data.name}"
    if data.root:
        yield f"root: {_text(data.root)}"
    if data.layout != DataConfig.layout:
        yield f"layout: {data.layout}"
    if data.max_train:
        yield f"max_train: {data.max_train}"


def _divided(look: Look) -> str:
    if look.owner_rows:
        few, many = min(look.owner_rows), max(look.owner_rows)
        return f"One client per owner (client_train), of {few:,} to {many:,} rows."
    return "Rows have no owners (client_train), and are divided by chance."


def _partition(data: DataConfig) -> str:
    partition, usual = data.partition, type(data.partition)()
    said: dict[str, Any] = {"name": partition.name}
    if partition.name == "dirichlet":
        said["alpha"] = partition.alpha
    if partition.min_samples != usual.min_samples:
        said["min_samples"] = partition.min_samples
    return _flow(said)


def _norm(draft: Draft) -> dict[str, str]:
    norm = draft.scenario.model.norm
    return {} if norm == type(draft.scenario.model)().norm else {"norm": norm}


def _class(kind: DeviceClassConfig) -> str:
    return _flow({"name": kind.name, "share": kind.share, "memory": kind.memory})


def _flow(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_plain(value)}" for key, value in values.items()) + "}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # which is YAML too


def _listed(words: Any) -> str:
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last
