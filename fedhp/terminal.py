"""What every command does around its work: logging that suits a terminal, errors that a person can read."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from fedhp.errors import FedhpError

_INPUT_REFUSED = 2
_INTERRUPTED = 130


@contextmanager
def readable_errors(debug: bool = False) -> Iterator[None]:
    """Sets up logging, and ends with one readable error and exit code 2 where input is refused.

    Args:
        debug: Let tracebacks through and show everything that is logged.
    """
    try:
        with _logging(debug):
            yield
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted", style="yellow")
        raise typer.Exit(_INTERRUPTED) from None
    except FedhpError as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False
        )
        raise typer.Exit(_INPUT_REFUSED) from None


@contextmanager
def _logging(debug: bool) -> Iterator[None]:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    # Flower sets its logger up when it is imported; what follows must come after.
    import flwr.app  # noqa: F401

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("fedhp").setLevel(logging.DEBUG if debug else logging.INFO)
    flower = logging.getLogger("flwr")
    before = flower.propagate, flower.level
    flower.propagate = False
    if not debug:
        # Flower announces every round on its own; fedhp's display says the same and more.
        flower.setLevel(logging.ERROR)
    try:
        yield
    finally:
        flower.propagate, flower.level = before
