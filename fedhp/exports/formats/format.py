"""What every format of a network does: write it, with numbers of either width, and run what was written."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedhp.bounds import one_line
from fedhp.errors import ExportError, FedhpError
from fedhp.exports.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

FLOAT32, INT8, INT8_DYNAMIC = DTYPES = ("float32", "int8", "int8_dynamic")

# A batch of one raw sample in; scores out, of shape (1, classes).
Runs = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Opened:
    """A file in its runtime, and what that tells of it.

    Attributes:
        runs: Runs it.
        shape: Of what it takes, the axis of the batch included.
        dtype: NumPy's name of what it takes.
    """

    runs: Runs
    shape: tuple[int, ...]
    dtype: str


class Format(ABC):
    """A format, and the runtime that is its own.

    Libraries are imported when they are asked for, PyTorch too: a device that runs a file may have the
    runtime alone.

    Attributes:
        name: By which it is asked for.
        suffix: Of its files.
        extra: The extra of fedhp that brings what it needs; empty where PyTorch is enough.
        runtime: The module that runs its files.
        runs_by: What pip is to install where files are only run.
        packages: What it needs, by the names under which they are installed.
        channels_last: Whether images go in with their channels in the last axis.
        dtypes: Which of `DTYPES` it has.
        names: By which its files know what goes in and what comes out; None where they are in order alone.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str]
    runtime: ClassVar[str]
    runs_by: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    channels_last: ClassVar[bool]
    dtypes: ClassVar[tuple[str, ...]]
    names: ClassVar[tuple[str, str] | None] = None

    def ready(self) -> None:
        """Imports what it needs; what that prints is kept off the terminal.

        Raises:
            MissingExtraError: If that is not installed.
            ExportError: If it is, and is broken.
        """
        with quiet():
            try:
                self.check()
            except FedhpError:
                raise
            except Exception as error:  # of any kind, as native code may be of another machine
                said = one_line(str(error), 300) or type(error).__name__
                raise ExportError(
                    f"what the format '{self.name}' needs is installed, and cannot be imported ({said}); "
                    f"install it anew: {', '.join(self.packages)}"
                ) from error

    @abstractmethod
    def check(self) -> None:
        """Imports what it needs.

        Raises:
            MissingExtraError: If that is not installed.
        """

    @abstractmethod
    def write(self, network: "nn.Module", example: NDArray[Any], path: Path) -> None:
        """Writes a network with float32 weights.

        Args:
            network: Takes ``example``.
            example: A batch of one sample.
            path: Of the file.
        """

    def write_int8(
        self, network: "nn.Module", calibration: Sequence[NDArray[Any]], path: Path, dynamic: bool
    ) -> list[str]:
        """Writes a network with int8 weights, and activations in int8 where it can.

        Args:
            network: Takes each of ``calibration``.
            calibration: Batches of one sample, by which the ranges of activations are found.
            path: Of the file.
            dynamic: Whether ranges are found anew for every sample, and of dense layers alone.

        Returns:
            The layers with weights that stayed in float32.
        """
        raise NotImplementedError

    def opened(self, path: Path, threads: int = 1) -> Runs:
        """Loads a file into its runtime."""
        return self.loaded(path, threads).runs

    @abstractmethod
    def loaded(self, path: Path, threads: int = 1) -> Opened:
        """Loads a file into its runtime, and asks that what the file is like."""
