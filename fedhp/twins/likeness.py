"""How far two records are of one run: what keeps them from being comparable, and what their models share."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedhp.errors import RecordError
from fedhp.files.marks import DEVICES
from fedhp.records.load import load_state
from fedhp.records.result import RunResult
from fedhp.records.wording import rounds
from fedhp.twins.measures import class_names, succeeded

_TOLD = ["structure", "accuracy", "loss"]  # of a round, to the last bit: models that are not the same differ
_LIBRARIES = ("fedhp", "torch", "numpy")
_MOST_NAMED = 10


@dataclass(frozen=True)
class Likeness:
    """What the models of two runs have in common.

    Attributes:
        rounds: How many first rounds, round 0 included, ended with the same structure, accuracy and loss, to
            the bit.
        units: Units that both last models keep, per unit that either keeps; None where the models are of
            different networks, or one is missing.
        difference: The largest between two weights of the last models; None where structures differ.
        bits: Whether structures and weights of the last models are the same to the bit.
    """

    rounds: int
    units: float | None = None
    difference: float | None = None
    bits: bool = False

    def __str__(self) -> str:
        if self.bits:
            return "the last models are the same to the bit, structure and weights"
        if self.difference is not None:
            return f"the last models have the same structure; weights differ by {self.difference:.2g} at most"
        if self.units is None:
            return "the last models are of different networks, or one is missing"
        return f"the last models differ in structure: {self.units:.1%} of the units of either are in both"


def likeness(simulated: RunResult, real: RunResult) -> Likeness:
    """Returns what the models of two runs have in common."""
    alike = _rounds_alike(simulated, real)
    try:
        (ours, our_network), (theirs, their_network) = (load_state(run.folder) for run in (simulated, real))
    except RecordError:
        return Likeness(alike)
    if any(our_network[key] != their_network[key] for key in ("widths", "shapes", "axes")):
        return Likeness(alike)
    if ours.structure != theirs.structure:
        return Likeness(alike, 1 - ours.structure.distance(theirs.structure))
    pairs = [(array, theirs.weights[name]) for name, array in ours.weights.items()]
    difference = max(float(np.abs(one - other).max(initial=0.0)) for one, other in pairs)
    return Likeness(alike, 1.0, difference, all(one.tobytes() == other.tobytes() for one, other in pairs))


def _rounds_alike(simulated: RunResult, real: RunResult) -> int:
    told = [run.rounds[_TOLD].itertuples(index=False, name=None) for run in (simulated, real)]
    alike = 0
    for one, other in zip(*told, strict=False):
        if one != other:
            break
        alike += 1
    return alike


def cautions(simulated: RunResult, real: RunResult) -> Iterator[str]:
    """Yields why figures of two records may say little of each other."""
    if different := simulated.config.differences(real.config):
        yield f"the scenarios differ: {'; '.join(different)}"
    if (simulated.folder / DEVICES).is_file():
        yield f"{simulated.folder.name}, which comes first, is of a federation, and no simulation"
    if not (real.folder / DEVICES).is_file():
        yield f"{real.folder.name}, which comes second, is of no federation over devices"
    for run in (simulated, real):
        if run.summary["status"] != "finished":
            yield f"{run.folder.name} is {run.summary['status']}, and held {rounds(run.summary['rounds'])}"
    ours, theirs = (run.summary["rounds"] for run in (simulated, real))
    if ours != theirs:
        fewer = rounds(min(ours, theirs))
        yield f"{rounds(ours)} simulated, and {rounds(theirs)} held on devices: {fewer} compared"
    yield from _other_clients(simulated, real)
    yield from _other_versions(simulated, real)


def _other_clients(simulated: RunResult, real: RunResult) -> Iterator[str]:
    ours, theirs = (run.clients for run in (simulated, real))
    mine, there = (len(set(rows["client"])) for rows in (ours, theirs))
    if mine != there:
        yield f"clients simulated: {mine}; devices asked: {there}"
    planned, met = (class_names(rows) for rows in (ours, theirs))
    if lacking := [name for name in planned if name not in met]:
        yield f"simulated, and no device's class: {', '.join(lacking)}"
    if new := [name for name in met if name not in planned]:
        yield f"not simulated as classes, and held against clients of their numbers: {', '.join(new)}"
    kinds, known = (dict(zip(rows["client"], rows["device_class"], strict=True)) for rows in (ours, theirs))
    moved = [client for client, name in kinds.items() if known.get(client, name) not in (name, *new)]
    if moved:
        named = (f"{one} ({kinds[one]} simulated, {known[one]} real)" for one in moved[:_MOST_NAMED])
        yield f"of another class than simulated: client {', '.join(named)}"
    samples = [succeeded(rows).groupby("client")["num_examples"].max() for rows in (ours, theirs)]
    others = samples[0].index.intersection(samples[1].index)
    others = others[(samples[0][others] != samples[1][others]).to_numpy()]
    if len(others):
        named = ", ".join(map(str, others[:_MOST_NAMED]))
        yield f"with other numbers of samples than simulated: client {named}"


def _other_versions(simulated: RunResult, real: RunResult) -> Iterator[str]:
    ours, theirs = (run.summary["versions"] for run in (simulated, real))
    for name in _LIBRARIES:
        if name in ours and name in theirs and ours[name] != theirs[name]:
            yield f"{name} {ours[name]} simulated, and {theirs[name]} was at the server"
