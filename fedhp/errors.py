"""Errors that fedhp raises for its users.

Each also derives from the built-in that fits, so that callers may catch broadly (``FedhpError``,
``ValueError``) or narrowly. Messages say what was wanted, what came and what to do. Our own bugs are
``assert``; these classes are for input, data, devices and messages from outside.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class FedhpError(Exception):
    """Anything that fedhp refuses on purpose; the command line prints it without a traceback."""


class ScenarioError(FedhpError, ValueError):
    """A scenario holds an unknown key, an ill-typed value or an impossible combination."""


class DataError(FedhpError, ValueError):
    """Training data is missing, truncated or mislabelled."""


class DivisionError(DataError, ScenarioError):
    """Training data cannot be divided among the clients as a scenario asks."""


class BudgetError(FedhpError, ValueError):
    """Not even the smallest structure, with one sample, fits a device's memory budget."""


class WireError(FedhpError, ValueError):
    """A message from the other side has wrong keys, shapes, types, bits or values."""


class RecordError(FedhpError, ValueError):
    """A run record cannot be written, or does not hold what it should."""


class ExportError(FedhpError, ValueError):
    """A network cannot be exported, or the file does not do what the network does."""


class DeploymentError(FedhpError, ValueError):
    """A key, a certificate or a folder of a server or a device is missing, open to others or out of date."""


class TrainingError(FedhpError, RuntimeError):
    """Training cannot go on: no client of a round succeeded, or the loss is not finite."""


class MissingExtraError(FedhpError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, purpose: str, module: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{module}', which is not installed. "
            f"Install it with: pip install 'fedhp[{extra}]' (in a checkout: pip install -e '.[{extra}]')"
        )


class NeedsTorchError(FedhpError, ImportError):
    """PyTorch is needed and not installed: a device may do without."""

    def __init__(self, what: str = "", extra: str = "torch") -> None:
        super().__init__(f"{what} needs PyTorch: pip install 'fedhp[{extra}]'".lstrip())


@contextmanager
def needing_torch(what: str = "", extra: str = "torch") -> Iterator[None]:
    """Has the block say in one line that it needs PyTorch, where that is not installed.

    Args:
        what: Needs it; empty for whatever was asked for.
        extra: Which extra of fedhp brings it, and what else that needs.

    Raises:
        NeedsTorchError: If it is not.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise NeedsTorchError(what, extra) from None


@contextmanager
def require(purpose: str, extra: str, package: str | None = None) -> Iterator[None]:
    """Has the imports of the block say how to install what they lack.

    Args:
        purpose: What they are for.
        extra: Which extra of fedhp brings them.
        package: What is asked for where one is missing; by default the one that is.

    Raises:
        MissingExtraError: If a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(purpose, package or error.name or extra, extra) from None
