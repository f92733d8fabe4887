"""Bayesian shrinkage: layers in which devices differ for good become their own."""

import logging
from typing import Any

from fedhp.aggregation.personal import Personal
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.shrinkage import ShrinkageReconciliation
from fedhp.errors import ScenarioError
from fedhp.federation.device import Device
from fedhp.federation.server_state import ServerState
from fedhp.model.state import ModelState
from fedhp.training.method_names import HALVES
from fedhp.training.methods.halves import rounds_of_halves

from .dense import Exclusive

_notes = logging.getLogger("fedhp.notes")


class Shrinkage(Exclusive):
    """FedAvg of the full model over the devices that can train it, less layers in which they differ for good.

    Each layer has a factor, by which what a device differs in is shrunk towards the fleet's weights: see
    `fedhp.aggregation.shrinkage`, which says what is the paper's and what is not. Where it is
    ``strategy.shared_from`` and more, the layer is *shared*; below, it is *personal*, and a device is sent
    its own, shrunk. Factors are found in the first tenth of the rounds, two at least, in which devices train
    on halves of their samples and all layers are shared: they are those of the last two rounds in a row for
    both of which the same three devices, or more, came.

    Devices keep nothing, and messages are as large as the model both ways. The server keeps of each device
    what it returned last, in memory and in checkpoints: the model while factors are looked for, and then the
    personal layers. The fleet's model has the mean in every layer.

    Raises:
        ScenarioError: If devices that differ are to be refused, or left out of the mean.
    """

    paper = "after Chen et al. 2020, arXiv 1909.05557"
    options = frozenset({"shared_from"})
    methods = (HALVES,)
    needs = "updates"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.robust.rule != "mean" or self.robust.refuse_opposed:
            key = "rule" if self.robust.rule != "mean" else "refuse_opposed"
            raise ScenarioError(
                f"strategy.robust.{key}: strategy 'shrinkage' is for devices that differ, which this takes "
                f"for liars; leave it out"
            )

    @property
    def personal_layers(self) -> frozenset[str]:
        """Those that each device has of its own in the next round."""
        known = self.server.personal
        if known is None or self._has_halves(self.server.round + 1):
            return frozenset()
        return known.own(self.scenario.strategy.shared_from)

    def model_of(self, device: Device) -> ModelState:
        """The fleet's, with the layers that are its own."""
        known = self.server.personal or Personal()
        return known.model_of(device.client, self.state, self.personal_layers)

    def reconciliation(self, model: ModelState) -> Reconciliation:
        """Sums over updates, and over how they and those before differ."""
        server_round = self.server.round + 1
        halves = server_round if self._has_halves(server_round) else None
        return ShrinkageReconciliation(self.layout, model, self.server.personal or Personal(), halves)

    def personal(self, state: ServerState, reconciliation: Reconciliation) -> Personal | None:
        """What devices returned last, and the layers' factors."""
        assert isinstance(reconciliation, ShrinkageReconciliation)
        after = reconciliation.personal()
        if self._has_halves(state.round + 1):
            return after
        if self._has_halves(state.round):
            _notes.warning("round %d: %s", state.round, self._said(after))
        return after.keeping(after.own(self.scenario.strategy.shared_from))

    def _has_halves(self, server_round: int) -> bool:
        return server_round <= rounds_of_halves(self.scenario.rounds)

    def _said(self, known: Personal) -> str:
        own = known.own(self.scenario.strategy.shared_from)
        if not known.factors:
            return "all layers stay shared: too few devices came for two rounds in a row"
        said = (
            f"{layer} is {'personal' if layer in own else 'shared'} (factor {factor:.3f})"
            for layer, factor in known.factors.items()
        )
        return ", ".join(said)
