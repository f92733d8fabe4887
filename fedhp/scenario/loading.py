"""Scenarios: found, merged and checked, whatever the user wrote."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ConfigTypeError, OmegaConfBaseException, ValidationError

from fedhp.bounds import one_line, shown
from fedhp.choices import file_meant
from fedhp.errors import ScenarioError
from fedhp.fleet.devices import DeviceClassConfig
from fedhp.scenario.explain import is_known, keys_named, misfit, section_amiss, unknown_key, value_amiss
from fedhp.scenario.heeded import gives, unheeded
from fedhp.scenario.schema import KEYS, Scenario

_SUFFIXES = (".yaml", ".yml")
_DATA_SUFFIXES = (".npz", ".npy", ".csv", ".tsv", ".parquet")  # of which fedhp init says what it makes
_IN_PLACE_OF = {
    "widths": ("target_latency", "runtime", "target_compression"),
    "target_latency": ("target_compression",),
}


def scenarios_folder() -> Path:
    """Returns the folder of the scenarios that ship: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "scenarios"
    return installed if installed.is_dir() else package.parent / "scenarios"


def shipped_scenarios() -> dict[str, Path]:
    """Returns the scenarios that ship, by name."""
    return {path.stem: path for path in sorted(scenarios_folder().glob("*.yaml"))}


