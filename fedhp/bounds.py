"""How large what a scenario says may be: no number, text or list goes without a bound.

Where a value begins to make sense is checked beside its key. The upper ends are here, in one place: beyond
what any run needs, and below what ends a process, waits for ever or fits no file.
"""

import math
from collections.abc import Mapping

LARGEST_BYTES = 2**46  # 64 TiB: no machine has more
MOST_PARAMETERS = 2**30
MOST_THREADS = 256  # where a process may have no more, torch ends it
MOST_SEEDS = 10_000  # of a study or comparison, which lists all its runs before the first

_LARGEST_NUMBER = 10**9
_LARGEST: Mapping[str, int] = {
    "seed": 2**63 - 1,
    "rounds": 999_999,  # a record numbers its parts in six digits
    "train.epochs": 999_999,
    "train.local_epochs": 999_999,
    "train.batch_size": 2**20,
    "memory.max_batch": 2**20,
    "model.widths[]": 2**24,
    "model.floor": 2**24,
    "fleet.num_clients": 10**6,
    "server.clients_per_round": 10**6,
    "server.min_replies": 10**6,
    "server.timeout_seconds": 10**7,
    "simulation.num_workers": 4096,
    "simulation.gpus_per_worker": 64,
    "simulation.threads_per_worker": MOST_THREADS,
}

_LONGEST_TEXT = 200
_LONGEST: Mapping[str, int] = {"description": 10_000, "data.root": 4096}
_MOST_ENTRIES = 1000

_SHOWN = 60
UNWRITTEN = 10**30  # Python refuses to write integers of thousands of digits


def beyond(key: str, value: object) -> str | None:
    """Says what is wrong with a value that is too large, too long, or no line of plain text.

    Args:
        key: Its key, dotted, with ``[]`` for a list's entries.
        value: A number, text or list; anything else is never beyond a bound.
    """
    if isinstance(value, str):
        return _beyond_text(key, value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # as with what is too small, its part says what it may be
    if isinstance(value, int | float):
        largest = _LARGEST.get(key, _LARGEST_NUMBER)
        return None if abs(value) <= largest else f"must be at most {largest}, got {shown(value)}"
    if isinstance(value, list) and len(value) > _MOST_ENTRIES:
        return f"must be a list of at most {_MOST_ENTRIES} entries, got {len(value)}"
    return None


def _beyond_text(key: str, text: str) -> str | None:
    longest = _LONGEST.get(key, _LONGEST_TEXT)
    if len(text) > longest:
        return f"must be a text of at most {longest} characters, got {len(text)}"
    lines = text.split("\n") if key == "description" else [text]
    if not all(line.isprintable() for line in lines):
        return f"must be a text without line ends and control characters, got {shown(text)}"
    if text == "???":
        return "is '???', which stands for a value that is still to be given"
    if "${" in text:
        return f"must be a value itself, and no interpolation such as ${{...}}, got {shown(text)}"
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
