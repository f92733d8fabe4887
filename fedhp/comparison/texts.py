"""A comparison's tables as texts, for a page, for Markdown and for LaTeX."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fedhp.comparison.facets import Facet
from fedhp.comparison.pairs import identical
from fedhp.comparison.result import Result
from fedhp.comparison.rows import ENOUGH
from fedhp.sweep.texts import Row, number, spread

_TERMS = """\
Accuracies in percent on the held-out set, means over seeds with their standard deviation, and the interval of
the last accuracy's mean with a confidence of 95% (Student's t), a dash below three seeds. Worst class: of
each seed the accuracy of the device class on whose devices' own data the last global model is worst, of all
classes, whether or not the strategy lets them take part ({measured}), then the mean over seeds; named are all
classes that were worst on a seed, the most frequent first. Smaller: parameters of the full model per
parameter of the last.
"""

_COSTS = """\
Memory is what was measured while devices trained: the mean over clients, rounds and seeds, and the largest
peak of all. Over budget: rounds of clients over their budget, of all seeds together. Up and down: sent in the
whole run; seconds are those of one process among others, and rough: means over seeds.
"""

_EXPORTED = """\
One sample: the time that the network takes, exported to {export}, in the runtime of that format on one thread
of the machine that exported it; file: the size of its float32 file; means over seeds.
"""

PAIRS = """\
Points: the last accuracy of the strategy named first, less that of the other (column less), the mean over
common seeds, with its interval of 95%, a dash below three seeds; p of a two-sided paired t-test, and the same
corrected for the number of pairs of the table (Holm). With few seeds a large p says little; a dash stands
where differences do not vary.
"""

# By key that alone tells equal arms apart: why it made no difference.
_WHY = {
    "strategy.quorum": "the mask intersection never has fewer units than the schedule of prune leaves, "
    "and in no round did one quorum let more through beyond that than another"
}

Column = tuple[str, Callable[[Row], str]]
Texts = list[list[str]]


def figure(key: str, form: str, unit: str = "") -> Callable[[Row], str]:
    """Returns what writes a figure of a row by a format."""
    return lambda row: number(row[key], form, unit)


def mebibytes(key: str) -> Callable[[Row], str]:
    """Returns what writes MiB of a row, with three digits that tell: small networks send little."""
    return lambda row: "-" if row[key] is None else three_digits(row[key])


def three_digits(value: float) -> str:
    """Writes a size, 0 or more, with its first three digits and all before the point."""
    decimals = max(0, 2 - math.floor(math.log10(value))) if value else 0
    return f"{value:,.{decimals}f}"


def with_spread(key: str) -> Callable[[Row], str]:
    """Returns what writes a mean over seeds with its deviation."""
    return lambda row: spread(row[key], row[f"{key}_deviation"])


def _interval(low: str, high: str, form: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[low] is None else f"{row[low]:{form}} to {row[high]:{form}}"


def _size(key: str) -> Callable[[Row], str]:
    """Returns what writes MiB of a row, those below one in KiB: budgets of sensors are of a few."""
    return lambda row: "-" if row[key] is None else _sized(row[key])


def _sized(mebibytes: float) -> str:
    return f"{mebibytes:.2f} MiB" if mebibytes >= 1 else f"{mebibytes * 1024:.1f} KiB"


WORST = figure("worst_class_accuracy", ".1f")

_ARMS: tuple[Column, ...] = (
    ("seeds", lambda row: str(row["seeds"])),
    ("last accuracy", with_spread("last")),
    ("95% interval", _interval("last_low", "last_high", ".2f")),
    ("best", figure("best", ".2f")),
    ("worst class", lambda row: f"{WORST(row)} {row['worst_class']}".strip()),
    ("smaller", figure("compression", ".1f", "x")),
    ("memory, mean (MiB)", mebibytes("memory_mean_mib")),
    ("memory, peak (MiB)", mebibytes("memory_peak_mib")),
    ("over budget", figure("violations", ".0f")),
    ("up (MiB)", mebibytes("up_mib")),
    ("down (MiB)", mebibytes("down_mib")),
    ("seconds", figure("seconds", ".0f")),
)
_CLASSES: tuple[Column, ...] = (
    ("class", lambda row: row["device_class"]),
    ("budget", _size("budget_mib")),
    ("memory, mean", _size("memory_mean_mib")),
    ("memory, peak", _size("memory_peak_mib")),
    ("accuracy, global model", figure("accuracy", ".1f")),
    ("of the part received", figure("accuracy_received", ".1f")),
)
_PAIRS: tuple[Column, ...] = (
    ("seeds", lambda row: str(row["seeds"])),
    ("points", figure("points", "+.2f")),
    ("95% interval", _interval("low", "high", "+.2f")),
    ("p", figure("p", ".2g")),
    ("p, corrected", figure("p_holm", ".2g")),
)


def arm_texts(facet: Facet, export: str = "") -> Texts:
    """Returns the table of arms, its heading first; with the format that their networks were exported to."""
    columns = (*_ARMS, *_hardware(export)) if is_exported(facet) else _ARMS
    return _texts(("strategy",), columns, (((label,), row) for label, row in facet.arms.items()))


def _hardware(export: str) -> Iterator[Column]:
    yield f"one sample, {export} (us)", figure("latency_us", ".1f")
    yield f"file, {export} (KiB)", figure("file_kib", ".1f")


def is_exported(facet: Facet) -> bool:
    """Says whether it is known what the networks take on hardware."""
    return any(row["latency_us"] is not None for row in facet.arms.values())


def class_texts(facet: Facet, classes: Sequence[Row]) -> Texts:
    """Returns the table of the arms' device classes, its heading first."""
    rows = (((label,), row) for label, arm in facet.arms.items() for row in classes if _same(arm, row))
    return _texts(("strategy",), _CLASSES, rows)


