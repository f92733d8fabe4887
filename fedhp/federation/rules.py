"""What a strategy decides: who takes part, what each is sent, which units survive and what weights become."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from flwr.serverapp import Grid

from fedhp.aggregation.assignment import check_smallest
from fedhp.aggregation.options import RobustConfig
from fedhp.aggregation.personal import Personal
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.robust import RobustReconciliation
from fedhp.aggregation.sparse import SparseReconciliation
from fedhp.costs.memory import MemoryModel
from fedhp.errors import BudgetError, ScenarioError
from fedhp.federation import wire
from fedhp.federation.claims import Counts, with_servers_memory
from fedhp.federation.device import Device, drawn
from fedhp.federation.server_state import ServerState
from fedhp.fleet.devices import drawn_clock
from fedhp.model.building import fresh_state
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.pruning.options import OF_SIZE
from fedhp.records.wording import left_out
from fedhp.scenario.schema import Scenario
from fedhp.training.method_names import DYNHP
from fedhp.training.recipe import Recipe
from fedhp.training.update import Said


class Enlisted:
    """The devices of a strategy: who can take part, and who of them is asked in a round.

    Args:
        scenario: The scenario.
        recipe: How clients train.
        memory: The memory model that devices are measured by.
        state: The initial model.
        brief: What every message says of the run.

    Attributes:
        budgeted: Whether devices keep to their memory budgets.
        server: What the server holds now.
        devices: Those that take part, by partition id.
        remarks: What stands out of the devices, and who of them is left out, a line each.
        claims: For how many samples each of them counts, once they are enlisted.
    """

    budgeted = True

    def __init__(
        self, scenario: Scenario, recipe: Recipe, memory: MemoryModel, state: ModelState, brief: wire.Brief
    ) -> None:
        self.scenario, self.recipe, self.memory, self.brief = scenario, recipe, memory, brief
        self.layout = recipe.architecture.layout
        self.server = ServerState(state)
        self.devices, self.remarks = list[Device](), list[str]()

    @property
    def state(self) -> ModelState:
        """The global model now."""
        return self.server.model

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

    def enlist(self, devices: Sequence[Device]) -> None:
        """Takes the devices that can take part, and remarks whose budget is too small.

        Raises:
            BudgetError: If none can.
            ScenarioError: If they are fewer than the replies that a round needs.
        """
        self.remarks = []
        self.devices = self._admitted(devices)
        if not self.devices:
            causes = "".join(f"; {cause}" for cause in self.remarks[:1])
            raise BudgetError(
                f"no device of the fleet can take part in strategy '{self.scenario.strategy.name}': "
                f"the model does not fit any budget. Raise a budget or choose a smaller model{causes}"
            )
        self._check_attainable("server.min_replies", self.scenario.server.min_replies)
        self._count()

    def _admitted(self, devices: Sequence[Device]) -> list[Device]:
        return [device for device in devices if self._fits_in(device) and self.admits(device)]

    def _count(self) -> None:
        factor, cap = self.scenario.server.max_times_median, self.scenario.strategy.robust.cap
        self.claims = Counts(self.devices, factor, cap)
        self.remarks += self.claims.remarks(self.devices)

    def _fits_in(self, device: Device) -> bool:
        try:
            self.check_budget(device.profile.memory_bytes)
        except BudgetError as error:
            self.remarks.append(left_out(device, error))
            return False
        return True

    def _check_attainable(self, key: str, wanted: int) -> None:
        """Refuses a key that wants answers from more devices than a round ever asks."""
        if wanted > self.round_size:
            raise ScenarioError(
                f"{key} = {wanted} can never be met: a round asks {self.round_size} devices, of the "
                f"{len(self.devices)} that can take part in strategy '{self.scenario.strategy.name}'; lower "
                f"it, or raise server.clients_per_round or budgets"
            )

    @property
    def round_size(self) -> int:
        """The number of devices that are asked in a round."""
        number = self.scenario.server.clients_per_round
        return number if 0 < number < len(self.devices) else len(self.devices)

    def clock(self, device: Device, server_round: int) -> float | None:
        """Returns the share of its full speed that a device has in a round: see `drawn_clock`."""
        scenario = self.scenario
        return drawn_clock(scenario.fleet, device.profile, device.client, scenario.seed, server_round)

    def sample(self, server_round: int) -> list[Device]:
        """Returns the round's devices by partition id: a seeded draw, without replacement."""
        return drawn(self.devices, self.round_size, self.scenario.seed, server_round)


