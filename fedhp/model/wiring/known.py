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
from fedhp.model.modules import batch_norms, statistics_names
from fedhp.model.wiring.calls import Call, Kind, reads_numbers, tensors
from fedhp.model.wiring.channels import FIXED, Channels, Identities, fixed
from fedhp.model.wiring.identities import Value

_MOST_OWN = 100_000  # entries of a parameter of one's own, beyond which none is told from another
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
        axes: Of each parameter that a layer uses, the identities along its axes.
        own: The identities of parameters that are used outside of layers.
        slopes: The parameters that are slopes of an activation.
        steps: The calls, in order.
        held: Why some channels are never cut, in words.
        views_maps: Whether feature maps are rearranged by ``view``.
    """

    module: nn.Module
    rules: Mapping[Kind, "Rule"]
    refuse: Callable[[str], ScenarioError]
    batch: int
    channels: Identities = field(default_factory=Identities)
    axes: dict[str, list[Channels]] = field(default_factory=dict)
    own: dict[str, Value] = field(default_factory=dict)
    slopes: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    held: dict[str, None] = field(default_factory=dict)
    views_maps: bool = False

    def __post_init__(self) -> None:
        self._values: Any = WeakIdKeyDictionary()
        self._parameters = {id(parameter): name for name, parameter in self.module.named_parameters()}
        names = statistics_names(self.module)
        means = [layer.running_mean for _, layer in batch_norms(self.module)]
        self._statistics = {id(mean): names[2 * n : 2 * n + 2] for n, mean in enumerate(means)}

    def begin(self, samples: torch.Tensor) -> None:
        """Says that these are the samples, whose channels are never cut."""
        self._values[samples] = Value.alike(FIXED, samples.shape, batched=True)

    def value(self, tensor: torch.Tensor) -> Value | None:
        """Returns what is known of a tensor; None of constants."""
        if tensor not in self._values and id(tensor) in self._parameters:
            self._values[tensor] = self._own(self._parameters[id(tensor)], tensor)
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
        elif any(tensor in self._values or id(tensor) in self._parameters for tensor in given):
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

    def _own(self, name: str, parameter: torch.Tensor) -> Value:
        if parameter.numel() > _MOST_OWN:
            self.own[name] = Value.alike(FIXED, parameter.shape, batched=False)
        else:
            ids = torch.from_numpy(self.channels.new(name, parameter.numel())).view(parameter.shape)
            self.own[name] = Value(tuple(parameter.shape), ids, batched=False)
        return self.own[name]

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

    def weighted(self, call: Call, taken: Channels, num_made: int) -> Channels:
        """Returns the channels that a layer makes with its weights of those that it takes."""
        weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
        names = [self._parameters.get(id(tensor)) for tensor in (weight, bias) if tensor is not None]
        if None in names:
            raise self.refuse(f"{call.who} computes its weight from others")
        path = str(names[0]).removesuffix(".weight")
        known = self.axes.get(str(names[0]))
        made = self.channels.new(path, num_made) if known is None else known[0]
        self._place(str(names[0]), [made, taken, *(fixed(size) for size in weight.shape[2:])])
        for name in names[1:]:
            self._place(str(name), [made])
        return made

    def scaled(self, call: Call, channels: Channels, places: Sequence[tuple[int, str]]) -> None:
        """Says that these arguments of a normalisation have one entry for every channel."""
        for tensor in (call.argument(*place) for place in places):
            if tensor is not None and id(tensor) not in self._parameters:
                raise self.refuse(f"{call.who} scales by what is no parameter")
            if tensor is not None:
                self._place(self._parameters[id(tensor)], [channels])

    def counted(self, call: Call, channels: Channels) -> None:
        """Says that the running statistics of a batch normalisation have one entry for every channel."""
        mean = call.argument(1, "running_mean")
        if mean is not None and id(mean) not in self._statistics:
            raise self.refuse(f"{call.who} keeps running statistics, as only a batch normalisation may")
        for name in self._statistics.get(id(mean), []):
            self._place(name, [channels])

    def _place(self, name: str, axes: list[Channels]) -> None:
        """Says what a parameter's axes are; a layer that is used twice has the same both times."""
        for known, axis in zip(self.axes.setdefault(name, axes), axes, strict=True):
            self.channels.equate(known, axis)

    def place_fixed(self, tensor: torch.Tensor | None) -> None:
        """Says that a parameter is never cut."""
        if tensor is not None and id(tensor) in self._parameters:
            self._place(self._parameters[id(tensor)], [fixed(size) for size in tensor.shape])

    def place_rows(self, call: Call, parameter: torch.Tensor, channels: Channels) -> None:
        """Says that a layer's parameter holds an entry or a row for every channel, or one entry for all."""
        if parameter.numel() == 1:
            self.place_fixed(parameter)
        elif len(parameter) != len(channels):
            raise self.refuse(
                f"{call.who} has a rule by which its parameters have a row for every channel, and "
                f"'{self._parameters[id(parameter)]}' has {len(parameter)} for {len(channels)} channels"
            )
        else:
            rows = [channels, *(fixed(size) for size in parameter.shape[1:])]
            self._place(self._parameters[id(parameter)], rows)

    def place_slopes(self, tensor: torch.Tensor, channels: Channels) -> None:
        """Says that a parameter holds one slope for every channel, or one for all."""
        name = self._parameters.get(id(tensor))
        if name is None:
            raise self.refuse("'prelu' has slopes that are no parameter")
        self._place(name, [channels if tensor.numel() > 1 else fixed(1)])
        self.slopes.add(name)


Rule = Callable[[Wiring, Call, Any], Sequence[Value | None]]
"""From a call and its result to what is known of the tensors that it returned."""