def pair_texts(facet: Facet, pairs: Sequence[Row]) -> Texts:
    """Returns the table of pairs, each the more accurate one first, its heading first."""
    labels = list(facet.done)
    rows = (
        ((one, other), found)
        for place, one in enumerate(labels)
        for other in labels[place + 1 :]
        if (found := pair_of(pairs, facet, one, other)) is not None
    )
    return _texts(("strategy", "less"), _PAIRS, rows)


def _texts(names: Sequence[str], columns: Sequence[Column], rows: Any) -> Texts:
    heading = [*names, *(title for title, _ in columns)]
    return [heading, *([*labels, *(said(row) for _, said in columns)] for labels, row in rows)]


def _same(arm: Row, row: Row, prefix: str = "") -> bool:
    return all(arm[key] == row[f"{prefix}{key}"] for key in ("strategy", "value"))


def pair_of(pairs: Sequence[Row], facet: Facet, one: str, other: str) -> Row | None:
    """Returns the row of two arms of a facet, the more accurate first."""
    first, second = facet.arms[one], facet.arms[other]
    own = (row for row in pairs if row["facet"] == facet.title)
    return next((row for row in own if _same(first, row) and _same(second, row, "other_")), None)


def said_identical(result: Result, facet: Facet) -> Iterator[str]:
    """Says which arms of a facet are one and the same, and why where that is known."""
    for group in identical(facet, result.tables.runs):
        *most, last = group
        apart = _apart([facet.arms[label] for label in group], result.manifest.keys)
        why = f": {_WHY[apart[0]]}" if len(apart) == 1 and apart[0] in _WHY else ""
        yield f"{', '.join(most)} and {last} are equal in every figure{why}."


def _apart(arms: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """Returns by what arms differ."""
    return [key for key in ("strategy", *keys) if len({arm[key] for arm in arms}) > 1]


def reasons(facet: Facet) -> list[str]:
    """Says why arms, or single seeds of them, have no result."""
    return [f"{label}: {row['reason']}" for label, row in facet.arms.items() if row["reason"]]


def heading(result: Result) -> str:
    """Says what is compared, over which seeds, what is varied, and what was given otherwise for all."""
    manifest = result.manifest
    told = {"varied": said_varied(result), "overridden": ", ".join(manifest.overrides)}
    rest = "".join(f"; {what}: {said}" for what, said in told.items() if said)
    return f"{manifest.called}, {said_seeds(result.seeds)}{rest}"


def terms(result: Result) -> str:
    """Says what the accuracies and sizes in the table of arms mean."""
    return _TERMS.format(measured=measured(result))


def meaning(result: Result) -> str:
    """Says what every column of the table of arms means."""
    exported = _EXPORTED.format(export=result.manifest.export) if any(map(is_exported, result.facets)) else ""
    return terms(result) + _COSTS + exported


def said_few(result: Result) -> str:
    """Says what is missing where some arm has too few seeds; nothing where all have enough."""
    seeds = [row["seeds"] for row in result.tables.arms if row["seeds"]]
    if not seeds or min(seeds) >= ENOUGH:
        return ""
    return "Intervals and p need three seeds or more: of fewer there are no intervals, and p says little."


def said_varied(result: Result) -> str:
    """Says which values the varied keys have; nothing where nothing is varied."""
    return "; ".join(f"{key} = {', '.join(values)}" for key, values in result.varied.items())


def said_seeds(seeds: Sequence[int]) -> str:
    """Writes rising seeds, such as ``seeds 0 to 2``."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"seeds {seeds[0]} to {seeds[-1]}" if whole else f"seeds {', '.join(map(str, seeds))}"


def measured(result: Result) -> str:
    """Says which of their own samples devices are judged on."""
    held_out, trained_on = "samples that the devices hold out", "samples that the devices train on"
    if len(result.held_out) > 1:
        return f"{held_out} where data.local_test is above 0, otherwise {trained_on}"
    return held_out if True in result.held_out else trained_on


def own_samples(result: Result) -> str:
    """Says briefly which of their own samples devices are judged on."""
    return "own samples, held out" if result.held_out == {True} else "own samples"
