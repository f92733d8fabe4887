"""The rounds that a record tells of, read back as the reports that they were written from."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fedhp.errors import RecordError
from fedhp.model.structure import Structure
from fedhp.records.parquet import rows
from fedhp.records.rows import CLIENTS, ROUNDS, ClientReport, RoundReport

# What is written of a round as it is, and not found out from other columns.
_GIVEN = [
    one.name
    for one in fields(RoundReport)
    if one.init and one.name in ROUNDS and not ROUNDS[one.name].figure.written
]


def check_rounds(folder: Path, told: int) -> None:
    """Checks that the tables hold the first rounds whole, and a row for each client that was asked in them.

    Raises:
        RecordError: If they do not.
    """
    rows, numbers = _rounds(folder, told), Counter(row["round"] for row in _clients(folder, told))
    asked = [(row["round"], row["num_replies"] + row["num_failures"]) for row in rows]
    if asked != [(number, numbers[number]) for number in range(told)]:
        raise RecordError(f"{folder} is damaged: its tables lack rows of rounds 0 to {told - 1}")


def reports(folder: Path, told: int, widths: Mapping[str, int]) -> Iterator[RoundReport]:
    """Yields the reports of the first rounds, round 0 first, less their votes.

    Args:
        folder: The record.
        told: How many.
        widths: The units of each group in the full model.
    """
    by_round = groupby(_clients(folder, told), key=lambda row: row["round"])
    number, clients = next(by_round, (None, iter(())))
    for row in _rounds(folder, told):
        mine: tuple[ClientReport, ...] = ()
        if number == row["round"]:
            mine = tuple(map(ClientReport.of, clients))
            number, clients = next(by_round, (None, iter(())))
        yield _round_report(row, mine, widths)


def _round_report(
    row: Mapping[str, Any], clients: tuple[ClientReport, ...], widths: Mapping[str, int]
) -> RoundReport:
    bits = json.loads(row["structure"])
    packed = {group: np.frombuffer(bytes.fromhex(text), np.uint8) for group, text in bits.items()}
    known = {name: row[name] for name in _GIVEN}
    return RoundReport(**known, structure=Structure.from_bits(packed, widths), clients=clients)


def _rounds(folder: Path, told: int) -> Iterator[dict[str, Any]]:
    return rows(folder / "rounds.parquet", ROUNDS, told)


def _clients(folder: Path, told: int) -> Iterator[dict[str, Any]]:
    return rows(folder / "clients.parquet", CLIENTS, told)
