"""The honest control: the network that pruning ends with, trained from fresh weights."""

from dataclasses import replace
from typing import Any

from fedhp.aggregation.submodels import first
from fedhp.errors import ScenarioError
from fedhp.federation.device import Device
from fedhp.federation.server_state import ServerState
from fedhp.federation.strategy import FleetStrategy
from fedhp.model.architecture import INPUTS
from fedhp.model.building import fresh_state
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.seeds import derive


class Scratch(FleetStrategy):
    """FedAvg of one small network over the devices that can train it: what pruning must beat to be worth it.

    It is the network that another run ended with (``strategy.structure=RUN``), or as small a one as ``prune``
    asks for, which then reads whole samples: which inputs would survive, nobody knows without a run.
    """

    paper = "the control of Liu et al. 2019, arXiv 1810.05270"
    options = frozenset({"structure"})
    to_size = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        said, arch = self.scenario.strategy.structure, self.recipe.architecture
        structure = Structure.from_text(said, self.layout.widths) if said else self._scheduled()
        # Of another stream than the seed's own, of which pruned networks are what survived.
        fresh = fresh_state(arch, structure, derive(self.scenario.seed, "from scratch"))
        self.server = ServerState(fresh)

    def check_budget(self, budget_bytes: int | None) -> None:
        """Takes any: `admits` leaves out those that are too small."""

    def admits(self, device: Device) -> bool:
        """Devices whose budget holds the network with as few samples as it takes."""
        budget = device.profile.memory_bytes
        counts, least = self.state.structure.counts, self.layout.smallest_batch
        return budget is None or self.memory.training_bytes(counts, least) <= budget

    def _scheduled(self) -> Structure:
        """Returns as many units of each group as the schedule ends with; which, is one to fresh weights.

        Raises:
            ScenarioError: If the target cannot be met, or inputs are to go.
        """
        recipe, widths = self.recipe, self.layout.widths
        if INPUTS in widths and not recipe.prune.widths:
            model, old = replace(self.scenario.model, prune_inputs=False), recipe.architecture
            recipe = replace(recipe, architecture=architecture(model, old.input_shape, old.num_classes))
        recipe.schedule.check_target()
        counts = {**widths, **recipe.schedule.counts(1.0)}
        if INPUTS in widths and counts[INPUTS] < widths[INPUTS]:
            raise ScenarioError(
                f"prune.widths leaves {counts[INPUTS]} of {widths[INPUTS]} inputs, and which, strategy "
                f"'scratch' cannot know: give a run by strategy.structure=RUN, or set "
                f"model.prune_inputs=false"
            )
        return first(widths, counts)
