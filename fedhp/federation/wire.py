"""Values <-> Flower records: the only file that knows record keys. Trusts nothing that arrives.

Weights and kept units travel in one ``ArrayRecord``: parameters by name, and per group an array
``structure.<group>`` of packed bits and one ``score.<group>`` of contributions. Of a layer that holds a part
of its weights, the group is called as its parameter; its structure may be places, and it has no scores.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedhp.data.normalisation import Normalisation
from fedhp.errors import WireError
from fedhp.federation.arrays import array_bytes, read_array, write_array
from fedhp.federation.checks import (
    SCORE,
    check_announced,
    check_names,
    check_number,
    check_scores,
    check_statistics,
    check_structure,
    check_weights,
    wire_name,
)
from fedhp.federation.fields import read_config, read_field
from fedhp.federation.masks import mask_bytes, read_mask, write_mask
from fedhp.fleet.devices import DeviceProfile, attribute_flaw
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.training.statistics import STATISTICS, Statistics
from fedhp.training.update import Moments, Update

_MODEL, _TASK, _PROFILE, _METRICS = "model", "task", "profile", "metrics"
_STRUCTURE = "structure."
_PARTITION, _NONE = "partition-id", -1
_MEASURED = "memory-measured-bytes"
_FLOAT = np.dtype(np.float32)


def pack_state(state: ModelState) -> ArrayRecord:
    """Packs a model and its structure."""
    arrays = {name: write_array(weights) for name, weights in state.weights.items()}
    for group, mask in state.structure.masks.items():
        arrays[_STRUCTURE + group] = write_mask(mask, by_place=group in state.weights)
    for group, scores in state.scores.items():
        arrays[SCORE + group] = write_array(scores)
    return ArrayRecord(arrays)


def unpack_state(record: ArrayRecord, layout: Layout, within: Structure | None = None) -> ModelState:
    """Unpacks `pack_state`, checking keys, bits, shapes, types and values.

    Args:
        record: What arrived.
        layout: The model's wiring.
        within: The structure that the arrived one must be contained in; None allows any.

    Raises:
        WireError: If anything is not as it must be; the message names the field.
    """
    structured, scored = ((_STRUCTURE, layout.widths), (SCORE, layout.scored))
    keys = (prefix + group for prefix, groups in (structured, scored) for group in groups)
    check_names(record, layout.shapes, keys)
    structure = _unpack_structure(record, layout, within)
    weights = _unpack_weights(record, layout, layout.shapes, structure)
    return ModelState(weights, structure, _unpack_scores(record, layout, structure))


def state_bytes(layout: Layout, structure: Structure) -> int:
    """Returns the payload bytes of `pack_state` of a model of this structure."""
    counts = structure.counts
    weights = sum(array_bytes(layout.shape(name, counts), _FLOAT) for name in layout.shapes)
    masks = sum(
        mask_bytes(width, counts[group], by_place=group in layout.singles)
        for group, width in layout.widths.items()
    )
    return weights + masks + sum(array_bytes((counts[group],), _FLOAT) for group in layout.scored)


def record_bytes(record: ArrayRecord) -> int:
    """Returns the payload bytes of a record's arrays."""
    return sum(len(array.data) for array in record.values())


@dataclass(frozen=True)
class Brief:
    """What every message to a device says of the run, so that a device needs no scenario of its own.

    Attributes:
        scenario: The resolved scenario as JSON.
        input_shape: Shape of one sample, channels first.
        num_classes: Number of classes.
        normalisation: Of the server's data: a device's own is normalised as that is.
        methods: The client methods that the strategy asks for, by name or reference.
        budgeted: Whether devices keep to their memory budgets; only the ``dense`` yardstick does not.
        label_names: The classes' names, in order, by which a device's own labels may go; none where they have
            numbers only.
        shares: How groups of units shrink together, as `fedhp.model.shrinking.Shape` has it, in their order:
            the server's memory model says it, for all. None leaves it to that of the device.
    """

    scenario: str
    input_shape: tuple[int, ...]
    num_classes: int
    normalisation: Normalisation
    methods: tuple[str, ...]
    budgeted: bool
    label_names: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()


def pack_query(brief: Brief) -> RecordDict:
    """Packs the question that a device is asked whenever it has come: who are you?"""
    return RecordDict({_TASK: _pack_brief(brief)})


