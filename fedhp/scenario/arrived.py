"""The scenario as a message brings it: JSON of plain values, each of its key's type.

A device reads it without what reads YAML, overrides and interpolations.
"""

import json
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fedhp.errors import ScenarioError
from fedhp.scenario.explain import misfit, unknown_key, value_amiss
from fedhp.scenario.schema import KEYS, Scenario

_PLACE = "the scenario that arrived"


@lru_cache(maxsize=8)
def from_json(text: str) -> Scenario:
    """Reads `Scenario.to_json`; cached, because every message of a run carries the same text.

    Raises:
        ScenarioError: If a key or value does not fit the schema.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ScenarioError(f"{_PLACE} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ScenarioError(f"{_PLACE} is no mapping but a {type(values).__name__}")
    if flaw := value_amiss("", values, KEYS):
        raise ScenarioError(f"{_PLACE}: {flaw}")
    return _section(Scenario, "", values)


def _section(schema: Any, key: str, values: dict[str, Any]) -> Any:
    kinds = get_type_hints(schema, include_extras=True)
    keys = {name: f"{key}.{name}" if key else name for name in values}
    if unknown := [name for name in values if name not in kinds]:
        raise ScenarioError(f"{_PLACE}: {unknown_key(keys[unknown[0]], KEYS)}")
    return schema(**{name: _value(kinds[name], keys[name], value) for name, value in values.items()})


def _value(kind: Any, key: str, value: Any) -> Any:
    """Returns a key's value, of the type that its field has."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if is_dataclass(kind) and isinstance(value, dict):
        return _section(kind, key, value)
    if get_origin(kind) is list and isinstance(value, list):
        return [_value(get_args(kind)[0], f"{key}[{place}]", one) for place, one in enumerate(value)]
    kinds = () if get_origin(kind) is list else get_args(kind) or (kind,)
    if type(value) is int and int not in kinds and float in kinds:
        return float(value)
    if type(value) in (int, float) and str in kinds:  # taken as written: 2000000 bytes
        return str(value)
    if type(value) not in kinds:
        raise ScenarioError(f"{_PLACE}: {misfit(key, value, KEYS)}")
    return value
