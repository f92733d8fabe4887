"""Replies that a strategy must not count, each kind made out of a right one: for our own checks alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from fedhp.federation.checks import SCORE
from fedhp.federation.wire import write_array

_MODEL, _METRICS, _STRUCTURE = "model", "metrics", "structure."
_HEADER = 128  # bytes before the values of a small array in NumPy's format


@dataclass(frozen=True)
class Case:
    """What a wrong reply is made of.

    Attributes:
        rng: Draws what is drawn.
        answer: The right reply of the device itself.
        other: The right reply of another device of the round.
        old: The device's right reply of a round before.
    """

    rng: np.random.Generator
    answer: Message
    other: Message
    old: Message


Kind = Callable[[Case], Message]


def altered(answer: Message, content: RecordDict | None = None, **metadata: Any) -> Message:
    """Returns the same reply, but for what it holds or what is said on its envelope."""
    said = {key.lstrip("_"): value for key, value in vars(answer.metadata).items() if key != "_delivered_at"}
    error = answer.error if answer.has_error() else None
    if content is None and error is None:
        content = answer.content
    return make_message(Metadata(**{**said, **metadata}), content=content, error=error)


def with_weights(answer: Message, change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Message:
    """Returns a reply all of whose weights are changed."""
    record = answer.content.array_records[_MODEL]
    changed = {
        name: write_array(change(array.numpy()).astype(np.float32))
        for name, array in record.items()
        if not name.startswith((_STRUCTURE, SCORE))
    }
    return _with_arrays(answer, {**record, **changed})


def _with_arrays(answer: Message, arrays: Mapping[str, Array]) -> Message:
    return altered(answer, RecordDict({**answer.content, _MODEL: ArrayRecord(dict(arrays))}))


def _envelope(**said: Any) -> Kind:
    return lambda case: altered(case.answer, **said)


def _as_another(*keys: str) -> Kind:
    """A reply on whose envelope something stands that belongs on another device's."""
    return lambda case: altered(case.answer, **{key: getattr(case.other.metadata, key) for key in keys})


def _array(change: Callable[[np.random.Generator, Array], Array | None], prefix: str | None = None) -> Kind:
    """A reply of whose arrays one is another; of those of weights, or with a prefix."""

    def made(case: Case) -> Message:
        record = dict(case.answer.content.array_records[_MODEL])
        marked = (_STRUCTURE, SCORE)
        names = [one for one in sorted(record) if one.startswith(prefix or marked) == bool(prefix)]
        name = str(case.rng.choice(names))
        array = change(case.rng, record.pop(name))
        return _with_arrays(case.answer, record if array is None else {**record, name: array})

    return made


def _values(change: Callable[[NDArray[Any]], NDArray[Any]], prefix: str | None = None) -> Kind:
    return _array(lambda _, array: write_array(change(array.numpy().copy())), prefix)


def _one_value(value: float, prefix: str | None = None) -> Kind:
    def change(values: NDArray[Any]) -> NDArray[Any]:
        values.reshape(-1)[-1] = value
        return values

    return _values(change, prefix)


def _metric(value: Any, name: str | None = None) -> Kind:
    """A reply of whose numbers one is another, or missing."""

    def made(case: Case) -> Message:
        metrics = dict(case.answer.content.metric_records[_METRICS])
        chosen = name or str(case.rng.choice(sorted(metrics)))
        metrics.pop(chosen)
        if value is not None:
            metrics[chosen] = value
        return altered(case.answer, RecordDict({**case.answer.content, _METRICS: MetricRecord(metrics)}))

    return made


def _content(change: Callable[[RecordDict], Mapping[str, Any]]) -> Kind:
    return lambda case: altered(case.answer, RecordDict(dict(change(case.answer.content))))


def _nothing(case: Case) -> Message:
    empty = altered(case.answer)
    empty.__dict__["_content"] = None
    return empty


def _error(code: int, reason: str) -> Kind:
    return lambda case: make_message(altered(case.answer).metadata, error=Error(code, reason))


def _data(change: Callable[[np.random.Generator, bytes], bytes]) -> Kind:
    return _array(lambda rng, one: Array(one.dtype, one.shape, one.stype, change(rng, one.data)))


