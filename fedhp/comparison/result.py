"""A comparison whose runs have ended: the records, and the tables over them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedhp.comparison.facets import Facet, facets, values_of
from fedhp.comparison.manifest import Manifest
from fedhp.comparison.rows import is_held_out
from fedhp.comparison.settings import common_settings
from fedhp.records.result import RunResult
from fedhp.sweep.texts import Row


@dataclass(frozen=True)
class Tables:
    """A comparison's figures.

    Attributes:
        runs: A row per run.
        arms: A row per strategy and value.
        classes: A row per strategy, value and device class.
        pairs: A row per pair of arms that are held against each other.
    """

    runs: Sequence[Row]
    arms: Sequence[Row]
    classes: Sequence[Row]
    pairs: Sequence[Row]


@dataclass(frozen=True)
class Result:
    """A comparison whose runs have ended.

    Attributes:
        root: Its folder.
        manifest: What was compared.
        records: The records of the runs that have one, by folder below the root.
        devices: By the same folder, how good the run's last model is on every device.
        tables: The figures.
    """

    root: Path
    manifest: Manifest
    records: Mapping[str, RunResult]
    devices: Mapping[str, Any]
    tables: Tables

    @property
    def varied(self) -> dict[str, list[str]]:
        """By varied key, its values as texts, numbers rising."""
        return {key: values_of(key, self.tables.arms) for key in self.manifest.keys}

    @property
    def seeds(self) -> list[int]:
        """The seeds, rising."""
        return sorted({entry.seed for entry in self.manifest.runs})

    @property
    def facets(self) -> list[Facet]:
        """The arms, as they are held against each other."""
        return facets(self.manifest.keys, self.tables.arms)

    @property
    def held_out(self) -> set[bool]:
        """Whether devices are judged on samples that they hold out: what is so of any run."""
        return {is_held_out(run) for run in self.records.values()}

    @property
    def settings(self) -> dict[str, Any]:
        """By dotted key, what all runs have in common."""
        return common_settings(next(iter(self.records.values())).config, self.manifest.keys)

    def runs_of(self, arm: Row) -> list[RunResult]:
        """Returns the records of an arm, a seed each."""
        return [self.records[folder] for folder in self._folders(arm)]

    def devices_of(self, arm: Row) -> Any:
        """Returns how good an arm's models are on every device, of all seeds."""
        return pd.concat([self.devices[folder] for folder in self._folders(arm)])

    def _folders(self, arm: Row) -> list[str]:
        return [
            entry.folder
            for entry in self.manifest.runs
            if (entry.strategy, entry.value) == (arm["strategy"], arm["value"])
            and entry.folder in self.records
        ]
