"""What a scenario says of the aggregation strategy; the strategies themselves are in ``strategies/``."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated

from fedhp.bounds import Bounds, Text
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.errors import ScenarioError

# The names in `fedhp.aggregation.reconcile.MEANS` that a user may choose.
UNCOVERED = ("keep", "zero", "residual")
# The server's optimisers, and the learning rates that Flower gives them.
SERVER_OPTIMIZERS = {"none": 1.0, "fedavgm": 1.0, "fedadam": 0.1, "fedyogi": 0.01}


@dataclass(frozen=True)
class ServerOptimizerConfig:
    """What the server does with the clients' mean: takes it as it is, or as a step of an optimiser.

    Attributes:
        name: What the server does with the clients' mean: ``none`` takes it as it is; Flower's ``fedavgm``
            (Hsu et al. 2019, arXiv 1909.06335), ``fedadam`` and ``fedyogi`` (Reddi et al. 2020, arXiv
            2003.00295) take it for a gradient. With any strategy.
        learning_rate: The server's step; ``null`` for Flower's own: 1 for ``fedavgm``, 0.1 for ``fedadam``,
            0.01 for ``fedyogi``.
        momentum: Of ``fedavgm``; ``beta_1`` of the others.
        beta_2: Memory of the squares, of ``fedadam`` and ``fedyogi``.
        tau: Their degree of adaptivity: the smaller, the more like Adam.
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


# How a robust server makes one value of its clients': the first takes the mean, as any other server.
ROBUST_RULES = ("mean", "trimmed_mean", "median")


@dataclass(frozen=True)
class RobustConfig:
    """What the server does against updates that are meant to ruin the model, or come of a broken device.

    Attributes:
        rule: How the clients' values of a weight become one: their ``mean`` by examples; or, each client
            counting once, their ``trimmed_mean`` or ``median`` (Yin et al. 2018, arXiv 1803.01498), over
            those that hold the weight. Both need every update at the server, and as many models of memory.
        trim: Of ``trimmed_mean``, the share of the clients that is cut off at each end, rounded down: as many
            may lie. Below a half.
        clip: How many times the median of the others the change that an update makes may measure; a larger
            one is scaled down to that (Sun et al. 2019, arXiv 1911.07963). It comes after
            ``server.max_times_median``, beyond which an update is refused. Running statistics are clipped
            for themselves. 0 clips nothing.
        refuse_opposed: Whether an update is refused whose change of the weights points against the others':
            its cosine with the median of all changes of the round is below 0. Where data are very unlike,
            honest ones may.
        cap: How many times the median of the fleet's numbers of samples a client may count for, in means and
            in votes; 0 sets no limit but ``server.max_times_median``, for devices with data of their own.
    """

    rule: Annotated[str, OneOf(ROBUST_RULES)] = "mean"
    trim: Annotated[float, Bounds(at_least=0, below=0.5)] = 0.2
    clip: Annotated[float, Bounds(at_least=1, or_zero=True, hint="0 clips nothing")] = 0.0
    refuse_opposed: bool = False
    cap: Annotated[float, Bounds(at_least=1, or_zero=True, hint="0 sets no limit")] = 0.0

    def __post_init__(self) -> None:
        check_values(self, "strategy.robust.")
        if self.trim != 0.2 and self.rule != "trimmed_mean":
            raise ScenarioError(
                f"strategy.robust.trim has no effect with strategy.robust.rule = {self.rule}; leave it out, "
                f"or choose trimmed_mean"
            )

    @property
    def needs_updates(self) -> bool:
        """Whether sums over the updates are not enough."""
        return self.rule != "mean" or self.clip > 0 or self.cap > 0 or self.refuse_opposed

    def shares(self, times: Sequence[float]) -> tuple[float, ...]:
        """Returns what of changes counts that are so many times the others'."""
        return tuple(min(1.0, self.clip / one) if self.clip and one else 1.0 for one in times)


@dataclass(frozen=True)
class FedTinyConfig:
    """How FedTiny chooses the weights that there are. Of ``fedtiny``.

    Attributes:
        candidates: Sets of weights of which the devices of the first round choose one, by its loss with the
            fleet's running statistics: the largest of the initial weights, of layers whose densities differ
            at random from one to the next. 1 leaves no choice. 0 makes it 5, and 1 without batch
            normalisation, which more than one needs.
        every: Rounds from one time at which weights move to the next; 0 moves none.
        drop: The share of a layer's weights that move at a time, at first; it falls to 0 along a cosine until
            ``strategy.fedtiny.end``.
        end: Progress of the whole training from which on weights stay where they are.
    """

    candidates: Annotated[int, Bounds(at_least=0, at_most=100)] = 0
    every: Annotated[int, Bounds(at_least=0, hint="0 moves none")] = 5
    drop: Annotated[float, Bounds(above=0, at_most=1)] = 0.3
    end: Annotated[float, Bounds(above=0, at_most=1)] = 0.5

    def __post_init__(self) -> None:
        check_values(self, "strategy.fedtiny.")


@dataclass(frozen=True)
class StrategyConfig:
    """How updates become one model. Each strategy has some of these options, and refuses the others.

    Attributes:
        name: ``mask_intersection``, ``holders_mean``, ``feddst``, ``zero_filled``, ``heterofl``,
            ``fedrolex``, ``fjord``, ``all_in_one``, ``federated_dropout``, ``fedtiny``, ``exclusive``,
            ``smallest``, ``scratch``, ``shrinkage``, ``dense`` (below), or a [class of
            yours](#a-strategy-of-your-own), ``package.module:Class``.
        quorum: Share, by examples, of the clients that were assigned a unit that must have kept it for the
            unit to survive; 1 is the intersection of the masks. Of ``mask_intersection`` and ``zero_filled``.
        min_votes: Clients that must have kept a unit for it to survive, at most the clients per round. Of
            ``feddst``.
        uncovered: What becomes of weights that a client did not hold: ``keep`` (means over the holders; what
            nobody held stays), ``zero`` (the same, but what nobody held is lost) or ``residual`` (whoever did
            not hold a weight counts as having left it as it was). Of all that send parts, but
            ``zero_filled``.
        levels: Widths, as shares of the full model's, of which a device trains the largest that fits, such as
            HeteroFL's ``[1,0.5,0.25,0.125,0.0625]``; none for any width. Of ``heterofl``, ``fedrolex``,
            ``federated_dropout``, and of ``fjord`` and ``all_in_one``, whose steps draw among them too
            (without, among 0.2, 0.4, 0.6, 0.8 and 1, those of FjORD's paper).
        structure: The folder of a finished run, of whose final network the units are taken, without their
            weights; its record is read once, and the new one says the units themselves (``units:``, then a
            hexadecimal number per group). Without, as many units as ``prune`` ends with, and all inputs. Of
            ``scratch``.
        fedtiny: How ``fedtiny`` chooses the weights that there are.
        shared_from: The factor, by which devices' deviations are shrunk, from which on a layer is the same on
            all; below it, each device has its own. 0 shares all layers, 1 those alone in which devices do not
            differ for good. Of ``shrinkage``.
        optimizer: The server's optimiser, which every strategy can have.
        robust: What is done against poisonous updates, as in every strategy.
    """

    name: Annotated[str, STABLE] = "mask_intersection"
    quorum: Annotated[float, Bounds(above=0, at_most=1), STABLE] = 1.0
    min_votes: Annotated[int, Bounds(at_least=1)] = 2
    uncovered: Annotated[str, OneOf(UNCOVERED)] = "keep"
    levels: Annotated[list[float], Bounds(above=0, at_most=1)] = field(default_factory=list)
    structure: Annotated[str, Text(longest=2**14)] = ""
    fedtiny: FedTinyConfig = field(default_factory=FedTinyConfig)
    shared_from: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.5
    optimizer: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)

    def __post_init__(self) -> None:
        check_values(self, "strategy.")
