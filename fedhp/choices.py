"""What a user chooses: names among known ones, what a typo was likely to mean, and values within bounds.

What a scenario's key may be is declared once, in the type of its field, where OmegaConf reads past it:
``Annotated[str, OneOf(POLICIES), STABLE]``, ``Annotated[float, Bounds(above=0)]``. `check_values` holds a
part to it; what relates several keys is checked by hand after that, in the part's ``__post_init__``.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, get_type_hints

from fedhp.bounds import Bounds
from fedhp.errors import ScenarioError

# Of a key whose name and meaning stay: scripts may rely on it.
STABLE: Final = "stable"

# Letters from which on the beginning of a name tells the name: "lr" begins several, and means none of them.
TELLING = 3
_SHORT = 4  # letters, up to which half of another name's make a close match
_MOST_FILES = 1000  # that are looked at


def near(name: str, known: Iterable[str]) -> list[str]:
    """Returns the known names that one is likely to mean: those that begin with it, or else the closest.

    To a short name none is close that is longer or shorter by more than a letter: "foo" is no "floor".
    """
    names = list(dict.fromkeys(known))
    longer = [one for one in names if one.startswith(name)] if len(name) >= TELLING else []
    alike = [one for one in names if len(name) > _SHORT or abs(len(one) - len(name)) <= 1]
    return longer or get_close_matches(name, alike, n=1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the question that an error about an unknown name ends with; empty where none is near."""
    meant = " or ".join(f"'{one}'" for one in near(name, known))
    return f". Did you mean {meant}?" if meant else ""


def file_meant(path: Path, suffixes: Iterable[str], besides: Iterable[str] = ()) -> str:
    """Returns the question that an error about a missing file ends with; empty where none is near.

    Args:
        path: Where no file is.
        suffixes: Of the files in its folder that may be meant, such as ``.npz``.
        besides: Other names that may be meant.
    """
    try:
        inside = islice(path.parent.iterdir(), _MOST_FILES)
        found = [one.name for one in inside if one.suffix in suffixes and one.is_file()]
    except (OSError, ValueError):  # there is no such folder, or can be none
        found = []
    return did_you_mean(path.name, [*sorted(found), *besides])


@dataclass(frozen=True, slots=True)
class OneOf:
    """The names that a key may have.

    Attributes:
        choices: They, or what returns them where they are made after the schema.
        hint: What else can be done.
    """

    choices: Collection[str] | Callable[[], Collection[str]]
    hint: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names, as they are registered now."""
        return tuple(self.choices() if callable(self.choices) else self.choices)

    def amiss(self, value: str) -> str | None:
        """Says that a name is none of them, and which was meant; None where it is one."""
        known = self.names
        if value in known:
            return None
        hint = f"; {self.hint}" if self.hint else ""
        return f"must be one of {', '.join(known)}, got '{value}'{hint}{did_you_mean(value, known)}"


def check_choice(key: str, value: str, choices: Collection[str], hint: str = "") -> None:
    """Checks that an option, or a key whose names are not known where it is declared, has one of its values.

    Args:
        key: The key, dotted.
        value: What the user gave.
        choices: The values that there are.
        hint: What else can be done.

    Raises:
        ScenarioError: If it has another, with the nearest.
    """
    if flaw := OneOf(choices, hint).amiss(value):
        raise ScenarioError(f"{key} {flaw}")


def check_values(part: Any, prefix: str = "") -> None:
    """Checks the values of a scenario's part, each by itself, against what its field declares.

    Args:
        part: A dataclass of the schema.
        prefix: What its keys begin with, such as ``train.``.

    Raises:
        ScenarioError: If one may not be, with its key, what it must be and what it is.
    """
    for name, limits in limits_of(type(part)).items():
        value = getattr(part, name)
        several = isinstance(value, list | tuple)
        for place, one in enumerate(value if several else [value]):
            if one is not None and (flaw := limits.amiss(one)):
                raise ScenarioError(f"{prefix}{name}{f'[{place}]' if several else ''} {flaw}")


@lru_cache
def limits_of(schema: type) -> Mapping[str, Bounds | OneOf]:
    """Returns what the values of a dataclass's fields are held to, by name, where it is declared."""
    found = {name: declared(kind) for name, kind in get_type_hints(schema, include_extras=True).items()}
    return {name: one for name, all in found.items() for one in all if isinstance(one, Bounds | OneOf)}


def declared(kind: Any) -> Sequence[Any]:
    """Returns what is declared in a field's type, beside the type."""
    return getattr(kind, "__metadata__", ())
