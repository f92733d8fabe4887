"""fedhp: federated training of one shrinking model on devices with little memory.

Public names: `simulate`, `resume`, `train`, `load_model`, `load_run`, `export`, `compare_records` and the
module `report`; everything else by its module's name. They are imported on first use, so that ``import
fedhp`` stays light on a device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhp import report
    from fedhp.api import load_model, load_run, resume, simulate, train
    from fedhp.exports.exporting import export
    from fedhp.twins.comparing import compare_records

__all__ = ["compare_records", "export", "load_model", "load_run", "report", "resume", "simulate", "train"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "report":
        return import_module("fedhp.report")
    if name == "compare_records":
        return getattr(import_module("fedhp.twins.comparing"), name)
    if name == "export":
        return getattr(import_module("fedhp.exports.exporting"), name)
    if name in __all__:
        return getattr(import_module("fedhp.api"), name)
    raise AttributeError(f"module 'fedhp' has no attribute '{name}'")
