"""Which options belong to which way of making networks small: what has no effect is refused."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fedhp.training.method_names import DYNHP, RIGL, SET, SMCP, SPARSE

# By the beginnings of their keys; what begins with none of them is everybody's.
_OWNERS = {
    "prune.target_compression": (DYNHP, SMCP, *SPARSE),
    "prune.cost": (SMCP,),
    **dict.fromkeys(("prune.start", "prune.end", "prune.cuts", "prune.blend"), (DYNHP, SMCP)),
    "prune.runtime": (DYNHP, *SPARSE),  # in which `fedhp latency` measures, too
    "prune.": (DYNHP,),
    "train.sparse.densities": SPARSE,
    "train.sparse.": (RIGL, SET),
}


def unheeded(method: str, usual: Any) -> dict[str, Any]:
    """Returns the keys that a method has no use for, with their defaults; of one that is not known, none.

    Args:
        method: ``train.method``.
        usual: The scenario of all defaults.
    """
    if method not in (DYNHP, SMCP, *SPARSE):
        return {}
    owned = {**dict(leaves(usual.prune, "prune.")), **dict(leaves(usual.train.sparse, "train.sparse."))}
    return {key: default for key, default in owned.items() if method not in _owners(key)}


def vain_option(scenario: Any, usual: Any) -> str | None:
    """Says which option is set that a scenario's method has no use for; None where none is."""
    method = scenario.train.method
    for key, default in unheeded(method, usual).items():
        value = scenario
        for name in key.split("."):
            value = getattr(value, name)
        if value != default:
            return (
                f"{key} = {value} has no effect with train.method = {method}; leave it out, or choose "
                f"train.method = {' or '.join(_owners(key))}"
            )
    return None


def gives(layer: Any, key: str) -> bool:
    """Says whether a layer of a scenario, nested, gives a key."""
    for name in key.split("."):
        if not isinstance(layer, Mapping) or name not in layer:
            return False
        layer = layer[name]
    return True


def _owners(key: str) -> tuple[str, ...]:
    return next(owners for beginning, owners in _OWNERS.items() if key.startswith(beginning))


def leaves(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields the keys of a section, and of those within it, with their values."""
    for option in fields(part):
        key, value = f"{prefix}{option.name}", getattr(part, option.name)
        if is_dataclass(value):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value
