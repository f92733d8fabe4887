"""What every fedhp strategy shares: sampling, one payload per structure, checked and ordered replies."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedhp.aggregation.assignment import check_smallest
from fedhp.aggregation.proportion import Proportion, changes
from fedhp.aggregation.reconcile import Reconciliation, Shares
from fedhp.costs.memory import MemoryModel
from fedhp.errors import BudgetError, FedhpError, ScenarioError, WireError
from fedhp.federation import wire
from fedhp.federation.claims import Counts, with_servers_memory
from fedhp.federation.patience import Patience
from fedhp.federation.questions import content_of
from fedhp.federation.replies import Arrived, Sent, in_order
from fedhp.federation.roster import Device
from fedhp.federation.running_statistics import RunningStatistics
from fedhp.federation.server_optimizer import server_optimizer
from fedhp.model.architecture import fresh_state
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records.rows import ClientReport, together
from fedhp.scenario.schema import Scenario
from fedhp.seeds import generator
from fedhp.training.methods import DynHP
from fedhp.training.recipe import Recipe

_notes = logging.getLogger("fedhp.notes")


class FleetStrategy(Strategy):
    """A Flower strategy for devices of different memory.

    A subclass says which devices take part (`admits`), what each is sent (`assign`), which units survive a
    round (`survivors`) and what the weights become (`average`); the defaults are those of a dense model
    that all devices can train.

    Use: construct with the scenario, `enlist` the devices that `roster.query_fleet` found, then `start`.

    Args:
        scenario: The scenario.
        recipe: How clients train.
        memory: The memory model that devices are measured by.
        state: The initial model.
        brief: What every message says of the run.

    Attributes:
        methods: The client methods that it asks for, by name in ``fedhp.training.methods.METHODS``.
        budgeted: Whether devices keep to their memory budgets.
        cuts_inputs: Whether the entries of a sample are units, where the model has them so.
        options: Keys of the scenario's ``strategy`` section that it has a use for.
        paper: Where it was published; empty where nowhere.
        state: The global model now.
        remarks: What stands out of the devices, and who of them is left out, a line each.
        reports: One row per client sampled in the last round, by partition id.
        votes: `Reconciliation.votes` of the last round; empty where clients do not prune, or too few replied.
        patience: Counts the rounds without any valid reply.
    """

    methods: tuple[str, ...] = ()
    budgeted = True
    cuts_inputs = True
    options: frozenset[str] = frozenset()
    paper = ""

    def __init__(
        self, scenario: Scenario, recipe: Recipe, memory: MemoryModel, state: ModelState, brief: wire.Brief
    ) -> None:
        self.scenario, self.recipe, self.memory, self.state = scenario, recipe, memory, state
        self.brief = brief
        self.layout = recipe.architecture.layout
        self.devices: list[Device] = []
        self.remarks: list[str] = []
        self.patience = Patience(scenario.server, scenario.rounds)
        self.reports: tuple[ClientReport, ...] = ()
        self.votes: Shares = {}
        self._sent: dict[int, Sent] = {}
        self._before = state
        self._proportion = Proportion(scenario.server.max_times_median)
        self._optimizer = server_optimizer(scenario.strategy.optimizer, self.layout)
        self._statistics = RunningStatistics(recipe, memory, self.budgeted, scenario.server.max_times_median)
        self._asked: dict[int, Sent] = {}
        self._arrays = ArrayRecord()
        self._sources: set[str] = set()

    @classmethod
    def prunes(cls) -> bool:
        """Says whether clients prune as they train."""
        return DynHP.name in cls.methods

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks what the strategy asks of model and training beyond what every one does.

        Raises:
            ScenarioError: If it is not as it must be.
        """

    def check_budget(self, budget_bytes: int | None) -> None:
        """Checks that a device of this budget can take part: it can train the smallest structure.

        Raises:
            BudgetError: If it cannot.
        """
        if budget_bytes is not None:
            check_smallest(self.memory, budget_bytes)

    def admits(self, device: Device) -> bool:
        """Says whether a device that passes `check_budget` takes part: all do."""
        return True

    def assign(self, device: Device, server_round: int) -> Structure:
        """Returns the part of the global structure, within its budget, that a device is sent: all of it."""
        return self.state.structure

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """Returns the units of the global structure that survive the round: all of them."""
        return self.state.structure

    def average(self, reconciliation: Reconciliation) -> ModelState:
        """Returns the model that the updates make, of the structure before the round: means over holders."""
        return reconciliation.mean(self.scenario.strategy.uncovered)

    def enlist(self, devices: Sequence[Device]) -> None:
        """Takes the devices that can take part, and remarks whose budget is too small.

        Raises:
            BudgetError: If none can.
            ScenarioError: If they are fewer than the replies that a round needs.
        """
        self.remarks = []
        self.devices = [device for device in devices if self._fits_in(device) and self.admits(device)]
        if not self.devices:
            causes = "".join(f"; {cause}" for cause in self.remarks[:1])
            raise BudgetError(
                f"no device of the fleet can take part in strategy '{self.scenario.strategy.name}': "
                f"the model does not fit any budget. Raise a budget or choose a smaller model{causes}"
            )
        self._check_attainable("server.min_replies", self.scenario.server.min_replies)
        self._counts_for = Counts(self.devices, self.scenario.server.max_times_median)
        self.remarks += self._counts_for.remarks(self.devices)

    def _fits_in(self, device: Device) -> bool:
        try:
            self.check_budget(device.profile.memory_bytes)
        except BudgetError as error:
            name = f"client {device.client} ({device.profile.device_class})"
            self.remarks.append(f"{name} is left out: {error}")
            return False
        return True

    @property
    def round_size(self) -> int:
        """The number of devices that are asked in a round."""
        number = self.scenario.server.clients_per_round
        return number if 0 < number < len(self.devices) else len(self.devices)

    def _check_attainable(self, key: str, wanted: int) -> None:
        """Checks that a round asks as many devices as a key wants answers from.

        Raises:
            ScenarioError: If it never does.
        """
        if wanted > self.round_size:
            raise ScenarioError(
                f"{key} = {wanted} can never be met: a round asks {self.round_size} devices, of the "
                f"{len(self.devices)} that can take part in strategy '{self.scenario.strategy.name}'; lower "
                f"it, or raise server.clients_per_round or budgets"
            )

    def start_from(self, structure: Structure) -> None:
        """Makes the global model, before the first round, a fresh one of this structure."""
        if structure != self.state.structure:
            self.state = fresh_state(self.recipe.architecture, structure, self.scenario.seed)

    def summary(self) -> None:
        """Says nothing: the trackers show the scenario and the fleet."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Samples devices, and sends each its part of the model: one payload for all of the same.

        Raises:
            TrainingError: If the last round failed for want of devices, and they do not come back.
        """
        self.patience.wait(grid, [device.node_id for device in self.devices])
        parts = [(device, self.assign(device, server_round)) for device in self.sample(server_round)]
        self._sent, messages = self._questions(MessageType.TRAIN, parts, server_round)
        return messages

    def sample(self, server_round: int) -> list[Device]:
        """Returns the round's devices by partition id: a seeded draw, without replacement."""
        number = self.round_size
        if number == len(self.devices):
            return self.devices
        stream = generator(self.scenario.seed, "sampling", server_round)
        chosen = stream.choice(len(self.devices), size=number, replace=False)
        return [self.devices[index] for index in sorted(chosen)]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Checks each reply as it arrives and adds it, by partition id; then decides what survives.

        Below ``server.min_replies`` valid replies the model stays as it is.
        """
        self._before, self._sources = self.state, set()
        reconciliation = Reconciliation(self.layout, self.state)
        arrived = (self._open(sent, reply) for sent, reply in in_order(self._sent, replies))
        some_absent, rows, sources = False, [], set()
        for one, flaw, times in self._proportion.judged(arrived, lambda one: one.changes):
            if one.update is not None and not flaw:
                update = self._counts_for.held(one.sent.device, one.update, times)
                one = replace(one, update=update)
                reconciliation.add(update)
                sources.add(update.state.structure.digest)
            some_absent |= one.absent
            rows.append(one.refused(flaw).row(server_round, self.layout, self.budgeted))
        self.reports = tuple(rows)
        self.votes = {}
        self.patience.take(self.reports, some_absent)
        valid = [row for row in self.reports if row.status == "ok"]
        if len(valid) < self.scenario.server.min_replies:
            _notes.warning(
                "round %d: %d valid replies, fewer than server.min_replies = %d; the model stays",
                server_round,
                len(valid),
                self.scenario.server.min_replies,
            )
            return None, None
        if not self._takes(self._next_state(reconciliation, server_round), server_round):
            return None, None
        self._sources = sources
        if self.prunes():
            self.votes = reconciliation.votes()
        examples = sum(row.num_examples for row in valid)
        metrics = MetricRecord({"num-examples": examples, "train-loss": together(valid, "train_loss") or 0.0})
        return wire.pack_state(self.state), metrics

    def _next_state(self, reconciliation: Reconciliation, server_round: int) -> ModelState:
        survivors = self.survivors(reconciliation, server_round)
        mean = self.average(reconciliation)
        if self._optimizer is not None:
            mean = self._optimizer.step(server_round, self.state, mean)
            self._optimizer.cut(self.state.structure, survivors)
        return mean.cut(self.layout, survivors)

    def _takes(self, state: ModelState, server_round: int) -> bool:
        """Makes a model the global one, unless no device would take it."""
        self.state = state
        try:
            for name, weights in state.weights.items():
                wire.check_values(name, weights)
        except WireError as error:
            _notes.warning("round %d: the new model is none (%s); the model stays", server_round, error)
            self.roll_back()
            return False
        return True

    def roll_back(self) -> None:
        """Undoes the last round: its model, its votes, and what the server's optimiser has made of it."""
        self.state = self._before
        self.votes = {}
        self._optimizer = server_optimizer(self.scenario.strategy.optimizer, self.layout)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Asks devices of the round for the running statistics of the new model, where they are not its own.

        The server evaluates the model itself, on the held-out set.
        """
        self._asked, structure = {}, self.state.structure
        if self._statistics.are_of(structure, self._sources):
            return []
        valid = {row.client for row in self.reports if row.status == "ok"}
        devices = [sent.device for sent in self._sent.values() if sent.device.client in valid]
        holders = self._statistics.holders(devices, structure, server_round)
        parts = [(device, structure) for device in holders]
        self._asked, messages = self._questions(MessageType.EVALUATE, parts, server_round)
        self._arrays = arrays
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Gives the new model the running statistics that devices found, the mean over their examples."""
        if self._asked:
            answers = in_order(self._asked, replies)
            self.state, self.reports = self._statistics.taken(server_round, self.state, self.reports, answers)
            self._arrays.update(wire.pack_state(self.state))  # those that Flower evaluates and returns
        return None

    def _questions(
        self, kind: str, parts: Iterable[tuple[Device, Structure]], server_round: int
    ) -> tuple[dict[int, Sent], list[Message]]:
        """Returns a message to each device with its part of the model, and what it was sent, by node."""
        payloads: dict[str, tuple[wire.RecordDict, int, int]] = {}
        sent: dict[int, Sent] = {}
        messages = []
        for device, structure in parts:
            if structure.digest not in payloads:
                payloads[structure.digest] = self._payload(structure, server_round)
            content, num_parameters, num_bytes = payloads[structure.digest]
            message = Message(content, device.node_id, kind, group_id=str(server_round))
            sent[device.node_id] = Sent(device, structure, num_parameters, num_bytes, message.metadata)
            messages.append(message)
        return sent, messages

    def _payload(self, structure: Structure, server_round: int) -> tuple[wire.RecordDict, int, int]:
        """Returns a task, and how many parameters and bytes of arrays it holds."""
        state = self.state.cut(self.layout, structure)
        record = wire.pack_state(state)
        task = wire.pack_task(record, self.brief, server_round)
        return task, self._num_parameters(structure), wire.record_bytes(record)

    def _num_parameters(self, structure: Structure) -> int:
        return self.layout.num_parameters(structure.counts)

    def _open(self, sent: Sent, reply: Message | None) -> Arrived:
        """Checks one reply, or names the failure."""
        if reply is None:
            return Arrived(sent, failure="timeout: no reply arrived in time")
        device = sent.device
        absent = reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE
        try:
            content = content_of(reply)
            update = wire.unpack_update(content, self.layout, device.client, sent.structure, device.profile)
        except WireError as error:
            return Arrived(sent, failure=f"reply: {error}")
        except FedhpError as error:
            return Arrived(sent, failure=str(error), absent=absent)
        budget = device.profile.memory_bytes if self.budgeted else None
        update = with_servers_memory(self.recipe, self.memory, budget, update)
        moved = changes(self.layout, self.state, update)
        return Arrived(sent, update, moved, wire.update_bytes(content))
