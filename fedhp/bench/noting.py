"""A client method that notes which model it was sent: what a run has gone on from, as devices see it."""

import hashlib
import os
from pathlib import Path
from typing import ClassVar

from fedhp.model.state import ModelState
from fedhp.training.method import ClientRun, Method

NOTES = "FEDHP_BENCH_NOTES"  # the folder of the notes, in the environment


class Noting(Method):
    """Leaves a file named by the round and the model."""

    name: ClassVar[str] = "noting"
    stackable: ClassVar[bool] = True
    on_arrays: ClassVar[bool] = True

    def begin(self, run: ClientRun) -> None:
        """Notes it."""
        (Path(os.environ[NOTES]) / f"{run.task.round}-{digest(run.task.state)}").touch()


def digest(state: ModelState) -> str:
    """Returns a digest of a model, to the bit."""
    found = hashlib.blake2b(state.structure.digest.encode(), digest_size=16)
    for name in sorted(state.weights):
        found.update(state.weights[name].tobytes())
    return found.hexdigest()
