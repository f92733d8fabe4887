"""What a scenario says of pruning."""

from dataclasses import dataclass, field, fields
from typing import Annotated

from fedhp.bounds import WIDEST, Bounds
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.errors import ScenarioError
from fedhp.sizes import parse_duration

# The names in `fedhp.pruning.criteria.CRITERIA` and `fedhp.pruning.regularizers.REGULARIZERS`.
CRITERION_NAMES = (
    *("taylor", "fisher", "flexrel", "magnitude", "magnitude_l1", "outgoing", "outgoing_l1", "bn_scale"),
    *("activation", "apoz", "correlation", "random"),
)
AUTO = "auto"
COST_NAMES = ("parameters", "flops")  # as in `fedhp.training.methods.smcp.COSTS`
ROUNDINGS = (AUTO, "1", "4", "8", "16")
RUNTIMES = ("", "onnx", "executorch", "litert", "torch")  # as in `fedhp.exports.formats.FORMATS`
REGULARIZER_NAMES = ("none", "group_lasso", "slimming", "halo")

# Of the keys below, those by which the size at the end is known.
OF_SIZE = tuple(
    f"prune.{key}" for key in ("target_compression", "round_to", "widths", "target_latency", "runtime")
)

# As `--compress` has them; YAML would take a bare 2:4 for a number of base 60.
PATTERNS = ("none", "nm:2:4", "nm:4:8")
PATTERN_CHOICES = ("magnitude", "learned")


@dataclass(frozen=True)
class PatternConfig:
    """The pattern of weights that a network learns to have.

    Attributes:
        name: Of how many neighbouring inputs' weights each dense layer and convolution [keeps how
            many](#patterns-of-weights), besides the units that go: ``nm:2:4`` is two of four. For ``fedhp
            train`` alone; ``fedhp run`` refuses it.
        by: How those are chosen: ``magnitude`` keeps the largest, ``learned`` the combination whose learned
            score is the best.
        end: Progress at which they are chosen for good, and trained on. The choice begins at ``prune.end``,
            when no more units go.
    """

    name: Annotated[str, OneOf(PATTERNS, hint="write nm:2:4, as YAML reads 2:4 as a number")] = "none"
    by: Annotated[str, OneOf(PATTERN_CHOICES)] = "magnitude"
    end: Annotated[float, Bounds(above=0, at_most=0.95)] = 0.8

    def __post_init__(self) -> None:
        check_values(self, "prune.pattern.")

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """How many weights are kept, of how many; None for all."""
        _, *numbers = self.name.split(":")
        return (int(numbers[0]), int(numbers[1])) if numbers else None

    def check(self, begin: float) -> None:
        """Checks that there is a choice to make, if anything is said of it, and time for it.

        Args:
            begin: Progress at which it begins.

        Raises:
            ScenarioError: If there is none.
        """
        if self.name == "none":
            self._check_unused()
        elif self.end < begin:
            raise ScenarioError(
                f"prune.pattern.end must not be below prune.end, until which units go, got {self.end} and "
                f"{begin}"
            )
        elif self.by == "learned" and self.end == begin:
            raise ScenarioError(
                f"prune.pattern.by = learned takes the time from prune.end to prune.pattern.end, got {begin} "
                f"for both; raise prune.pattern.end, or choose magnitude"
            )

    def _check_unused(self) -> None:
        for option in fields(self):
            if getattr(self, option.name) != option.default:
                raise ScenarioError(
                    f"prune.pattern.{option.name} has no effect without prune.pattern.name, such as "
                    f"prune.pattern.name=nm:2:4"
                )


