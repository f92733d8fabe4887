"""Finding the apps by reference, and keeping torch to its threads."""

import sys
from typing import cast

from flwr.clientapp import ClientApp

from fedhp.errors import FedhpError
from fedhp.references import resolve
from fedhp.simulation.answering import CohortApp


def load_app(reference: str) -> ClientApp:
    """Returns the Flower app that ``"module:attr"`` names.

    Raises:
        FedhpError: If there is no such module or attribute, or it is no ``ClientApp``.
        ImportError: If the module exists and fails to import something of its own.
    """
    app = resolve(reference)
    if not isinstance(app, ClientApp):
        raise FedhpError(f"'{reference}' must name a flwr.clientapp.ClientApp, found a {type(app).__name__}")
    return app


def load_cohort_app(reference: str) -> CohortApp:
    """Returns what answers for several clients, which ``"module:attr"`` names.

    Raises:
        FedhpError: If there is no such module or attribute, or it cannot be called.
        ImportError: If the module exists and fails to import something of its own.
    """
    app = resolve(reference)
    if not callable(app):
        raise FedhpError(f"'{reference}' must name a function, found a {type(app).__name__}")
    return cast(CohortApp, app)


def limit_threads(num_threads: int) -> int | None:
    """Sets torch's threads and returns how many there were; None if nothing has imported torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    return before
