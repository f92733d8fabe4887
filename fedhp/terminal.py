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
    _set_up_logging(debug)
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted", style="yellow")
        raise typer.Exit(_INTERRUPTED) from None
    except FedhpError as error:
        if debug:
            Console(stderr=True).print_exception()
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False
        )
        raise typer.Exit(_INPUT_REFUSED) from None


def _set_up_logging(debug: bool) -> None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("fedhp").setLevel(logging.DEBUG if debug else logging.INFO)
