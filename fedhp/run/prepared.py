"""What a run over a fleet starts from."""

from dataclasses import dataclass
from functools import cached_property

from fedhp.costs.memory import FLOAT_BYTES, MemoryModel
from fedhp.data.dataset import Dataset
from fedhp.data.shard import Shard
from fedhp.federation.strategy import FleetStrategy
from fedhp.run.basis import basis
from fedhp.scenario.schema import Scenario
from fedhp.training.recipe import Recipe


@dataclass(frozen=True)
class Setup:
    """What the server holds before the first round.

    Attributes:
        parts: The sizes of the parts of its data.
        notes: What is known of the run already that its user should know.
    """

    scenario: Scenario
    dataset: Dataset
    recipe: Recipe
    memory: MemoryModel
    test: Shard
    strategy: FleetStrategy
    parts: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def basis(self) -> dict[str, str]:
        """What its result hangs on besides the scenario."""
        return basis(self.scenario, self.dataset, self.recipe.architecture.layout)

    @property
    def message_bytes(self) -> int:
        """Bytes of the full model's weights: what the largest message carries."""
        layout = self.recipe.architecture.layout
        return FLOAT_BYTES * layout.num_parameters(layout.widths)