class Rules(Enlisted):
    """The rules of a strategy; the defaults are those of a dense model that all devices can train.

    Attributes:
        methods: The client methods that it asks for, by name in ``fedhp.training.methods.METHODS``, or by
            reference.
        cuts_inputs: Whether the entries of a sample are units, where the model has them so.
        to_size: Whether its model is as small as ``prune`` asks for, though nothing is pruned.
        options: Keys of the scenario's ``strategy`` section that it has a use for.
        needs: What it needs of a round's updates: ``"sums"`` over them, which are made where clients are
            simulated, or ``"updates"``, each for itself.
        paper: Where it was published; empty where nowhere.
    """

    methods: ClassVar[tuple[str, ...]] = ()
    cuts_inputs: ClassVar[bool] = True
    to_size: ClassVar[bool] = False
    options: frozenset[str] = frozenset()
    needs: Literal["sums", "updates"] = "sums"
    paper = ""

    @property
    def robust(self) -> RobustConfig:
        """What is done against poisonous updates."""
        return self.scenario.strategy.robust

    @property
    def needs_updates(self) -> bool:
        """Whether every update has to come to the server."""
        return self.needs == "updates" or self.robust.needs_updates or bool(self.layout.singles)

    @classmethod
    def prunes(cls) -> bool:
        """Says whether clients prune as they train."""
        return DYNHP in cls.methods

    @classmethod
    def heeds(cls, key: str) -> bool:
        """Says whether a key of the section ``prune`` makes any difference."""
        return cls.prunes() or (cls.to_size and key in OF_SIZE)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks what the strategy asks of model and training beyond what every one does.

        Raises:
            ScenarioError: If it is not as it must be.
        """

    def assign(self, device: Device, server_round: int) -> Structure:
        """Returns the part of the global structure, within its budget, that a device is sent: all of it."""
        return self.state.structure

    def levels(self, model: ModelState) -> Mapping[str, Structure]:
        """Returns the narrower networks that a model stands for, by what they are called: none."""
        return {}

    def model_of(self, device: Device) -> ModelState:
        """Returns the model, of which a device is sent a part: the fleet's."""
        return self.state

    def attend(self, devices: Sequence[Device]) -> None:
        """Takes, of whoever is there from the next round on, those that can take part; remarks the others.

        The model stays as it is: a device has to have room for its part of it.
        """
        self.remarks = []
        self.devices = [device for device in self._admitted(devices) if self._has_room(device)]
        if self.devices:
            self._count()

    def _has_room(self, device: Device) -> bool:
        budget = device.profile.memory_bytes if self.budgeted else None
        if budget is None:
            return True
        counts = self.assign(device, self.server.round + 1).counts
        needed = self.memory.training_bytes(counts, self.layout.smallest_batch)
        if needed > budget:
            takes = f"its part of this run's model takes {needed:,} bytes to train"
            self.remarks.append(left_out(device, f"{takes}; the budget is {budget:,} bytes"))
        return needed <= budget

    def begin(self, grid: Grid, timeout: float) -> None:
        """Asks devices what has to be known before the next round: nothing.

        Args:
            grid: Where they are.
            timeout: Seconds to wait for each answer.
        """

    def moving(self, server_round: int) -> Mapping[str, int]:
        """Returns, by layer, how many single weights move after a round by what clients tell: none."""
        return {}

    def reconciliation(self, model: ModelState) -> Reconciliation:
        """Returns what adds up the updates of a round that begins with this model.

        One of a strategy's own, a subclass, is given every update (`Reconciliation.add`) where the strategy
        ``needs`` them, in the order of `fedhp.federation.asking.by_work`.
        """
        if self.layout.singles:
            return SparseReconciliation(self.layout, model)
        if self.robust.rule != "mean":
            return RobustReconciliation(self.layout, model, self.robust)
        return Reconciliation(self.layout, model)

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """Returns the units of the global structure that survive the round: all of them."""
        return reconciliation.structure

    def average(self, reconciliation: Reconciliation) -> ModelState:
        """Returns the model that the updates make, of the structure before the round: means over holders."""
        return reconciliation.mean(self.scenario.strategy.uncovered)

    def personal(self, state: ServerState, reconciliation: Reconciliation) -> Personal | None:
        """Returns what the updates add to what the server knows of devices' own layers: they have none."""
        return state.personal

    def believed(self, device: Device, said: Said) -> Said:
        """Returns what a device's update says as far as the server believes it: see `with_servers_memory`."""
        budget = device.profile.memory_bytes if self.budgeted else None
        return with_servers_memory(self.recipe, self.memory, budget, device.client, said)

    def start_from(self, structure: Structure) -> None:
        """Makes the global model, before the first round, a fresh one of this structure."""
        if structure != self.state.structure:
            self.server = ServerState(fresh_state(self.recipe.architecture, structure, self.scenario.seed))
