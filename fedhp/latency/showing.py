"""How far measuring is: a line that changes in a terminal, otherwise one that says what is done."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from fedhp.latency.measuring import Tell


@contextmanager
def measuring(runtime: str) -> Iterator[Tell]:
    """Yields what is to be told how many networks are written, and of how many; nothing shows before."""
    # On a copy of the stream: converters' own words are kept off the stream itself meanwhile.
    with os.fdopen(os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2), "w") as stream:
        console = Console(file=stream, highlight=False)
        status = console.status("")

        def tell(done: int, of: int) -> None:
            said = f"measuring networks in {runtime}: {done} of {of}"
            if console.is_terminal:
                status.update(said if done < of else f"measuring {of} networks in {runtime}")
                status.start()
            elif done == 0:
                console.print(f"measuring {of} networks in {runtime}")

        try:
            yield tell
        finally:
            status.stop()