def pack_profile(profile: DeviceProfile, partition_id: int | None) -> RecordDict:
    """Packs a device's answer; what a device does not have, such as a partition id, is -1."""
    attributes = {wire_name(name): value for name, value in vars(profile).items()} | {
        _PARTITION: partition_id
    }
    return RecordDict({_PROFILE: ConfigRecord({k: _NONE if v is None else v for k, v in attributes.items()})})


def unpack_profile(content: RecordDict) -> tuple[DeviceProfile, int | None]:
    """Unpacks `pack_profile`.

    Raises:
        WireError: If a field is missing, of another type or out of its range.
    """
    answer = read_config(content, _PROFILE)
    profile = DeviceProfile(
        **{name: _attribute(answer, name, kind) for name, kind in get_type_hints(DeviceProfile).items()}
    )
    client = read_field(answer, _PARTITION, int)
    if client < _NONE:
        raise WireError(f"profile: {_PARTITION} is {client}, expected 0 or more")
    return profile, None if client == _NONE else client


def _attribute(answer: ConfigRecord, name: str, kind: Any) -> Any:
    """Returns a field of a device's profile, held to its type and bounds; texts are names."""
    kinds = get_args(kind) or (kind,)
    value: Any = read_field(answer, wire_name(name), kinds[0])
    if NoneType in kinds and value in (_NONE,):
        return None
    if flaw := attribute_flaw(name, value):
        raise WireError(f"profile: {wire_name(name)}: {flaw}")
    return value


def pack_task(state: ArrayRecord, brief: Brief, server_round: int) -> RecordDict:
    """Packs what a round's clients of one structure share: one object for all of them."""
    task = _pack_brief(brief)
    task["server-round"] = server_round
    return RecordDict({_MODEL: state, _TASK: task})


def unpack_brief(content: RecordDict) -> Brief:
    """Returns what a query or a task says of the run.

    Raises:
        WireError: If a field is missing, of another type or out of its range.
    """
    task = read_config(content, _TASK)
    shape = task.get("input-shape")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise WireError(f"input-shape: expected positive integers, got {shape!r}")
    sample = tuple(int(n) for n in shape)
    return Brief(
        read_field(task, "scenario", str),
        sample,
        read_field(task, "num-classes", int),
        _unpack_normalisation(task, sample),
        _unpack_names(task, "methods"),
        read_field(task, "budgeted", bool),
        _unpack_names(task, "label-names"),
        _unpack_shares(task),
    )


def unpack_task(content: RecordDict, layout: Layout) -> tuple[int, ModelState]:
    """Returns the round that a task is for, and the model that it carries.

    Raises:
        WireError: As `unpack_state`.
    """
    server_round = read_field(read_config(content, _TASK), "server-round", int)
    return server_round, unpack_state(_arrays(content), layout)


def pack_update(update: Update) -> RecordDict:
    """Packs a client's reply."""
    metrics = MetricRecord({"num-examples": update.num_examples})
    for name, value in vars(update.statistics).items():
        if value is not None:
            metrics[wire_name(name)] = value
    return RecordDict({_MODEL: pack_state(update.state), _METRICS: metrics})


def unpack_update(
    content: RecordDict, layout: Layout, client: int, assigned: Structure, profile: DeviceProfile
) -> Update:
    """Unpacks and checks a client's reply against what it was sent.

    Raises:
        WireError: If the reply has wrong keys, shapes, types, bits beyond the assignment, NaN or infinite
            weights, more examples than the client announced, or another number of held-out ones.
    """
    state = unpack_state(_arrays(content), layout, within=assigned)
    metrics = _metrics(content)
    update = Update(
        client, assigned, state, read_field(metrics, "num-examples", int), _unpack_statistics(metrics)
    )
    check_announced(update, profile)
    return update


def pack_moments(moments: Moments) -> RecordDict:
    """Packs a client's answer to the question for a model's running statistics."""
    arrays = {name: write_array(weights) for name, weights in moments.weights.items()}
    metrics = MetricRecord({_MEASURED: moments.memory_measured_bytes})
    return RecordDict({_MODEL: ArrayRecord(arrays), _METRICS: metrics})


