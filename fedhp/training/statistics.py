"""What a client measures during its local training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fedhp.training.figures import Figure, columns, first, mean


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a client measured during its local training.

    A figure more is a field here, and where it is measured: its `Figure` puts it on the wire, into the tables
    and among the metrics.

    Attributes:
        memory_predicted_bytes: The memory model's peak over the training.
        memory_measured_bytes: The measured peak of live tensors over the training; a step or a cut of
            shapes that this process has measured before counts with that measurement.
        memory_mean_bytes: The mean over the samples of the memory model's bytes for the step that took them.
        batch_size_first: Samples per step before the first cut.
        batch_size_last: Samples per step after the last cut.
        train_loss: Mean loss over the samples of the last local epoch, each at the time of its step.
        accuracy: Share of the last local epoch's samples predicted right at the time of their step.
        gradient_norm: The L2 norm, over all that is trained, of the loss's gradient in the first step of a
            local epoch, before penalties, pulls and clipping; the mean over the epochs.
        num_local_test: The number of the client's own samples that it holds out and never trains on.
        local_accuracy_global: Share of those that the model as it was received predicts right; None where
            there are none.
        local_accuracy_personal: The same of the client's own model, after its training.
        num_shortages: How often a real device's guard found memory short, and made batch or structure
            smaller: docs/devices.md; None where none watched.
        memory_left_bytes: The least memory that it saw left, beside what the process held; None where it saw
            none.
        seconds: Duration of the local training, from building the module to its last step.
    """

    memory_predicted_bytes: Annotated[
        int, Figure("bytes", over_epochs=max, over_clients=max, after="memory_budget_bytes")
    ]
    memory_measured_bytes: Annotated[int, Figure("bytes", over_epochs=max, over_clients=max)]
    memory_mean_bytes: Annotated[int, Figure("bytes", over_epochs=mean)]
    batch_size_first: Annotated[int, Figure("samples", over_epochs=first, over_clients=min)]
    batch_size_last: Annotated[int, Figure("samples", over_clients=max)]
    train_loss: Annotated[float, Figure("nats", weight="num_examples", after="num_examples_said")]
    accuracy: Annotated[float, Figure("share", over_clients=mean)]
    gradient_norm: Annotated[float, Figure(over_epochs=mean, weight="num_examples", later=True)]
    num_local_test: Annotated[int, Figure("samples", later=True)] = 0
    local_accuracy_global: Annotated[float | None, Figure("share", weight="num_local_test", later=True)] = (
        None
    )
    local_accuracy_personal: Annotated[float | None, Figure("share", weight="num_local_test", later=True)] = (
        None
    )
    num_shortages: Annotated[int | None, Figure(over_clients=sum, later=True)] = None
    memory_left_bytes: Annotated[int | None, Figure("bytes", over_clients=min, later=True)] = None
    seconds: Annotated[float, Figure("seconds", over_epochs=sum)]

    @staticmethod
    def over(epochs: "Sequence[Statistics]") -> "Statistics":
        """Returns the statistics of a training from those of its epochs, which are equally long."""
        if len(epochs) == 1:
            return epochs[0]
        return Statistics(
            **{
                name: column.figure.over_epochs([getattr(epoch, name) for epoch in epochs])
                for name, column in STATISTICS.items()
            }
        )


STATISTICS = columns(Statistics)
