"""What one pass of a client over its data measures."""

import math
from dataclasses import dataclass

from fedhp.errors import TrainingError
from fedhp.model.structure import Structure
from fedhp.training.meter import Meter
from fedhp.training.statistics import Statistics
from fedhp.training.update import RoundTask


@dataclass
class Epoch:
    """An epoch under way.

    Attributes:
        number: Which it is, from 0.
        assigned: The structure at its beginning.
        first_batch: Samples per step at its beginning.
        seconds_before: What the training had taken until then; the first epoch counts what lay before it.
        done: Samples that are done.
        gradient_norm: That of the first step's gradients; None before.
        loss_sum: The sum of the samples' losses, each at the time of its step.
        num_right: How many samples were predicted right.
    """

    number: int
    assigned: Structure
    first_batch: int
    seconds_before: float
    done: int = 0
    gradient_norm: float | None = None
    loss_sum: float = 0.0
    num_right: int = 0

    def count(self, number: int, loss: float, num_right: int) -> None:
        """Takes in a step: its samples, their mean loss, and how many were predicted right."""
        self.done += number
        self.loss_sum += loss * number
        self.num_right += num_right

    def statistics(self, task: RoundTask, meter: Meter, last_batch: int, seconds: float) -> Statistics:
        """Returns what it measured.

        Args:
            task: What is trained.
            meter: What it took of memory.
            last_batch: Samples per step at its end.
            seconds: What the training has taken until now.

        Raises:
            TrainingError: If the loss is not finite.
        """
        return Statistics(
            train_loss=_finite(self.loss_sum / self.done, task),
            accuracy=self.num_right / self.done,
            gradient_norm=self.gradient_norm or 0.0,
            memory_predicted_bytes=meter.predicted,
            memory_measured_bytes=meter.measured,
            memory_mean_bytes=meter.mean(self.done),
            batch_size_first=self.first_batch,
            batch_size_last=last_batch,
            seconds=seconds - self.seconds_before,
        )


def _finite(loss: float, task: RoundTask) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training loss of client {task.client} in round {task.round} is {loss}; lower "
            "train.learning_rate"
        )
    return loss
