"""What an export came to: its files, and what each is like."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedhp.exports.packed import Compression, Patterned
from fedhp.exports.verifying import Agreement


@dataclass(frozen=True)
class ExportedFile:
    """A file, verified in its own runtime.

    Attributes:
        name: Within the export's folder.
        format: One of `FORMATS`.
        dtype: Of its weights, one of `DTYPES`.
        num_bytes: Its size.
        sha256: Its digest.
        microseconds: For one sample with one thread, the median.
        agreement: With the network that it was made from, which may be a compressed one.
        left_float: The layers of an int8 file whose weights stayed in float32.
        versions: Of the packages that wrote and ran it.
        remarks: What is worth knowing, such as an int8 file that is no smaller.
    """

    name: str
    format: str
    dtype: str
    num_bytes: int
    sha256: str
    microseconds: float
    agreement: Agreement
    left_float: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Exported:
    """What `fedhp.export` wrote.

    Attributes:
        folder: Where the files lie, with ``export.json``, ``model_card.md`` and the labels' names.
        files: Those that were written.
        failures: By format and width, such as ``litert int8``, why there is none.
        compression: What the network became before it was written; None where it is as it was trained.
        pattern: What it takes by the pattern that it was trained to have; None without, or where it is
            compressed.
        num_held_out: How many held-out samples the run has, on some of which each file was verified.
    """

    folder: Path
    files: Sequence[ExportedFile]
    failures: Mapping[str, str] = field(default_factory=dict)
    compression: Compression | None = None
    pattern: Patterned | None = None
    num_held_out: int = 0