@dataclass(frozen=True)
class PruneConfig:
    """How the model shrinks. Progress is the share of the *whole* training done, 0 to 1.

    Attributes:
        criterion: Which units go first: the lowest by one of the [criteria](#criteria).
        target_compression: Parameters of the full model per parameter of the final one; 1 never prunes. [How
            groups share it](#how-groups-share-the-shrinking).
        cost: What that counts with ``train.method = smcp``: ``parameters``, or ``flops``, the multiplications
            of weights that a sample takes.
        round_to: Of what the channels that a convolution keeps in the end are [a
            multiple](#multiples-of-channels), which runtimes of phones and boards are made for; 1 rounds
            nothing, ``auto`` to 8 where each keeps as many.
        widths: How many units each group keeps in the end, in their order, in place of
            ``prune.target_compression``; none leaves that to the target.
        target_latency: The time of one sample that the final network is to take, such as ``2ms``, in place of
            ``prune.target_compression``: [widths](#a-target-in-milliseconds) are chosen by what networks take
            on this machine, and stand in the record beside it; empty is none.
        runtime: In which runtime: ``onnx``, ``executorch``, ``litert`` or ``torch``. Without a target it is
            what ``fedhp latency`` measures in.
        start: Progress at which cutting begins, below ``prune.end``.
        end: Progress at which the target is reached; with ``all_in_one``, from which on units stay.
        cuts: Cuts between start and end, evenly spread.
        blend: Weight of the fleet's scores against the client's own: clients with few classes should not vote
            out what others need.
        marginal: Units whose contribution is below this share of their group's mean go ahead of schedule, as
            soon as ``prune.start`` is reached, but no more of a group than the target takes in the end; 0
            switches it off.
        regrow: How many units more than the schedule leaves a fleet's devices train, as a share of those: in
            each round the best of those that were cut [come back](#units-that-come-back), as they last were,
            for another judgement, to devices whose budgets hold them. It falls to 0 until three quarters of
            the rounds; 0 lets none come back.
        regularizer: A penalty that presses on units while there is something left to cut: ``none``, or one of
            the [regularisers](#regularisers).
        regularizer_strength: The factor of that penalty.
        pattern: The pattern of weights that the network learns to have.
    """

    criterion: Annotated[str, OneOf(CRITERION_NAMES), STABLE] = "taylor"
    target_compression: Annotated[float, Bounds(at_least=1), STABLE] = 10.0
    cost: Annotated[str, OneOf(COST_NAMES)] = "parameters"
    round_to: Annotated[str, OneOf(ROUNDINGS)] = AUTO
    widths: Annotated[list[int], Bounds(at_least=1, largest=WIDEST)] = field(default_factory=list)
    target_latency: str = ""
    runtime: Annotated[str, OneOf(RUNTIMES)] = ""
    start: Annotated[float, Bounds(at_least=0, below=1), STABLE] = 0.05
    end: Annotated[float, Bounds(above=0, at_most=1), STABLE] = 0.6
    cuts: Annotated[int, Bounds(at_least=1)] = 40
    blend: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.5
    marginal: Annotated[float, Bounds(at_least=0, below=1)] = 0.0
    regrow: Annotated[float, Bounds(at_least=0, at_most=1, hint="0 lets none come back")] = 0.0
    regularizer: Annotated[str, OneOf(REGULARIZER_NAMES)] = "none"
    regularizer_strength: Annotated[float, Bounds(above=0, hint="prune.regularizer=none switches it off")] = (
        1e-5
    )
    pattern: PatternConfig = field(default_factory=PatternConfig)

    def __post_init__(self) -> None:
        check_values(self, "prune.")
        if self.start >= self.end:
            raise ScenarioError(f"prune.start must be below prune.end, got {self.start} and {self.end}")
        if self.marginal and self.target_compression == 1:
            raise ScenarioError(
                "prune.marginal has no effect with prune.target_compression = 1, which never prunes; "
                "raise the target or set prune.marginal=0"
            )

        self._check_latency()
        self.pattern.check(self.end)

    def _check_latency(self) -> None:
        if self.target_latency and not self.runtime:
            choices = ", ".join(filter(None, RUNTIMES))
            raise ScenarioError(
                f"prune.target_latency needs prune.runtime, in which the time is taken: one of {choices}"
            )
        if self.target_latency:
            parse_duration(self.target_latency, "prune.target_latency")

    @property
    def target_microseconds(self) -> float | None:
        """The time of one sample that the final network is to take; None where none is given."""
        return parse_duration(self.target_latency) if self.target_latency else None