def load_scenario(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Scenario:
    """Loads a scenario by the name of one that ships, or by the path of a YAML file.

    Args:
        name_or_path: A shipped scenario's name, or a path.
        overrides: OmegaConf dotlist entries such as ``train.learning_rate=0.1``; they win over the file.
        values: Nested or dotted values, for callers from Python; they win over the dotlist.

    Raises:
        ScenarioError: If there is no such scenario, or a key or value does not fit the schema.
    """
    file = _find(name_or_path)
    layers = [_read(path) for path in _ancestry(file)]
    scenario = _checked(layers, str(file))
    if not overrides and not values:
        return scenario
    given = _given(overrides, values)
    scenario = _checked([*layers, given], "overrides")
    _check_heeded(scenario, given.get("prune") or {})
    return scenario


def keys_like(name: str) -> list[str]:
    """Returns the scenario's keys that somebody means who writes this for one: see `keys_named`."""
    return keys_named(name, KEYS)


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Splits a command's arguments into a scenario and overrides: what comes first is one if it has no =."""
    if arguments and "=" not in arguments[0]:
        return arguments[0], list(arguments[1:])
    return "quickstart", list(arguments)


def given_keys(overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> list[str]:
    """Returns the dotted keys that overrides set, each as deep as it goes.

    Raises:
        ScenarioError: If an override cannot be read.
    """
    return list(_leaves(OmegaConf.to_container(_given(overrides, values)), ""))


def _leaves(part: Any, prefix: str) -> Iterator[str]:
    if not isinstance(part, dict):
        yield prefix
        return
    for key, value in part.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _check_heeded(scenario: Scenario, given: Collection[str]) -> None:
    """Refuses what is given anew of ``prune`` where the scenario has something in its place.

    A record's file has all of it: a target in milliseconds, the widths that were chosen, what they come to.
    """
    prune = scenario.prune
    for key, value, none in (("widths", prune.widths, "[]"), ("target_latency", prune.target_latency, "''")):
        unheeded = [one for one in _IN_PLACE_OF[key] if one in given]
        if value and unheeded:
            raise ScenarioError(
                f"prune.{unheeded[0]} has no effect beside prune.{key} = {value}: leave it out, or give "
                f"prune.{key}={none} too"
            )


def _find(name_or_path: str | Path) -> Path:
    shipped = shipped_scenarios()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix in _DATA_SUFFIXES and path.is_file():
        given = shlex.quote(str(path))
        raise ScenarioError(f"{path} is data, not a scenario: fedhp init {given} writes one")
    if path.is_file():
        return path
    meant = file_meant(path, _SUFFIXES, shipped)
    if path.suffix in _SUFFIXES:
        raise ScenarioError(f"no scenario file {path}{meant}")
    raise ScenarioError(
        f"no scenario {shown(str(name_or_path))}: it is neither the path of a YAML file nor one of those "
        f"that ship ({', '.join(shipped)}){meant}"
    )


def _ancestry(file: Path) -> list[Path]:
    """Returns the file preceded by its parents (``extends``), the farthest first."""
    chain = [file]
    while parent := _read(chain[0], keep_extends=True).get("extends"):
        beside = chain[0].parent / str(parent)
        found = beside if beside.is_file() else _find(str(parent))
        if found.resolve() in [path.resolve() for path in chain]:
            raise ScenarioError(f"{file}: scenarios extend each other in a circle at {found}")
        chain.insert(0, found)
    return chain


def _read(file: Path, keep_extends: bool = False) -> DictConfig:
    try:
        loaded = OmegaConf.load(file)
    except Exception as error:  # the YAML parser raises many kinds; all mean an unreadable file
        raise ScenarioError(f"{file} cannot be read as YAML: {_fault(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise ScenarioError(f"{file} must hold a mapping of scenario keys at its top level")
    if not keep_extends:
        loaded.pop("extends", None)
    return loaded


def _given(overrides: Sequence[str], values: Mapping[str, Any] | None) -> DictConfig:
    """Returns overrides of both kinds as one layer."""
    given = OmegaConf.merge(_dotlist(overrides), _nested(values or {}))
    assert isinstance(given, DictConfig)
    return given


def _dotlist(overrides: Sequence[str]) -> DictConfig:
    for entry in overrides:
        if "=" not in entry:
            raise ScenarioError(
                f"'{entry}' is no override, which must read key=value, such as rounds=5; a scenario comes "
                f"first, before all overrides"
            )
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # any parser error means an ill-formed value
        given = one_line(" ".join(overrides), 200)
        raise ScenarioError(f"overrides {given} cannot be read: {_fault(error)}") from None


def _nested(values: Mapping[str, Any]) -> DictConfig:
    config = OmegaConf.create({})
    for key, value in values.items():
        try:
            OmegaConf.update(config, key, _plain(value), merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise ScenarioError(f"{key}: {_first_line(error)}") from None
    return config


def _plain(value: Any) -> Any:
    """Returns NumPy's numbers, which a loop over ``linspace`` gives, as Python's; also those inside."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _checked(layers: Sequence[DictConfig], place: str) -> Scenario:
    for layer in layers:
        if flaw := value_amiss("", OmegaConf.to_container(layer), KEYS):
            raise ScenarioError(f"{place}: {flaw}")
    try:
        scenario = OmegaConf.to_object(_merged(layers, place))
    except ScenarioError:
        raise
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ScenarioError):
            raise error.__cause__ from None
        raise ScenarioError(f"{place}: {_explain(error, layers)}") from None
    assert isinstance(scenario, Scenario)
    return scenario


def _merged(layers: Sequence[DictConfig], place: str) -> Any:
    """Merges layers.

    One that changes the network without saying its widths, or its time steps, does not inherit another's; and
    one that names a network that ships has it in the place of a target of the user's own, which would win
    over any name. One that changes the method does not inherit options of another.
    """
    merged: Any = _writable(OmegaConf.structured(Scenario))
    for layer in layers:
        network, method = (merged.model.name, merged.model.target), merged.train.method
        try:
            merged = OmegaConf.merge(merged, layer)
        except TypeError:  # OmegaConf's word for a mapping where a list is: fleet.classes.0.memory makes one
            raise ScenarioError(
                f"{place}: a list is given as a whole, such as model.widths=[64,32]; keys below one, such as "
                "fleet.classes.0.memory, are refused"
            ) from None
        given = layer.get("model") or {}
        if "name" in given and "target" not in given:
            merged = OmegaConf.merge(merged, {"model": {"target": ""}})
        if (merged.model.name, merged.model.target) != network:
            own = {key: none for key, none in (("widths", []), ("time_steps", 0)) if key not in given}
            merged = OmegaConf.merge(merged, {"model": own})
        if merged.train.method != method:
            anew, vain = OmegaConf.to_container(layer), unheeded(str(merged.train.method), Scenario())
            left_behind = {key: default for key, default in vain.items() if not gives(anew, key)}
            merged = OmegaConf.merge(merged, _nested(left_behind))
    return merged


def _writable(config: Any) -> Any:
    """Lets a frozen class's sections be merged into, which OmegaConf 2.3 does not by itself."""
    OmegaConf.set_readonly(config, False)
    for value in config.values():
        if isinstance(value, DictConfig):
            _writable(value)
    return config


def _explain(error: OmegaConfBaseException, layers: Sequence[DictConfig]) -> str:
    key = str(getattr(error, "full_key", None) or "")
    if key == "extends":
        return "extends belongs into a scenario file; give the scenario's name or path itself instead"
    for layer in layers:
        if amiss := section_amiss(OmegaConf.to_container(layer), KEYS):  # type: ignore[arg-type]
            return misfit(*amiss, KEYS)
    if error.object_type is DeviceClassConfig:  # whose keys come without the list's
        key = f"fleet.classes[].{key}"
    if isinstance(error, ConfigKeyError):
        return unknown_key(key, KEYS)
    if isinstance(error, ValidationError) and is_known(key, KEYS):
        return misfit(key, error.value, KEYS)
    if isinstance(error, ConfigTypeError):  # a list within a list, which OmegaConf lets through
        return f"a value in section '{key}' is of the wrong type"
    text = _first_line(error)
    return text if key in text else f"{text} (at '{key}')"


def _fault(error: Exception) -> str:
    """Says in one line what is wrong with a YAML text, and where."""
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else _first_line(error)


def _first_line(error: BaseException) -> str:
    return one_line(str(error).splitlines()[0]) if str(error) else type(error).__name__
