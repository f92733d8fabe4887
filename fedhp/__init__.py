"""fedhp: federated training of one shrinking model on devices with little memory.

Public names: `simulate`, `train`, `load_model`, `load_run`; everything else by its module's name. They are
imported on first use, so that ``import fedhp`` stays light on a device.
"""

from typing import Any

__all__ = ["load_model", "load_run", "simulate", "train"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fedhp import api

        return getattr(api, name)
    raise AttributeError(f"module 'fedhp' has no attribute '{name}'")
