"""Finding the client app by reference, and keeping torch to its threads."""

import importlib
import sys
from types import ModuleType

from flwr.clientapp import ClientApp

from fedhp.errors import FedhpError


def load_app(reference: str) -> ClientApp:
    """Returns the Flower app that ``"module:attr"`` names.

    The apps that ship lie beside fedhp in a checkout and inside it once installed, so a module that
    does not exist as named is also looked for inside ``fedhp``.

    Raises:
        FedhpError: If there is no such module or attribute, or it is no ``ClientApp``.
        ImportError: If the module exists and fails to import something of its own.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise FedhpError(f"a client app is named as 'module:attr', got '{reference}'")
    module = _find(module_name) or _find(f"fedhp.{module_name}")
    if module is None:
        raise FedhpError(
            f"no client app '{reference}': neither '{module_name}' nor 'fedhp.{module_name}' is a "
            "module on the Python path"
        )
    app = getattr(module, attribute, None)
    if not isinstance(app, ClientApp):
        found = "nothing" if app is None else f"a {type(app).__name__}"
        raise FedhpError(f"'{reference}' must name a flwr.clientapp.ClientApp, found {found}")
    return app


def _find(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the absence of the module itself or of its package: a module that exists and misses
        # one of its own imports must say so.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def limit_threads(num_threads: int) -> int | None:
    """Sets torch's threads and returns how many there were; None if nothing has imported torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    return before