def unpack_moments(content: RecordDict, layout: Layout, asked: Structure) -> Moments:
    """Unpacks `pack_moments`, checking it against the structure of the model that was sent.

    Raises:
        WireError: If an array is missing, unknown, of another shape or holds what no samples have, or the
            size is none.
    """
    record = _arrays(content)
    check_names(record, layout.buffers)
    weights = _unpack_weights(record, layout, sorted(layout.buffers), asked)
    measured = read_field(_metrics(content), _MEASURED, int)
    check_number(_MEASURED, measured)
    return Moments(weights, measured)


def update_bytes(content: RecordDict) -> int:
    """Returns the payload bytes of a reply's arrays."""
    return sum(record_bytes(record) for record in content.array_records.values())


def _pack_brief(brief: Brief) -> ConfigRecord:
    return ConfigRecord(
        {
            "scenario": brief.scenario,
            "input-shape": list(brief.input_shape),
            "num-classes": brief.num_classes,
            "mean": list(brief.normalisation.mean),
            "std": list(brief.normalisation.std),
            "normalised-axis": brief.normalisation.axis,
            "methods": list(brief.methods),
            "budgeted": brief.budgeted,
            "label-names": list(brief.label_names),
            "shares": list(brief.shares),
        }
    )


def _unpack_normalisation(task: ConfigRecord, shape: tuple[int, ...]) -> Normalisation:
    axis = read_field(task, "normalised-axis", int)
    if axis not in range(len(shape)):
        raise WireError(f"normalised-axis: expected an axis of samples of shape {shape}, got {axis}")
    numbers = {key: read_field(task, key, list) for key in ("mean", "std")}
    for key, values in numbers.items():
        if len(values) not in (1, shape[axis]) or len(values) != len(numbers["mean"]):
            raise WireError(f"{key}: expected 1 or {shape[axis]} numbers, got {len(values)}")
        least = -math.inf if key == "mean" else 0
        if not all(type(value) is float and least < value < math.inf for value in values):
            raise WireError(f"{key}: expected finite numbers, those of std above 0, got {values!r:.80}")
    return Normalisation(tuple(numbers["mean"]), tuple(numbers["std"]), axis)


def _unpack_names(task: ConfigRecord, key: str) -> tuple[str, ...]:
    names = read_field(task, key, list)
    if not all(type(name) is str for name in names):
        raise WireError(f"{key}: expected texts, got {names!r:.80}")
    return tuple(names)


def _unpack_shares(task: ConfigRecord) -> tuple[float, ...]:
    shares = read_field(task, "shares", list)
    if not all(type(share) is float and 0 < share <= 1 for share in shares):
        raise WireError(f"shares: expected numbers above 0 and at most 1, got {shares!r:.80}")
    return tuple(shares)


def _unpack_weights(
    record: ArrayRecord, layout: Layout, names: Iterable[str], structure: Structure
) -> dict[str, NDArray[np.float32]]:
    counts = structure.counts
    weights = {name: read_array(name, record[name], layout.shape(name, counts), _FLOAT) for name in names}
    check_weights(weights, layout)
    return weights


def _unpack_structure(record: ArrayRecord, layout: Layout, within: Structure | None) -> Structure:
    masks = {}
    for group, width in layout.widths.items():
        name = _STRUCTURE + group
        masks[group] = read_mask(name, record[name], width, by_place=group in layout.singles)
    structure = Structure(masks)
    check_structure(structure, layout, within)
    return structure


def _unpack_scores(
    record: ArrayRecord, layout: Layout, structure: Structure
) -> dict[str, NDArray[np.float32]]:
    scores = {
        group: read_array(SCORE + group, record[SCORE + group], (structure.counts[group],), _FLOAT)
        for group in layout.scored
    }
    check_scores(scores, structure)
    return scores


def _arrays(content: RecordDict) -> ArrayRecord:
    record = content.array_records.get(_MODEL)
    if record is None:
        raise WireError(f"no array record '{_MODEL}', got {sorted(content)}")
    return record


def _metrics(content: RecordDict) -> MetricRecord:
    record = content.metric_records.get(_METRICS)
    if record is None:
        raise WireError(f"reply: no metric record '{_METRICS}', got {sorted(content)}")
    return record


def _unpack_statistics(metrics: MetricRecord) -> Statistics:
    values = {
        name: read_field(metrics, wire_name(name), column.kind)
        for name, column in STATISTICS.items()
        if not column.optional or wire_name(name) in metrics
    }
    check_statistics(values)
    return Statistics(**values)
