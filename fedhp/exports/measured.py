"""What a file costs in its runtime: time, memory, bytes, and energy where the machine tells it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Ratios:
    """A file's costs as shares of those of the file that it is held against.

    Attributes:
        time: The median over the turns, in each of which both were run.
        time_quartiles: Between which half of the turns lie.
        size: Of the files.
        memory: Of the processes; None where the system does not tell.
    """

    time: float
    time_quartiles: tuple[float, float]
    size: float
    memory: float | None


@dataclass(frozen=True)
class Measured:
    """A file, measured in its own runtime with one sample at a time.

    Attributes:
        file: As it was given.
        format: One of `FORMATS`.
        shape: Of what it takes, the axis of the batch included.
        dtype: Of what it takes.
        threads: With how many it ran.
        microseconds: For a sample, once warm; the median of all calls.
        microseconds_p95: What 95 of 100 calls stay below.
        num_calls: How many were timed.
        num_bytes: The file's size.
        memory_bytes: What a process that has the runtime grows by, at most, as it loads and runs the file;
            None where the system does not tell.
        microjoules: What the processor's package took for a sample; None where the machine does not tell.
        against: Its costs beside those of another file; None where there is no other.
    """

    file: str
    format: str
    shape: tuple[int, ...]
    dtype: str
    threads: int
    microseconds: float
    microseconds_p95: float
    num_calls: int
    num_bytes: int
    memory_bytes: int | None
    microjoules: float | None
    against: Ratios | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """What `measure` found.

    Attributes:
        files: Those that were measured, in the order in which they were given.
        failures: By file, why it was not.
    """

    files: tuple[Measured, ...]
    failures: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return {"files": [one.to_dict() for one in self.files], "failures": dict(self.failures)}
