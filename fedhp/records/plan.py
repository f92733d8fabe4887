"""What is known of a run before its first round."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedhp.data.normalisation import Normalisation
from fedhp.model.layout import Layout
from fedhp.scenario.schema import Scenario


@dataclass(frozen=True)
class RunPlan:
    """What is known of a run before its first round.

    Attributes:
        scenario: The resolved scenario.
        layout: How the full model is wired.
        stored: How that is wired of which files hold the weights; None where it is the same.
        devices: Per device class, the number of clients.
        budgets: Per device class, the memory budget in bytes; None where there is none.
        params_full: Parameters of the full model.
        training_bytes_full: The memory model's bytes to train the full model at the scenario's
            batch size.
        input_shape: The shape of one sample.
        num_classes: The number of classes to tell apart.
        partition: Per client that plays a part of the scenario's data set, its training samples per label.
        owners: The name in the data of each client that plays an owner of samples.
        normalisation: What brings the data's raw samples to those that the model takes.
        label_names: The classes' names, in order; none where they have numbers only.
    """

    scenario: Scenario
    layout: Layout
    devices: Mapping[str, int]
    budgets: Mapping[str, int | None]
    params_full: int
    training_bytes_full: int
    input_shape: tuple[int, ...]
    num_classes: int
    partition: Mapping[int, Sequence[int]] = field(default_factory=dict)
    owners: Mapping[int, str] = field(default_factory=dict)
    normalisation: Normalisation | None = None
    label_names: tuple[str, ...] = ()
    stored: Layout | None = None

    def of_model(self) -> dict[str, Any]:
        """Returns what the file of a model says of it, whichever units are left."""
        layout = self.stored or self.layout
        axes = {
            name: [[[run.group, run.span] for run in runs] for runs in layout.runs(name)]
            for name in layout.shapes
        }
        return {
            "model": self.scenario.to_dict()["model"],
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "widths": dict(layout.widths),
            "shapes": {name: list(shape) for name, shape in layout.shapes.items()},
            "axes": axes,
            "normalisation": None if self.normalisation is None else asdict(self.normalisation),
            "label_names": list(self.label_names),
            "layout": self.scenario.data.layout,
        }
