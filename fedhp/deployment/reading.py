"""Small files that a server or a device keeps, read so that what is wrong with one is said in a line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm

from fedhp.errors import DeploymentError

_FLAWS = (ValueError, TypeError, LookupError, AttributeError, UnsupportedAlgorithm)


@contextmanager
def reading(path: Path, what: str, flaw: str = "", remedy: str = "") -> Iterator[None]:
    """Has the block, which reads a file, say what is wrong with that.

    What libraries say of it is left out: it names their own questions and answers.

    Args:
        path: The file.
        what: What it should be, such as "a certificate".
        flaw: What is said of a file that is something else; by default that it is damaged, or not ``what``.
        remedy: What to do about that.

    Raises:
        DeploymentError: If it is missing, cannot be read, or is something else.
    """
    try:
        yield
    except DeploymentError:
        raise
    except FileNotFoundError:
        raise DeploymentError(f"no file {path}, which should be {what}") from None
    except OSError as error:
        raise DeploymentError(f"{path} cannot be read: {error.strerror or error}") from None
    except _FLAWS:
        said = f"{path} {flaw or f'is damaged, or not {what}'}"
        raise DeploymentError("; ".join(filter(None, (said, remedy)))) from None
