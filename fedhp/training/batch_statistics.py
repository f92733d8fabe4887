"""Running statistics of batch normalisations in training: always those of the network that is there."""

import numpy as np
from numpy.typing import NDArray

from fedhp.model.modules import restart_statistics, retake_statistics
from fedhp.training import moments
from fedhp.training.method import ClientRun


class BatchStatistics:
    """Which running statistics a client's training has: of how many samples since they began anew.

    Args:
        run: The training.
    """

    def __init__(self, run: ClientRun) -> None:
        self._run = run
        self._num_seen = 0

    def restart(self) -> None:
        """Forgets those of the network that was: from here on they are those of this one."""
        if self._run.memory.layout.buffers:
            restart_statistics(self._run.module)
        self._num_seen = 0

    def count(self, num_samples: int) -> None:
        """Takes in that a step has seen so many samples."""
        self._num_seen += num_samples

    def complete(self, order: NDArray[np.intp]) -> None:
        """Takes them anew where too few of an epoch's samples have come after its last cut.

        Args:
            order: The rows of the epoch's samples.
        """
        run, wanted = self._run, order[: moments.ENOUGH]
        layout = run.memory.layout
        if not layout.buffers or self._num_seen >= len(wanted):
            return
        batch = min(run.steps.batch, len(wanted))
        rows = moments.batches(wanted, batch, layout.smallest_batch)
        samples = (run.batch(some)[0] for some in rows)
        with run.meter.watching(("statistics", run.step_key(batch)), run.held):
            retake_statistics(run.module, samples)
