"""Which numbers and texts a scenario's keys may have: declared beside each key, none without a bound.

A field of the schema is ``Annotated[int, Bounds(at_least=1, largest=999_999)]``: where a value makes sense,
and an upper end beyond what any run needs, below what ends a process, waits for ever or fits no file.
`fedhp.choices.check_values` checks a part against its fields as it is made, wherever it comes from.
"""

import math
from dataclasses import dataclass

LARGEST_BYTES = 2**46  # 64 TiB: no machine has more
MOST_PARAMETERS = 2**30
MOST_THREADS = 256  # where a process may have no more, torch ends it
MOST_SEEDS = 10_000  # of a study or comparison, which lists all its runs before the first
MOST_EPOCHS = 999_999  # and rounds: a record numbers its parts in six digits
MOST_CLIENTS = 10**6
LARGEST_BATCH = 2**20
WIDEST = 2**24  # units of a group
LARGEST_WHOLE = 2**53  # up to here Python, Flower and Arrow hold the same integers

_LARGEST_NUMBER = 10**9
_MOST_ENTRIES = 1000
_SHOWN = 60
UNWRITTEN = 10**30  # Python refuses to write integers of thousands of digits


@dataclass(frozen=True, slots=True)
class Bounds:
    """The numbers that a key may have; of a list, its entries. As text, what an error and the tables say.

    Attributes:
        at_least: The lower end, if it is in the range.
        above: The lower end, if it is not.
        at_most: The upper end, if it is in the range.
        below: The upper end, if it is not.
        or_zero: Whether 0 may be too, which stands for none.
        largest: What is refused to go beyond, wherever the range ends.
        hint: What an error ends with.
    """

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    or_zero: bool = False
    largest: int = _LARGEST_NUMBER
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        inside = self.at_least <= value <= self.at_most and self.above < value < self.below
        return inside or (self.or_zero and value == 0)

    def __str__(self) -> str:
        return f"{self._range()}{', or 0' if self.or_zero else ''}"

    def _range(self) -> str:
        low, high = max(self.at_least, self.above), min(self.at_most, self.below)
        if high == math.inf and low == self.at_least:
            return f"at least {low}" if low else "0 or more"
        if high == math.inf:
            return f"above {low}"
        if low == self.above:
            return f"above {low} and {'below' if high == self.below else 'at most'} {high}"
        return f"from {low} to {'below ' if high == self.below else ''}{high}"

    def amiss(self, value: float) -> str | None:
        """Says what is wrong with a number; None where nothing is."""
        if value in self:
            return self.beyond(value)
        endless = isinstance(value, float) and min(self.at_most, self.below) == math.inf
        finite = "finite and " if endless else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"must be {finite}{self}, got {shown(value)}{hint}"

    def beyond(self, value: float) -> str | None:
        """Says so where a finite number is too large, whatever it stands for."""
        if not self.largest < abs(value) < math.inf:
            return None
        return f"must be at most {self.largest}, got {shown(value)}"


@dataclass(frozen=True, slots=True)
class Text:
    """The texts that a key may have: of plain characters, standing for nothing but themselves.

    Attributes:
        longest: Their most characters.
        lines: Whether there may be several lines.
    """

    longest: int = 200
    lines: bool = False

    def beyond(self, text: str) -> str | None:
        """Says what is wrong with a text; None where nothing is."""
        if len(text) > self.longest:
            return f"must be a text of at most {self.longest} characters, got {len(text)}"
        if not all(line.isprintable() for line in (text.split("\n") if self.lines else [text])):
            return f"must be a text without line ends and control characters, got {shown(text)}"
        if text == "???":
            return "is '???', which stands for a value that is still to be given"
        if "${" in text:
            return f"must be a value itself, and no interpolation such as ${{...}}, got {shown(text)}"
        return None


def beyond(value: object, declared: object) -> str | None:
    """Says what is wrong with a value that is too large, too long, or no line of plain text.

    Args:
        value: A number, text or list, of its key's type or not; anything else is never beyond a bound.
        declared: The `Bounds` or the `Text` of its key, if it has any.
    """
    if isinstance(value, str):
        return (declared if isinstance(declared, Text) else Text()).beyond(value)
    if isinstance(value, int | float):
        return (declared if isinstance(declared, Bounds) else Bounds()).beyond(value)
    if isinstance(value, list) and len(value) > _MOST_ENTRIES:
        return f"must be a list of at most {_MOST_ENTRIES} entries, got {len(value)}"
    return None


def one_line(text: str, limit: int = 500) -> str:
    """Returns the text on one line without control characters; a client may send anything."""
    clean = "".join(char if char.isprintable() else " " for char in text[: 4 * limit])
    joined = " ".join(clean.split())
    return joined if len(joined) <= limit else joined[: limit - 1] + "…"


def shown(value: object) -> str:
    """Returns a value as Python writes it, on one line that is not long."""
    if isinstance(value, int) and abs(value) >= UNWRITTEN:
        return "one of more than 30 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
