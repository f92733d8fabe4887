"""What the library that divides data warns of, by warnings and by loggers."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

from fedhp.bounds import one_line

_LIBRARIES = ("datasets", "flwr_datasets")
_FOR_PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
_LONGEST = 300


class Heard(logging.Handler):
    """Keeps what libraries warn of, as one line each; of lines that differ in numbers only, the last."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record of a library's logger."""
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        """Keeps a text."""
        line = one_line(text, _LONGEST)
        self._lines[re.sub(r"[\d., ]+", " ", line)] = line

    @property
    def lines(self) -> list[str]:
        """What was kept."""
        return list(self._lines.values())


@contextlib.contextmanager
def overheard() -> Iterator[Heard]:
    """Keeps a partitioner's progress bar off the terminal, and what it warns of for the user."""
    heard = Heard()
    with contextlib.ExitStack() as ways:
        for name in _LIBRARIES:
            ways.enter_context(_listened_to(logging.getLogger(name), heard))
        ways.enter_context(contextlib.redirect_stderr(io.StringIO()))
        caught = ways.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        yield heard
    for warning in caught:
        if not issubclass(warning.category, _FOR_PROGRAMMERS):
            heard.add(str(warning.message))


@contextlib.contextmanager
def _listened_to(logger: logging.Logger, heard: logging.Handler) -> Iterator[None]:
    handlers, logger.handlers = logger.handlers, [heard]
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates
