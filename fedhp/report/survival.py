"""Which units of each group lived how long, and how the clients voted on them, as matrices to draw."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import RecordError
from fedhp.records.result import RunResult


@dataclass(frozen=True)
class Survival:
    """A group over the rounds of a run, of the units that the run started with.

    Attributes:
        group: The group's name.
        units: The units, in full-model coordinates: those that lived longest first.
        alive: Whether the unit was in the model at the start of the round; shape (units, rounds).
        votes: The share of the unit's assignees that kept it in the round; NaN where nobody judged.
        survivors: How many units are left after the last round.
    """

    group: str
    units: NDArray[np.intp]
    alive: NDArray[np.bool_]
    votes: NDArray[np.float64]
    survivors: int

    @property
    def was_cut(self) -> bool:
        """Whether any unit went."""
        return self.survivors < len(self.units)

    @property
    def was_judged(self) -> bool:
        """Whether the record holds any vote."""
        return not np.isnan(self.votes).all()


def survival(run: RunResult) -> list[Survival]:
    """Returns every group's history; the columns are the rounds from 1 on.

    Raises:
        RecordError: If a structure or a vote in the record cannot be read.
    """
    try:
        kept = [_structure(text) for text in run.rounds["structure"]]
        votes = [json.loads(text) if isinstance(text, str) else {} for text in run.rounds["votes"]]
        return [_history(group, kept, votes) for group in kept[0]]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        path = run.folder / "rounds.parquet"
        raise RecordError(f"{path}: structures or votes that cannot be read: {error}") from None


def _structure(text: str) -> dict[str, NDArray[np.bool_]]:
    """Unpacks a structure; its masks are whole bytes long, the bits beyond a group's width are unset."""
    packed = {group: np.frombuffer(bytes.fromhex(bits), np.uint8) for group, bits in json.loads(text).items()}
    return {group: np.unpackbits(bits).astype(np.bool_) for group, bits in packed.items()}


def _history(group: str, kept: list[dict[str, Any]], votes: list[dict[str, Any]]) -> Survival:
    masks = np.stack([structure[group] for structure in kept])
    units = np.flatnonzero(masks[0])
    lifetimes = masks[:, units].sum(axis=0)
    units = units[np.argsort(-lifetimes, kind="stable")]
    shares = np.full((len(units), len(kept) - 1), np.nan)
    for column, one in enumerate(votes[1:]):
        if group in one:
            shares[:, column] = np.array(one[group], float)[units]
    return Survival(group, units, masks[:-1, units].T, shares, int(masks[-1].sum()))
