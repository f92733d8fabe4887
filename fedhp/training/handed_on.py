"""What a training hands on from one epoch to the next: from it, it goes on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import TrainingError
from fedhp.model.kernels import kernels_of
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.training.method import ClientRun, Method, held_structure
from fedhp.training.recipe import Steps

_Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class HandedOn:
    """All that one epoch hands on to the next. Every other draw hangs on the seed and the epoch alone.

    Attributes:
        epochs: How many are done.
        model: The model so far; its scores are those that were known before the training.
        moments: By parameter, what its optimiser keeps for it, and methods with that.
        steps: Samples, factor of the learning rate and bytes of the last step.
        methods: Of each method, in the order in which they act, what it keeps besides.
    """

    epochs: int
    model: ModelState
    moments: Mapping[str, _Arrays]
    steps: tuple[int, float, int]
    methods: tuple[Mapping[str, Any], ...]

    def values(self) -> dict[str, Any]:
        """Returns it as a checkpoint takes it, every attribute by its name."""
        return {**vars(self), "model": self.model.values()}

    @staticmethod
    def of(values: Mapping[str, Any], layout: Layout) -> "HandedOn":
        """Reads `values`, of a model of this wiring.

        Raises:
            ValueError: If they are none.
        """
        model, (batch, factor, num_bytes) = ModelState.of(values["model"], layout), values["steps"]
        steps = int(batch), float(factor), int(num_bytes)
        moments, methods = dict(values["moments"]), tuple(map(dict, values["methods"]))
        for name, kept in moments.items():
            allowed = (layout.shape(name, model.structure.counts), ())
            if any(array.shape not in allowed for array in kept.values()):
                raise ValueError(f"what the optimiser keeps for {name} does not fit the structure")
        return HandedOn(int(values["epochs"]), model, moments, steps, methods)


def handed_on(run: ClientRun, epochs: int) -> HandedOn | None:
    """Returns what a training hands on after so many epochs; None where a method does not say what it keeps.

    Arrays are the ones in training: what must outlive the next step is to be copied.

    Raises:
        TrainingError: If a method keeps what no file of plain values and arrays can hold.
    """
    methods = tuple(kept for method in run.methods if (kept := _kept(method)) is not None)
    if len(methods) < len(run.methods):
        return None
    assigned, held = run.task.state, run.structure
    scores = {g: known[assigned.structure.positions(held, g)] for g, known in assigned.scores.items()}
    moments = {
        name: {key: kernels_of(kept).said(kept) for key, kept in run.optimizer.state[parameter].items()}
        for name, parameter in run.module.named_parameters()
    }
    steps = run.steps.batch, run.steps.lr_factor, run.steps.num_bytes
    model = ModelState(run.weights(), held_structure(run), scores)
    return HandedOn(epochs, model, moments, steps, methods)


def _kept(method: Method) -> Mapping[str, Any] | None:
    """Returns what a method keeps, NumPy's numbers as Python's.

    Raises:
        TrainingError: See `handed_on`.
    """
    kept = method.kept()
    try:
        if kept is not None and not isinstance(kept, Mapping):
            raise TypeError(f"{type(kept).__name__}, and not a mapping")
        return _plain(kept)
    except TypeError as error:
        raise TrainingError(
            f"kept() of client method {type(method).__name__} returns {error}; expected mappings by text, "
            f"lists, texts, numbers, None and NumPy's arrays of numbers"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.itemsize <= 8:
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if not isinstance(value, Mapping):
        of = f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
        raise TypeError(f"a value of type {type(value).__name__}{of}")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"the key {key!r}")
    return {key: _plain(one) for key, one in value.items()}


def _as_it_lies(array: Any, weights: Any) -> Any:
    """Returns an array of a parameter's shape in its order of memory: by that the fused update takes both."""
    if array.shape != weights.shape:
        return array
    laid = kernels_of(weights).copied(weights)
    laid[...] = array
    return laid


def take_up(run: ClientRun, before: HandedOn) -> Steps:
    """Lets a training, which has begun with its model, go on from what another one has handed on.

    Returns:
        The last steps of that one.

    Raises:
        TrainingError: If it is of another network, or other methods.
    """
    try:
        for name, parameter in run.module.named_parameters():
            kept = before.moments[name]
            arrays = {key: run.runtime.array(array.copy(), run.device) for key, array in kept.items()}
            laid = {key: _as_it_lies(array, parameter.data) for key, array in arrays.items()}
            run.optimizer.state[parameter].update(laid)
        for method, values in zip(run.methods, before.methods, strict=True):
            method.take_up(run, values)
    except (LookupError, TypeError, ValueError) as error:
        raise TrainingError(f"this training cannot go on from what another has handed on: {error}") from error
    batch, factor, num_bytes = before.steps
    return replace(run.steps, batch=batch, lr_factor=factor, num_bytes=num_bytes)
