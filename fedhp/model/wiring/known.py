"""What a forward pass shows of a network's channels, and what its layers say of them.

`fedhp.model.wiring.rules` tells what each function does; here is what they have in common.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from fedhp.errors import ScenarioError
from fedhp.model.wiring.calls import Call, Kind, reads_numbers, tensors
from fedhp.model.wiring.channels import FIXED, Identities, fixed
from fedhp.model.wiring.identities import Channels, Value
from fedhp.model.wiring.parameters import ParameterAxes

_ALIKE = {
    "zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty",
}  # fmt: skip
_KNOWN = (
    "Known are linear layers, 1-d and 2-d convolutions, normalisations, pooling, activations and arithmetic "
    "of every entry by itself, dropout, what only rearranges (flatten, slices, concatenation and the like), "
    "and means, sums and maxima; a layer of your own can be given a rule (fedhp.model.wiring.WIRING)"
)


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a forward pass, with the identities of the tensors that it took and made.

    Attributes:
        name: The function.
        who: Who called it, for people.
        takes: Of every tensor among its arguments; None where nothing is known of it.
        gives: Of every tensor that it returned; None likewise.
    """

    name: str
    who: str
    takes: list[Value | None]
    gives: list[Value | None]


@dataclass
class Wiring:
    """All that a network's forward pass shows of its channels.

    Attributes:
        module: The network.
        rules: What functions, by name, and layers, by class, do to the channels of what they take.
        refuse: Makes the error for a cause.
        batch: The number of samples.
        channels: The identities of all channels.
        parameters: What is known of the parameters' axes.
        steps: The calls, in order.
        held: Why some channels are never cut, in words.
        views_maps: Whether feature maps are rearranged by ``view``.
    """

    module: nn.Module
    rules: Mapping[Kind, "Rule"]
    refuse: Callable[[str], ScenarioError]
    batch: int
    channels: Identities = field(default_factory=Identities)
    steps: list[Step] = field(default_factory=list)
    held: dict[str, None] = field(default_factory=dict)
    views_maps: bool = False

    def __post_init__(self) -> None:
        self._values: Any = WeakIdKeyDictionary()
        self.parameters = ParameterAxes(self.module, self.channels, self.refuse)

    def begin(self, samples: torch.Tensor) -> None:
        """Says that these are the samples, whose channels are never cut."""
        self._values[samples] = Value.alike(FIXED, samples.shape, batched=True)

    def value(self, tensor: torch.Tensor) -> Value | None:
        """Returns what is known of a tensor; None of constants."""
        if tensor not in self._values and tensor in self.parameters:
            self._values[tensor] = self.parameters.outside(tensor)
        return self._values.get(tensor)

    def known(self, tensor: torch.Tensor) -> Value:
        """Returns a tensor's value; that of a constant is of channels that are never cut."""
        return self.value(tensor) or Value.alike(FIXED, tensor.shape, batched=False)

    def watch(self, call: Call, result: Any) -> None:
        """Takes notice of a call."""
        given, made = tensors((call.args, call.kwargs)), tensors(result)
        gives: list[Value | None] = [None] * len(made)
        if call.name in _ALIKE:
            gives = [Value.alike(FIXED, tensor.shape, False, neutral=True) for tensor in made]
        elif any(tensor in self._values or tensor in self.parameters for tensor in given):
            gives = list(self._through(call, result, given, made))
        for tensor, value in zip(made, gives, strict=True):
            if value is not None:
                self._check_batch(call, value)
                self._values[tensor] = value
        self.steps.append(Step(call.name, call.who, [self._values.get(t) for t in given], gives))

    def fix(self, who: str, *values: Value | None) -> bool:
        """Makes all channels of these values ones that are never cut, for somebody mixes them.

        Returns:
            Whether any could be cut before.
        """
        found = [value.channels.ravel() for value in values if value is not None]
        roots = self.channels.roots(np.concatenate(found)) if found else fixed(0)
        if roots.any():
            self.channels.fix(roots)
            self.held[f"{who} mixes them"] = None
        return bool(roots.any())

    def _through(
        self, call: Call, result: Any, given: list[torch.Tensor], made: list[torch.Tensor]
    ) -> Sequence[Value | None]:
        values = [self._values[tensor] for tensor in given if tensor in self._values]
        of_samples = any(value.batched for value in values)
        if reads_numbers(call) and any(value.batched or value.neutral for value in values):
            raise self.refuse(
                f"{call.who} reads a number off the samples or off chance, as control flow does: a forward "
                "pass must take the same steps whatever they are"
            )
        if not made and result is not None:
            return []  # a question, such as for the shape
        if call.kind not in self.rules:
            raise (
                self.unknown(call.who)
                if of_samples
                else self.refuse(f"{call.who} computes its weight from others")
            )
        return self.rules[call.kind](self, call, result)

    def unknown(self, who: str) -> ScenarioError:
        """Returns the error for what is not known to keep channels apart."""
        return self.refuse(f"{who} is not known to keep channels apart. {_KNOWN}")

    def _check_batch(self, call: Call, value: Value) -> None:
        if value.batched and value.shape and value.shape[0] != self.batch:
            raise self.refuse(f"{call.who} mixes the samples of a batch")

    def along(self, call: Call, tensor: torch.Tensor, axis: int) -> Channels:
        """Returns the channels along the axis of a tensor that a layer takes for them."""
        value = self.known(tensor)
        others = [
            other for other in range(tensor.dim()) if other != axis % tensor.dim() and value.changes(other)
        ]
        if others:
            self.fix(call.who, value)
        first = value.ids.movedim(axis, 0).flatten(1)[:, 0] if tensor.dim() > 1 else value.ids
        return first.expand(tensor.shape[axis]).numpy()


Rule = Callable[[Wiring, Call, Any], Sequence[Value | None]]
"""From a call and its result to what is known of the tensors that it returned."""
