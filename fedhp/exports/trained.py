"""The final network of a record, as it was trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhp.data.normalisation import Normalisation
from fedhp.errors import RecordError
from fedhp.model.architecture import Architecture
from fedhp.model.state import ModelState

LOAD_BY = "load it with the version of fedhp that wrote it"


@dataclass(frozen=True, eq=False)
class Trained:
    """The final network of a record.

    Attributes:
        folder: The record.
        arch: How the network is built.
        state: Its units and weights.
        layout: How samples were read, one of `fedhp.data.LAYOUTS`.
        label_names: The classes' names; none where they have numbers only.
        told: What the record says of `normalisation`, the fields of it; None in older records.
    """

    folder: Path
    arch: Architecture
    state: ModelState
    layout: str
    label_names: tuple[str, ...]
    told: Mapping[str, Any] | None

    @property
    def normalisation(self) -> Normalisation:
        """What brings raw samples to those that the network was trained on.

        Raises:
            RecordError: If the record is too old to tell.
        """
        told = self.told
        if told is None:
            raise RecordError(
                f"{self.folder} does not tell how samples were normalised; {LOAD_BY}, or normalise them "
                f"yourself"
            )
        return Normalisation(tuple(told["mean"]), tuple(told["std"]), told["axis"])
