"""What the runs of a comparison must have in common, and where two of them differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedhp.scenario.heeded import unheeded
from fedhp.scenario.schema import BESIDE_RESULTS, Scenario

# What a comparison sets in each run: `model.prune_inputs` is off for strategies that cut no inputs.
_VARIED = ("seed", "strategy", "model.prune_inputs", *BESIDE_RESULTS)


def common_settings(scenario: Scenario, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Returns, by dotted key, what all runs of a comparison share with this one.

    Args:
        scenario: That of one run.
        keys: The varied keys. One of the model takes all others of the model with it: a network brings its
            widths along.
    """
    # Each strategy has its own groups, and so its own widths within a time; what cuts nothing has none.
    widths = ("prune.widths", "prune.target_compression") if scenario.prune.widths else ()
    # And each method has options that others leave behind.
    vain = unheeded(scenario.train.method, Scenario()) if "train.method" in keys else {}
    varied = (*_VARIED, *widths, *vain, *("model" if key.startswith("model.") else key for key in keys))
    flat = _flat(json.loads(json.dumps(scenario.to_dict())))
    return {
        name: value
        for name, value in flat.items()
        if not any(f"{name}.".startswith(f"{one}.") for one in varied)
    }


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Says what differs of the keys that both have, with both values."""
    return [
        f"{key}: {was[key]}, now {value}" for key, value in now.items() if key in was and was[key] != value
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
