"""What every fedhp strategy shares: Flower's phases of a round, over rounds as functions of a state."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedhp.costs.memory import MemoryModel
from fedhp.federation import wire
from fedhp.federation.asking import Asked, Payloads, ask, by_work
from fedhp.federation.cohorts import CohortExchange, cohorts
from fedhp.federation.device import Device
from fedhp.federation.patience import Patience
from fedhp.federation.regrowing import with_returned
from fedhp.federation.replies import Sent, in_order
from fedhp.federation.rounds import Part, close_round, opened
from fedhp.federation.rules import Rules
from fedhp.federation.running_statistics import RunningStatistics
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records.rows import together
from fedhp.scenario.schema import Scenario
from fedhp.simulation.grid import SimulatedGrid
from fedhp.training.recipe import Recipe

_NOBODY = Asked([], {})


class FleetStrategy(Rules, Strategy):
    """A Flower strategy for devices of different memory.

    A subclass says which devices take part (`admits`), what each is sent (`assign`), which units survive a
    round (`survivors`) and what the weights become (`average`), as `Rules` have it.

    Use: construct with the scenario, `enlist` the devices that `roster.find_fleet` found, then `start`, or
    `run_fleet`, which holds the same rounds by a loop of its own.

    Args: those of `Rules`.

    Attributes:
        outcome: What the last round came to.
        patience: Waits for a fleet that is gone, and gives it up.
        statistics: Takes the running statistics of new models.
    """

    def __init__(
        self, scenario: Scenario, recipe: Recipe, memory: MemoryModel, state: ModelState, brief: wire.Brief
    ) -> None:
        super().__init__(scenario, recipe, memory, state, brief)
        self.outcome = Outcome()
        self.patience = Patience(scenario.server, scenario.rounds)
        factor, robust = scenario.server.max_times_median, scenario.strategy.robust
        self.statistics = RunningStatistics(recipe, memory, self.budgeted, factor, robust)
        self._before, self._asked = self.server, _NOBODY
        self._arrays = ArrayRecord()

    def exchange(self, grid: Grid, timeout: float) -> tuple[Mapping[int, Sent], Iterable[Part]]:
        """Asks devices for the next round; returns what each is sent, and what comes of it, as it comes.

        Where the grid simulates them and sums are all that is needed, those that are sent the same train
        together, and the sums over their updates come back; otherwise every device is sent a message.

        Args:
            grid: Where they are.
            timeout: Seconds to wait; in a simulation, for each.

        Raises:
            TrainingError: As `ask`.
        """
        if self.needs_updates or not isinstance(grid, SimulatedGrid) or not grid.takes_cohorts:
            messages, sent = self.ask(grid)
            replies = grid.send_and_receive(messages, timeout=timeout)
            return sent, opened(self, self.state, sent, replies)
        exchange = CohortExchange(self, cohorts(self, *self._next(grid)), grid, timeout)
        return exchange.sent, exchange

    def ask(self, grid: Grid) -> Asked:
        """Samples devices for the next round, and returns the messages by which each is sent its part.

        Raises:
            TrainingError: If the last round failed for want of devices, and they do not come back.
        """
        return ask(MessageType.TRAIN, *self._next(grid), self.scenario.server.timeout_seconds)

    def _next(self, grid: Grid) -> tuple[Payloads, list[tuple[Device, Structure]]]:
        self.patience.wait(self.server, grid, [device.node_id for device in self.devices])
        self._before = self.server
        if self.prunes():
            self.server = with_returned(self.recipe, self.server)
        number = self.server.round + 1
        parts = ((device, self.assign(device, number)) for device in self.sample(number))
        payloads = Payloads(self.brief, self.layout, self.state, number, self.model_of)
        return payloads, by_work(self.layout, parts)

    def closed(self, after: ServerState, outcome: Outcome) -> tuple[ServerState, Outcome]:
        """Returns what `close_round` does; units that came back for a round that counts for nothing go."""
        return after if outcome.sources else after.as_begun(self._before), outcome

    def ask_for_statistics(self, state: ServerState, outcome: Outcome, sent: Mapping[int, Sent]) -> Asked:
        """Asks devices of a round for the running statistics of its model, where they are not its own.

        The server evaluates the model itself, on the held-out set.

        Args:
            state: What the server holds after the round.
            outcome: What else came of it.
            sent: Who took part.
        """
        structure = state.model.structure
        if self.statistics.are_of(structure, outcome.sources):
            return _NOBODY
        valid = {row.client for row in outcome.valid}
        devices = [one.device for one in sent.values() if one.device.client in valid]
        holders = self.statistics.holders(devices, structure, state.round)
        parts = ((device, structure) for device in holders)
        payloads = Payloads(self.brief, self.layout, state.model, state.round)
        return ask(MessageType.EVALUATE, payloads, parts, self.scenario.server.timeout_seconds)

    def summary(self) -> None:
        """Says nothing: the trackers show the scenario and the fleet."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """See `ask`. Of what Flower hands on, only the number of the round counts: the model is `state`."""
        self.server = replace(self.server, round=server_round - 1)
        self.begin(grid, self.scenario.server.timeout_seconds)
        self._asked = self.ask(grid)
        return self._asked.messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See `close_round`. Returns nothing where the model stays."""
        parts = opened(self, self.state, self._asked.sent, replies)
        self.server, self.outcome = self.closed(*close_round(self, self.server, parts))
        valid = self.outcome.valid
        if not self.outcome.sources:
            return None, None
        examples = sum(row.num_examples for row in valid)
        metrics = MetricRecord({"num-examples": examples, "train-loss": together(valid, "train_loss") or 0.0})
        return wire.pack_state(self.state), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """See `ask_for_statistics`."""
        self._asked = self.ask_for_statistics(self.server, self.outcome, self._asked.sent)
        self._arrays = arrays
        return self._asked.messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Gives the new model the running statistics that devices found, the mean over their examples."""
        if sent := self._asked.sent:
            taken = self.statistics.taken(self.server, self.outcome, in_order(sent, replies))
            self.server, self.outcome = taken
            self._arrays.update(wire.pack_state(self.state))  # those that Flower evaluates and returns
        return None
