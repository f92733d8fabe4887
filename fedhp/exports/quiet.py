"""Around converters and runtimes: what they print is kept off the terminal, and what they raise is named."""

import errno
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fedhp.bounds import one_line
from fedhp.errors import ExportError, FedhpError

_logger = logging.getLogger("fedhp")

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


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


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Says so where the disk takes no file, which is no flaw of a format.

    Raises:
        ExportError: With what the system says.
    """
    try:
        yield
    except OSError as error:
        raise ExportError(f"{what} cannot be written: {one_line(str(error), 300)}") from error


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Says which format could not take the network, whatever its converter raises, by what came first."""
    try:
        yield
    except FedhpError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_DISKS:
            raise
        _logger.debug("%s", what, exc_info=True)
        said = _first_cause(error)
        raise ExportError(f"{what} cannot take this network: {said}") from error


def _first_cause(error: BaseException) -> str:
    """Returns what was raised first, and names the operator; converters put advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub("\x1b\\[[0-9;]*m", "", str(error))  # of colours
    return one_line(" ".join(plain.split()), 300) or type(error).__name__
