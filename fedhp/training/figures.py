"""What is said of a figure where its field is, once: tables, wire, sums and pages are made by it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

Joining = Callable[[Sequence[Any]], Any]


def first(values: Sequence[Any]) -> Any:
    """Returns the first value."""
    return values[0]


def last(values: Sequence[Any]) -> Any:
    """Returns the last value."""
    return values[-1]


def mean(values: Sequence[Any]) -> Any:
    """Returns the mean, of whole numbers a whole one."""
    result = sum(values) / len(values)
    return round(result) if isinstance(values[0], int) else result


@dataclass(frozen=True)
class Figure:
    """Says of a figure what it is counted in and how several become one; stands in its field's annotation.

    Attributes:
        unit: Such as "bytes" or "seconds"; a "share" is 0 to 1. Empty where it has none.
        over_epochs: What the figures of a training's epochs, which are equally long, come to.
        over_clients: What those of a round's clients come to; None where they are not looked at together.
        weight: The column by which clients count, where theirs come to their weighted mean.
        adds_up: Whether a run's is the sum of its rounds'.
        written: How a table holds what is neither a number nor a text: as this text.
        after: The column behind which it stands, and those that follow it here, where two classes make a row.
        later: Whether records of earlier versions lack it.
    """

    unit: str = ""
    over_epochs: Joining = last
    over_clients: Joining | None = None
    weight: str = ""
    adds_up: bool = False
    written: Callable[[Any], str | None] | None = None
    after: str = ""
    later: bool = False

    @property
    def is_joined(self) -> bool:
        """Whether clients' are looked at together."""
        return bool(self.over_clients or self.weight)


@dataclass(frozen=True)
class Column:
    """A figure as its field has it: the type of what is written of it, and whether there may be none."""

    kind: Any
    optional: bool
    figure: Figure

    def written(self, value: Any) -> Any:
        """Returns a value as a table holds it."""
        return self.figure.written(value) if self.figure.written else value


def columns(of: type) -> dict[str, Column]:
    """Returns the fields of a dataclass that are annotated with a `Figure`, in order, by name."""
    found: dict[str, Column] = {}
    for name, hint in get_type_hints(of, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, figure = get_args(hint)
            options = get_args(kind) if get_origin(kind) is UnionType else (kind,)
            (kept,) = (one for one in options if one is not NoneType)
            found[name] = Column(str if figure.written else kept, NoneType in options, figure)
    return found


def side_by_side(ones: Mapping[str, Column], others: Mapping[str, Column]) -> dict[str, Column]:
    """Returns the columns of a table whose rows two classes make: the others behind those that they name."""
    followers: dict[str, dict[str, Column]] = {}
    place = ""
    for name, column in others.items():
        place = column.figure.after or place
        followers.setdefault(place, {})[name] = column
    result: dict[str, Column] = {}
    for name, column in ones.items():
        result |= {name: column, **followers.get(name, {})}
    return result
