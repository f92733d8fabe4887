"""Fields of Flower's records, read as the types that they must be."""

from collections.abc import Mapping
from typing import Any, TypeVar

from flwr.app import ConfigRecord, RecordDict

from fedhp.errors import WireError

_T = TypeVar("_T", bool, int, float, str, list[Any])


def read_config(content: RecordDict, key: str) -> ConfigRecord:
    """Returns a config record.

    Raises:
        WireError: If there is none.
    """
    record = content.config_records.get(key)
    if record is None:
        raise WireError(f"no config record '{key}', got {sorted(content)}")
    return record


def read_field(record: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    """Returns a field.

    Raises:
        WireError: If it is missing or of another type.
    """
    value = record.get(key)
    # Not isinstance: True is no number of examples, though Python counts it as an integer.
    if type(value) is not kind or value is None:
        raise WireError(f"{key}: expected {kind.__name__}, got {value!r}")
    return value
