"""Finding the client app by reference, and keeping torch to its threads."""

import sys

from flwr.clientapp import ClientApp

from fedhp.errors import FedhpError
from fedhp.references import resolve


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


def limit_threads(num_threads: int) -> int | None:
    """Sets torch's threads and returns how many there were; None if nothing has imported torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    return before
