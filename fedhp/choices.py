"""Names that a user chooses among known ones, and what a typo was likely to mean."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from fedhp.errors import ScenarioError

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
        found = [one.name for one in islice(path.parent.iterdir(), _MOST_FILES) if one.suffix in suffixes]
    except (OSError, ValueError):  # there is no such folder, or can be none
        found = []
    return did_you_mean(path.name, [*sorted(found), *besides])


def check_choice(key: str, value: str, choices: Iterable[str], otherwise: str = "") -> None:
    """Checks that a scenario's key has one of its values.

    Args:
        key: The key, dotted.
        value: What the user gave.
        choices: The values that there are.
        otherwise: What else can be done, such as "; bring your own".

    Raises:
        ScenarioError: If it has another, with the nearest.
    """
    known = tuple(choices)
    if value not in known:
        raise ScenarioError(
            f"{key} must be one of {', '.join(known)}, got '{value}'{otherwise}{did_you_mean(value, known)}"
        )