MISATTRIBUTED: dict[str, Kind] = {
    "answers nothing": _envelope(reply_to_message_id=""),
    "answers what nobody asked": _envelope(reply_to_message_id="0:0"),
    "answers another's question": _as_another("reply_to_message_id"),
    "in another's name": _as_another("src_node_id"),
    "in a stranger's name": _envelope(src_node_id=77),
    "in the server's name": _envelope(src_node_id=0),
    "another's answer": lambda case: altered(case.other, src_node_id=case.answer.metadata.src_node_id),
    "of another round": _envelope(group_id="0"),
    "of another kind": _envelope(message_type="query"),
    "of another run": _envelope(run_id=2),
    "the answer of a round before": lambda case: case.old,
}

MALFORMED: dict[str, Kind] = {
    "an array is missing": _array(lambda rng, one: None),
    "an array too many": lambda case: _with_arrays(
        case.answer, {**case.answer.content.array_records[_MODEL], "x": write_array(np.zeros(3, np.float32))}
    ),
    "an array is cut off": _data(lambda rng, data: data[: -int(rng.integers(1, 9))]),
    "an array is longer": _data(lambda rng, data: data + b"0"),
    "an array is empty": _data(lambda rng, data: b""),
    "an array is noise": _data(lambda rng, data: rng.bytes(len(data))),
    "an array claims memory": _data(
        lambda rng, data: data[:_HEADER].replace(b"(", b"(9999999,") + data[_HEADER:]
    ),
    "an array is pickled": _array(lambda rng, one: Array(one.dtype, one.shape, "pickle", one.data)),
    "an array is of doubles": _values(lambda values: values.astype(np.float64)),
    "an array is of halves": _values(lambda values: values.astype(np.float16)),
    "an array is of texts": _values(lambda values: values.astype("U8")),
    "an array is of another byte order": _values(lambda values: values.astype(">f4")),
    "an array is of another shape": _values(lambda values: np.append(values, values[:1], 0)),
    "a weight is NaN": _one_value(np.nan),
    "a weight is infinite": _one_value(-np.inf),
    "a weight is huge": _one_value(1e30),
    "no unit is kept": _values(np.zeros_like, _STRUCTURE),
    "a score is negative": _one_value(-1.0, SCORE),
    "a score is NaN": _one_value(np.nan, SCORE),
    "a score is huge": _one_value(1e9, SCORE),
    "a number is missing": _metric(None),
    "a number is negative": _metric(-1),
    "a number is NaN": _metric(float("nan")),
    "a number is infinite": _metric(float("inf")),
    "a number is huge": _metric(2**62),
    "a number is a list": _metric([1, 2]),
    "no samples": _metric(0, "num-examples"),
    "more samples than there are": _metric(51, "num-examples"),
    "held-out samples that it has not": _metric(5, "num-local-test"),
    "nothing in it": _content(lambda content: {}),
    "arrays alone": _content(lambda content: {_MODEL: content[_MODEL]}),
    "numbers alone": _content(lambda content: {_METRICS: content[_METRICS]}),
    "settings for arrays": _content(lambda content: {**content, _MODEL: ConfigRecord({"a": 1})}),
    "neither content nor error": _nothing,
    "an error": _error(ErrorCode.UNKNOWN, "no disk"),
    "an error of forged lines": _error(ErrorCode.NODE_UNAVAILABLE, "a\x1b[2J\nround 1: all is well" * 99),
}

# What goes so far beyond the others' that it is refused whatever the rule.
OUT_OF_PROPORTION: dict[str, Kind] = {
    "times 1,000": lambda case: with_weights(case.answer, lambda values: 1e3 * values),
    "times -1,000": lambda case: with_weights(case.answer, lambda values: -1e3 * values),
    "a constant": lambda case: with_weights(case.answer, lambda values: np.full_like(values, 1e3)),
}

# What looks like any other's, and is averaged in but for a robust rule.
IN_PROPORTION: dict[str, Kind] = {
    "zeros": lambda case: with_weights(case.answer, np.zeros_like),
    "sign flipped": lambda case: with_weights(case.answer, np.negative),
    "times 3": lambda case: with_weights(case.answer, lambda values: 3 * values),
    "shifted": lambda case: with_weights(case.answer, lambda values: values + 0.3),
    "shuffled": lambda case: with_weights(case.answer, lambda values: case.rng.permuted(values)),
}

REFUSED = {**MISATTRIBUTED, **MALFORMED, **OUT_OF_PROPORTION}
