"""What a group of units indexes: runs of a tensor's axis."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AxisRef:
    """A run of a tensor axis that a group indexes; each unit owns ``span`` consecutive entries of it.

    A span above 1 arises where feature maps are flattened (after a 7x7 map, a channel owns 49 inputs), and
    where several channels live and die together (those that one group of a group normalisation covers).
    ``group`` None stands for ``span`` entries that are always there, beside others on the same axis.
    """

    group: str | None
    span: int = 1


Axis = tuple[AxisRef, ...]  # one after the other where feature maps are concatenated; none: all fixed
