"""Finding things by reference, as Flower does: ``"module:attribute"``."""

import importlib
import pkgutil
import sys
from pathlib import PurePath
from types import ModuleType
from typing import Any

from fedhp.choices import did_you_mean
from fedhp.errors import ScenarioError

CLIENT_APP = "clients.client_app:app"
COHORT_APP = "clients.cohort_app:answer"
_APPS = ("clients", "strategies")


def resolve(reference: str, key: str = "") -> Any:
    """Returns what ``"module:attribute"`` names.

    The apps that ship lie inside fedhp once installed, and beside it in a checkout. They are looked for
    inside first: top-level names as common as ``strategies`` may be another distribution's. All else is
    looked for outside first: a user's ``models`` is not fedhp's.

    Args:
        reference: What was given.
        key: The scenario's key that it was given as, for errors; empty for a reference of fedhp's own.

    Raises:
        ScenarioError: If there is no such module or attribute.
        ImportError: If the module exists and fails to import something of its own.
    """
    said = f"{key}: " if key else ""
    module_name, _, attribute = reference.partition(":")
    if attribute and module_name.endswith(".py"):
        raise ScenarioError(
            f"{said}'{reference}' names a file, and a reference a module: write "
            f"{_dotted(module_name)}:{attribute}"
        )
    if not module_name or not attribute or module_name.startswith("."):
        raise ScenarioError(f"{said}a reference reads 'module:attribute', got '{reference}'")
    names = [module_name, f"fedhp.{module_name}"]
    if module_name.partition(".")[0] in _APPS:
        names.reverse()
    module = _find(names[0]) or _find(names[1])
    if module is None:
        raise ScenarioError(
            f"{said}'{reference}' is not to be found: neither '{module_name}' nor 'fedhp.{module_name}' is a "
            f"module on the Python path{_module_meant(module_name)}"
        )
    if not hasattr(module, attribute):
        raise ScenarioError(
            f"{said}'{reference}' is not to be found: module '{module_name}' has no '{attribute}'"
            f"{did_you_mean(attribute, dir(module))}"
        )
    return getattr(module, attribute)


def _module_meant(name: str) -> str:
    """Asks for the nearest of the modules beside: in the package, or where the user's own begin."""
    package, _, last = name.rpartition(".")
    parent = _find(package) if package else None
    if package and parent is None:
        return _module_meant(package)
    places = getattr(parent, "__path__", []) if package else sys.path[:1]
    return did_you_mean(last, [one.name for one in pkgutil.iter_modules(places)])


def _dotted(file: str) -> str:
    path = PurePath(file).with_suffix("")
    return path.name if path.is_absolute() or ".." in path.parts else ".".join(path.parts)


def _find(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the absence of the module itself or of its package: a module that exists and misses one of
        # its own imports must say so.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise
