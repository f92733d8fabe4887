"""The names of client methods that are spoken of before any is chosen, or imported."""

from collections.abc import Iterable, Sequence

DYNHP = "dynhp"
SPARSE = RIGL, SET, STATIC = "rigl", "set", "static"
SMCP = "smcp"
REGULARIZER = "regularizer"
TOP_GRADIENTS = "top_gradients"
HALVES = "halves"

# What a strategy that prunes asks for.
PRUNING = (DYNHP, REGULARIZER)


def with_choice(asked: Iterable[str], choice: str) -> tuple[str, ...]:
    """Returns what a strategy asks for, with the method that ``train.method`` says in DynHP's place."""
    return tuple(choice if name == DYNHP else name for name in asked)


def references(asked: Iterable[str], own: Sequence[str] = ()) -> list[str]:
    """Returns which methods are not among those that ship, and have to be imported."""
    return list(dict.fromkeys([*(name for name in asked if ":" in name), *own]))
