"""What may be said anew of a run that goes on, what is said of it, and the command of one on devices."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhp.errors import ScenarioError
from fedhp.federation.run_config import written
from fedhp.files.marks import RUN
from fedhp.records.kept import Kept
from fedhp.records.totals import versions
from fedhp.records.wording import goes_on
from fedhp.run.basis import changed_modules
from fedhp.scenario.loading import given_keys, load_scenario
from fedhp.scenario.schema import Scenario

# What may be said anew: it moves not even last bits.
FREE_KEYS = ("simulation.num_workers", "simulation.address", "server.checkpoint")


def resumed(folder: Path, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> Scenario:
    """Returns the scenario of a record with what is said anew of it.

    Raises:
        ScenarioError: If that may change results.
    """
    keys = given_keys(overrides, values)
    if refused := sorted(key for key in keys if key not in FREE_KEYS):
        raise ScenarioError(
            f"{', '.join(refused)}: a run goes on as it was begun, or it would be another; only "
            f"{', '.join(FREE_KEYS)} may be given"
        )
    return load_scenario(folder / RUN, overrides, values)


def notes_on(kept: Kept, rounds: int, now: Mapping[str, str]) -> Iterator[str]:
    """Yields what is said of a run as it goes on, from what it is based on now."""
    yield goes_on(kept.told, rounds)
    was, found = kept.versions, versions()
    for name in ("torch", "numpy"):
        if was.get(name) != found.get(name):
            yield (
                f"begun with {name} {was.get(name)}, it goes on with {found.get(name)}: from here on, "
                f"results may differ in their last bits from those of a run that was never cut short"
            )
    for module in changed_modules(kept, now):
        yield f"{module} has changed since the run was begun: from here on, results may differ"


def flower_command(folder: Path) -> str:
    """Returns the command by which Flower goes on with the run of a record, from the app's folder."""
    return shlex.join(flower_words(folder))


def flower_words(folder: Path, federation: str = "", overrides: Sequence[str] = ()) -> list[str]:
    """Returns the words of that command; without a federation, it is Flower's default one."""
    where, config = [federation] if federation else [], {"resume": str(folder.absolute())}
    if overrides:
        config["overrides"] = shlex.join(overrides)
    return ["flwr", "run", ".", *where, "--stream", "--run-config", written(config)]
