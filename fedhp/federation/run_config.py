"""Values as Flower's commands take them."""

import json
from collections.abc import Mapping

from fedhp.errors import DeploymentError


def written(values: Mapping[str, str | int | bool]) -> str:
    """Writes values as Flower's options of key-value pairs take them.

    Raises:
        DeploymentError: If a text is none, as a file's name may be whose bytes are not UTF-8.
    """
    return " ".join(f"{key}={_of(key, value)}" for key, value in values.items())


def _of(key: str, value: str | int | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DeploymentError(f"{key} is {value!r}, which is no text in UTF-8; give it another name")
    # JSON would write what lies beyond 16 bits as two halves, which TOML refuses, and leaves DEL as it is.
    inner = json.dumps(value, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")
    return '"{}"'.format(inner.replace('\\"', "\\u0022"))  # Flower ends it at the first quotation mark
