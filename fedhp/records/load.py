"""Reading a run record back, a killed run's too."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedhp.bounds import one_line, shown
from fedhp.errors import FedhpError, RecordError, ScenarioError, require
from fedhp.files.marks import RUN, model_name
from fedhp.model.state import ModelState
from fedhp.records.result import RunResult, later, read_table
from fedhp.records.rows import ROUNDS
from fedhp.records.summary import SUMMARY, Summary, Sums
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario

_GIVE = "give the folder that a run named as its record"
_WITHOUT = "without that file, its numbers are added up from the rounds"


def load_run(folder: str | Path) -> RunResult:
    """Loads the record of a run; the tables are read when asked for.

    A run may be loaded while it goes on, and after it was killed; see `RunResult`.

    Raises:
        RecordError: If a file is missing, incomplete or damaged; the message names it.
    """
    folder = _existing(folder)
    config, file = recorded_scenario(folder), folder / "summary.json"
    if file.exists():
        return RunResult(folder, _summary(file), config)
    rounds = read_table(folder / "rounds.parquet", ROUNDS)
    cause = f"no end is on record; it was last alive at {_last_alive(folder):%Y-%m-%d %H:%M:%S}"
    with undamaged(folder):
        return RunResult(folder, {**_added_up(config, rounds.to_dict("records")), "cause": cause}, config)


@contextmanager
def undamaged(*folders: Path) -> Iterator[None]:
    """Says that a record, or one of two, holds nothing that a run writes, where the block stumbles over it.

    Raises:
        RecordError: With what it stumbled over.
    """
    try:
        yield
    except FedhpError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        named = " or ".join(map(str, folders))
        raise RecordError(
            f"{named} is damaged: it holds what no run writes ({type(error).__name__}: "
            f"{one_line(str(error), 200)})"
        ) from error


def has_finished(folder: str | Path) -> bool:
    """Says whether a folder holds the record of a run that went on to its end.

    Raises:
        RecordError: If it holds a damaged one.
    """
    # A run that was killed may lack everything else.
    return (Path(folder) / "summary.json").exists() and load_run(folder).summary["status"] == "finished"


def load_state(folder: str | Path, level: float | None = None) -> tuple[ModelState, dict[str, Any]]:
    """Loads the last global model of a run.

    Args:
        folder: The run's record.
        level: The width of one of the narrower networks that it stands for; None for itself.

    Returns:
        The state, and its metadata: ``model`` (the scenario's model section), ``input_shape``,
        ``num_classes``, the full model's ``widths``, ``shapes`` and ``axes``, and what puts it to use:
        ``normalisation`` (the fields of a `fedhp.data.Normalisation`; None in older records) and
        ``label_names``.

    Raises:
        RecordError: If the record has no such level, or the model is missing, is no safetensors file, lacks
            a tensor, or holds one that does not fit its structure.
    """
    with require("reading a model", "server"):
        from fedhp.records import model_file
    place = _existing(folder)
    if level is None:
        return model_file.load(place / model_name())
    file = place / model_name(f"{level:g}")
    if not file.is_file():
        known = sorted(path.stem.removeprefix("level-") for path in place.glob(model_name("*")))
        of_those = f"it has {', '.join(known)}" if known else "only runs of strategy all_in_one have levels"
        raise RecordError(f"{folder} has no level {level:g}; {of_those}")
    return model_file.load(file)


def _last_alive(folder: Path) -> datetime:
    """Returns when something was last written to a record, in local time."""
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file()))


def _existing(folder: str | Path) -> Path:
    """Returns the absolute path of a record: its tables are read later, perhaps from elsewhere."""
    path = Path(folder).absolute()
    if not path.is_dir():
        flaw = "it is no folder" if path.exists() else "there is no such folder"
        raise RecordError(f"no run record at {folder}: {flaw}; {_GIVE}")
    return path


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise RecordError(f"{path} is damaged: {error}; {_WITHOUT}") from None
    if isinstance(summary, dict):
        summary = {**dict.fromkeys(later(SUMMARY)), **summary}
    if not isinstance(summary, dict) or not set(SUMMARY) <= set(summary):
        missing = sorted(set(SUMMARY) - set(summary)) if isinstance(summary, dict) else sorted(SUMMARY)
        raise RecordError(f"{path} is incomplete: it lacks {', '.join(missing)}; {_WITHOUT}")
    for key, kind in get_type_hints(Summary).items():
        if not _is(summary[key], kind):
            raise RecordError(f"{path} is damaged: {key} is {shown(summary[key])}; {_WITHOUT}")
    return summary


def _is(value: Any, kind: Any) -> bool:
    """Says whether a value that was read from JSON is of an annotated type."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_is(value, one) for one in get_args(kind))
    return isinstance(value, int | float if kind is float else get_origin(kind) or kind)


def _added_up(config: Scenario, rounds: list[dict[Any, Any]]) -> dict[str, Any]:
    """Returns the keys of `Summary`, from the rows of ``rounds.parquet``."""
    sums = Sums()
    for row in rounds:
        sums.add({name: _known(value) if ROUNDS[name].optional else value for name, value in row.items()})
    first, last = (rounds[0], rounds[-1]) if rounds else ({}, {})
    return {
        **dict.fromkeys(SUMMARY),
        "status": "unfinished",
        "scenario": config.name,
        "seed": config.seed,
        "params_full": round(last["params"] * last["compression"]) if last else None,
        # Where no device can train the full model, not even round 0 has it.
        "training_bytes_full": first["training_bytes"] if first.get("compression") == 1 else None,
        "versions": {},
        **sums.told(),
    }


def _known(value: float | None) -> float | None:
    """Returns a figure; None where the table has none, which pandas reads as NaN."""
    return None if value is None or math.isnan(value) else value


def recorded_scenario(folder: Path) -> Scenario:
    """Returns what was run, as a record says it.

    Raises:
        RecordError: If the folder is no record, or one of another version.
    """
    path = _existing(folder) / RUN
    if not path.is_file():
        raise RecordError(f"{path} is missing: the folder is no complete run record; {_GIVE}")
    try:
        return load_scenario(path)
    except ScenarioError as error:
        raise RecordError(f"{path} holds no scenario of this version: {error}") from None
