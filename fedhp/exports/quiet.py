"""Keeps what libraries print to themselves: converters say much, of which nothing is an error."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_logger = logging.getLogger("fedhp")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps off the terminal what is printed within, also by native code; it is logged for ``--debug``."""
    with tempfile.TemporaryFile() as kept, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stdout.flush()
        sys.stderr.flush()
        before = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in before:
                os.dup2(kept.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in before:
                os.dup2(copy, number)
                os.close(copy)
            kept.seek(0)
            _logger.debug("%s", kept.read().decode(errors="replace"))
