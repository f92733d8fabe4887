"""The server prunes single weights, and asks devices which and where: FedTiny."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid

from fedhp.aggregation.fedtiny import candidates
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.sparse import SparseReconciliation
from fedhp.errors import ScenarioError
from fedhp.federation.device import Device
from fedhp.federation.selection import Selection
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.federation.strategy import FleetStrategy
from fedhp.model.structure import Structure
from fedhp.training.method_names import STATIC, TOP_GRADIENTS
from fedhp.training.recipe import Recipe

_CANDIDATES = 5  # where nobody says how many


class FedTiny(FleetStrategy):
    """FedAvg of one sparse network, whose weights the server chooses and moves by what devices say of them.

    The devices of the first round choose the weights to begin with; later the server drops the smallest of a
    few layers at a time, and grows those of the largest mean gradient. Devices train what they are sent;
    those that cannot hold it are left out.
    """

    paper = "Huang et al. 2022, arXiv 2212.01977"
    methods = (STATIC, TOP_GRADIENTS)
    options = frozenset({"fedtiny"})
    to_size = True
    cuts_inputs = False

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that there are weights to leave out.

        Raises:
            ScenarioError: If there are not.
        """
        if recipe.architecture.plain is None:
            raise ScenarioError(
                "strategy 'fedtiny' leaves single weights out: set prune.target_compression above 1"
            )
        if recipe.prune.widths:
            raise ScenarioError(
                "prune.widths has no effect with strategy 'fedtiny', which leaves single weights out; set "
                "prune.target_compression"
            )

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        recipe, number = self.recipe, self._num_candidates()
        target = recipe.prune.target_compression
        self._candidates = candidates(recipe.architecture, target, number, recipe.seed)
        self._selection: Selection | None = None
        self.server = ServerState(self._candidates[0])

    def _num_candidates(self) -> int:
        """Returns how many there are to choose from.

        Raises:
            ScenarioError: If devices could not choose.
        """
        said, can_choose = self.scenario.strategy.fedtiny.candidates, bool(self.layout.buffers)
        if said > 1 and not can_choose:
            raise ScenarioError(
                f"strategy.fedtiny.candidates = {said}: devices choose by running statistics of batch "
                f"normalisations, of which the network has none; choose one that has, or "
                f"strategy.fedtiny.candidates=1"
            )
        return said or (_CANDIDATES if can_choose else 1)

    def check_budget(self, budget_bytes: int | None) -> None:
        """Takes any: `admits` leaves out those that are too small."""

    def admits(self, device: Device) -> bool:
        """Devices whose budget holds each candidate with as few samples as it takes."""
        budget, least = device.profile.memory_bytes, self.layout.smallest_batch
        sizes = (self.memory.training_bytes(one.structure.counts, least) for one in self._candidates)
        return budget is None or max(sizes) <= budget

    def begin(self, grid: Grid, timeout: float) -> None:
        """Lets the devices of the first round choose the weights to begin with."""
        if self.server.round or len(self._candidates) == 1:
            return
        self._selection = Selection(self, self.sample(1), grid, timeout)
        self.server = replace(self.server, model=self._selection.chosen(self._candidates))

    def closed(self, after: ServerState, outcome: Outcome) -> tuple[ServerState, Outcome]:
        """Adds to the first round's rows what the choice has cost."""
        after, outcome = super().closed(after, outcome)
        if self._selection is not None:
            costs, self._selection = self._selection.costs, None
            rows = tuple(costs[row.client].added(row) for row in outcome.rows)
            outcome = replace(outcome, rows=rows)
        return after, outcome

    def moving(self, server_round: int) -> Mapping[str, int]:
        """See `fedhp.pruning.moving.Moves.after`."""
        moves, counts = self.recipe.moves, self.state.structure.counts
        return moves.after(self.layout, counts, server_round, self.recipe.rounds)

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """The weights that there were, but for those that move."""
        assert isinstance(reconciliation, SparseReconciliation)
        return reconciliation.moved(self.moving(server_round))
