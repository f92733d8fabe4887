"""What a comparison's folder says of itself: what was compared, and where the records are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from fedhp.errors import RecordError
from fedhp.files.atomic import replace_text
from fedhp.files.marks import COMPARISON


@dataclass(frozen=True)
class Entry:
    """A run of a comparison.

    Attributes:
        folder: Where its record is, below the comparison's folder.
        strategy: Its strategy.
        values: Of each varied key that the strategy has a use for, its value, as text.
        seed: Its seed.
        status: How it ended, "waiting" before it has.
        reason: Why, where it was refused or failed.
    """

    folder: str
    strategy: str
    values: Mapping[str, str]
    seed: int
    status: str = "waiting"
    reason: str = ""

    @property
    def value(self) -> str:
        """Its values in one text; empty where nothing is varied."""
        return " / ".join(self.values.values())

    @property
    def labels(self) -> dict[str, Any]:
        """What tables group by."""
        return {"strategy": self.strategy, "value": self.value, **self.values, "seed": self.seed}


@dataclass(frozen=True)
class Manifest:
    """A comparison.

    Attributes:
        scenario: A scenario's name or path.
        keys: The keys that are varied.
        overrides: Scenario values that hold in every run.
        runs: Its runs.
        settings: By dotted key, what all runs have in common.
        tracked_as: Of which run of Weights & Biases it is, whenever it is repeated or extended.
        name: What the scenario calls itself; empty of comparisons by earlier versions.
        export: The format that each network is exported to; empty for none.
    """

    scenario: str
    keys: Sequence[str]
    overrides: Sequence[str]
    runs: Sequence[Entry]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tracked_as: str = field(default_factory=lambda: token_hex(4))
    name: str = ""
    export: str = ""

    @property
    def called(self) -> str:
        """What the scenario is called on pages: of a file its name, not where it lies."""
        return self.name or self.scenario

    @property
    def title(self) -> str:
        """What is compared."""
        return f"Strategies on {self.called}" + (f" over {' and '.join(self.keys)}" if self.keys else "")


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Writes ``comparison.json``: what a report, and a repeated command, start from."""
    replace_text(root / COMPARISON, json.dumps(asdict(manifest), indent=2) + "\n")


def read_manifest(root: Path) -> Manifest:
    """Reads ``comparison.json``.

    Raises:
        RecordError: If there is none, or it is damaged.
    """
    path = root / COMPARISON
    try:
        found = _current(json.loads(path.read_text(encoding="utf-8")))
        return Manifest(**{**found, "runs": [_checked(Entry(**run)) for run in found["runs"]]})
    except FileNotFoundError:
        raise RecordError(f"{path} is missing: the folder is no comparison") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(
            f"{path} is damaged: {error}; remove this file and repeat 'fedhp compare' with all that was "
            "compared: runs that have finished are not run again"
        ) from None


def _current(found: dict[str, Any]) -> dict[str, Any]:
    """Returns what an earlier version wrote, which varied one key at most, as it is written now."""
    if "key" not in found:
        return found
    key = found.pop("key")
    for run in found["runs"]:
        value = run.pop("value")
        run["values"] = {key: value} if value else {}
    return {**found, "keys": [key] if key else []}


def _checked(entry: Entry) -> Entry:
    """Refuses an entry that is not of its types: the file may have been written by hand.

    Raises:
        TypeError: If it is not.
    """
    texts = (entry.folder, entry.strategy, entry.status, entry.reason, *entry.values.values())
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.seed, int):
        raise TypeError(f"the run {entry.folder} is not told in texts and an integer seed")
    return entry
