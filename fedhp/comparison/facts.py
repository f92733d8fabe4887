"""The facts of a comparison as texts: what was compared, and what was equal for all."""

from typing import Any

import yaml

from fedhp.comparison.result import Result
from fedhp.comparison.texts import said_seeds, said_varied
from fedhp.report.facts import Fact
from fedhp.scenario.schema import Scenario
from fedhp.sizes import format_size


def facts(result: Result) -> list[Fact]:
    """Returns what was compared, in a few words."""
    manifest, seeds = result.manifest, result.seeds
    strategies = list(dict.fromkeys(entry.strategy for entry in manifest.runs))
    short = " and ".join(key.rpartition(".")[2] for key in manifest.keys)
    varied = Fact("varied", short or "nothing else", said_varied(result))
    return [
        Fact("scenario", manifest.called, " ".join(manifest.overrides)),
        Fact("strategies", str(len(strategies)), ", ".join(strategies)),
        Fact("seeds", str(len(seeds)), said_seeds(seeds)),
        varied,
        Fact("runs", str(len(result.records)), f"of {len(manifest.runs)}, each a whole record"),
    ]


def equal(result: Result) -> list[Fact]:
    """Returns what was the same for all, in a few words; what was varied is not among it."""
    run = next(iter(result.records.values()))
    config = run.config
    found = {
        "data.partition": Fact("data", config.data.name, _partition(config)),
        "model": Fact("model", config.model.said, f"{run.summary['params_full']:,} parameters"),
        "fleet": Fact("devices", f"{config.fleet.num_clients:,}", _classes(config)),
        "rounds": Fact("rounds", f"{config.rounds:,}", f"{config.train.local_epochs} local epochs each"),
        "train": Fact("training", config.train.optimizer, f"learning rate {config.train.learning_rate:g}"),
        "prune": Fact("target", f"{config.prune.target_compression:g}x", "of strategies that prune"),
    }
    keys = result.manifest.keys
    return [fact for place, fact in found.items() if not any(key.startswith(place) for key in keys)]


def _partition(config: Scenario) -> str:
    partition = config.data.partition
    alpha = f", alpha {partition.alpha:g}" if partition.name == "dirichlet" else ""
    return f"partition {partition.name}{alpha}"


def _classes(config: Scenario) -> str:
    return ", ".join(f"{kind.name} {format_size(kind.memory_bytes)}" for kind in config.fleet.classes)


def equal_settings(result: Result) -> str:
    """Returns every key that was the same in all runs, as YAML."""
    nested: dict[str, Any] = {}
    for dotted, value in result.settings.items():
        *sections, key = dotted.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)
