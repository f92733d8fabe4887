"""What a scenario says of the aggregation strategy; the strategies themselves are in ``strategies/``."""

from dataclasses import dataclass, field, fields
from typing import Annotated

from fedhp.aggregation.reconcile import MEANS
from fedhp.bounds import Bounds
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.errors import ScenarioError

UNCOVERED = tuple(name for name in MEANS if name != "zero_filled")
# The server's optimisers, and the learning rates that Flower gives them.
SERVER_OPTIMIZERS = {"none": 1.0, "fedavgm": 1.0, "fedadam": 0.1, "fedyogi": 0.01}


@dataclass(frozen=True)
class ServerOptimizerConfig:
    """What the server does with the clients' mean: takes it as it is, or as a step of an optimiser.

    Attributes:
        name: ``none``, or one of Flower's: ``fedavgm`` (Hsu et al. 2019, arXiv 1909.06335), ``fedadam`` or
            ``fedyogi`` (Reddi et al. 2020, arXiv 2003.00295).
        learning_rate: The server's step; by default Flower's own, of `SERVER_OPTIMIZERS`.
        momentum: ``server_momentum`` of ``fedavgm``, ``beta_1`` of the others.
        beta_2: Memory of the squares, of ``fedadam`` and ``fedyogi``.
        tau: Their degree of adaptivity.
    """

    name: Annotated[str, OneOf(SERVER_OPTIMIZERS)] = "none"
    learning_rate: Annotated[float | None, Bounds(above=0)] = None
    momentum: Annotated[float, Bounds(at_least=0, below=1)] = 0.9
    beta_2: Annotated[float, Bounds(at_least=0, below=1)] = 0.99
    tau: Annotated[float, Bounds(above=0)] = 1e-3

    def __post_init__(self) -> None:
        check_values(self, "strategy.optimizer.")
        set_in_vain = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        if self.name == "none" and set_in_vain:
            raise ScenarioError(
                f"strategy.optimizer.{set_in_vain[0]} has no effect with strategy.optimizer.name = none; "
                f"leave it out, or choose one of {', '.join(list(SERVER_OPTIMIZERS)[1:])}"
            )

    @property
    def rate(self) -> float:
        """The learning rate."""
        return SERVER_OPTIMIZERS[self.name] if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True)
class StrategyConfig:
    """How updates become one model. Each strategy has some of these options, and refuses the others.

    Attributes:
        name: A strategy's name (``fedhp strategies`` lists them) or ``package.module:Class``.
        quorum: Share (by examples) of the clients that were assigned a unit that must have kept it for the
            unit to survive; 1 is the intersection of the masks.
        min_votes: Clients that must have kept a unit for it to survive, of ``feddst``.
        uncovered: What becomes of weights that no client held in a round: ``keep`` their value, ``zero``,
            or ``residual``: whoever did not hold a weight counts as having left it as it was.
        levels: Widths, as shares of the full model's, of which a device trains the largest that fits; none
            takes the largest that fits at all.
        optimizer: The server's optimiser, which every strategy can have.
    """

    name: Annotated[str, STABLE] = "mask_intersection"
    quorum: Annotated[float, Bounds(above=0, at_most=1), STABLE] = 1.0
    min_votes: Annotated[int, Bounds(at_least=1)] = 2
    uncovered: Annotated[str, OneOf(UNCOVERED)] = "keep"
    levels: Annotated[list[float], Bounds(above=0, at_most=1)] = field(default_factory=list)
    optimizer: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)

    def __post_init__(self) -> None:
        check_values(self, "strategy.")
