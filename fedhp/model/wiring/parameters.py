"""Which channels lie along the axes of a network's parameters, as its layers use them."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.batch_norms import batch_norms, statistics_names
from fedhp.model.wiring.calls import Call
from fedhp.model.wiring.channels import FIXED, Identities, fixed
from fedhp.model.wiring.identities import Channels, Value

_MOST_OWN = 100_000  # entries of a parameter of one's own, beyond which none is told from another


class ParameterAxes:
    """What is known of the channels along the axes of a network's parameters and running statistics.

    Args:
        module: The network.
        channels: The identities of all channels.
        refuse: Makes the error for a cause.

    Attributes:
        axes: Of each parameter that a layer uses, the identities along its axes.
        own: The identities of parameters that are used outside of layers.
        slopes: The parameters that are slopes of an activation.
    """

    def __init__(
        self, module: nn.Module, channels: Identities, refuse: Callable[[str], ScenarioError]
    ) -> None:
        self.axes: dict[str, list[Channels]] = {}
        self.own: dict[str, Value] = {}
        self.slopes: set[str] = set()
        self._channels, self._refuse = channels, refuse
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        names = statistics_names(module)
        means = [layer.running_mean for _, layer in batch_norms(module)]
        self._statistics = {id(mean): names[2 * n : 2 * n + 2] for n, mean in enumerate(means)}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._names

    def outside(self, parameter: torch.Tensor) -> Value:
        """Returns the value of a parameter that is used outside of layers."""
        name = self._names[id(parameter)]
        if parameter.numel() > _MOST_OWN:
            self.own[name] = Value.alike(FIXED, parameter.shape, batched=False)
        else:
            ids = torch.from_numpy(self._channels.new(name, parameter.numel())).view(parameter.shape)
            self.own[name] = Value(tuple(parameter.shape), ids, batched=False)
        return self.own[name]

    def weighted(self, call: Call, taken: Channels, num_made: int) -> Channels:
        """Returns the channels that a layer makes with its weights of those that it takes."""
        weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
        names = [self._names.get(id(tensor)) for tensor in (weight, bias) if tensor is not None]
        if None in names:
            raise self._refuse(f"{call.who} computes its weight from others")
        if tuple(weight.shape[:2]) != (num_made, len(taken)):
            raise self._refuse(
                f"{call.who} is said to make {num_made} channels of {len(taken)} by its weight, whose shape "
                f"must then begin with ({num_made}, {len(taken)}), and is {tuple(weight.shape)}"
            )
        path = str(names[0]).removesuffix(".weight")
        known = self.axes.get(str(names[0]))
        made = self._channels.new(path, num_made) if known is None else known[0]
        self._place(str(names[0]), [made, taken, *(fixed(size) for size in weight.shape[2:])])
        for name in names[1:]:
            self._place(str(name), [made])
        return made

    def scaled(self, call: Call, channels: Channels, places: Sequence[tuple[int, str]]) -> None:
        """Says that these arguments of a normalisation have one entry for every channel."""
        for tensor in (call.argument(*place) for place in places):
            if tensor is not None and id(tensor) not in self._names:
                raise self._refuse(f"{call.who} scales by what is no parameter")
            if tensor is not None:
                self._place(self._names[id(tensor)], [channels])

    def counted(self, call: Call, channels: Channels) -> None:
        """Says that the running statistics of a batch normalisation have one entry for every channel."""
        mean = call.argument(1, "running_mean")
        if mean is not None and id(mean) not in self._statistics:
            raise self._refuse(f"{call.who} keeps running statistics, as only a batch normalisation may")
        for name in self._statistics.get(id(mean), []):
            self._place(name, [channels])

    def place_fixed(self, tensor: torch.Tensor | None) -> None:
        """Says that a parameter is never cut."""
        if tensor is not None and id(tensor) in self._names:
            self._place(self._names[id(tensor)], [fixed(size) for size in tensor.shape])

    def place_rows(self, call: Call, parameter: torch.Tensor, channels: Channels) -> None:
        """Says that a layer's parameter holds an entry or a row for every channel, or one entry for all."""
        if parameter.numel() == 1:
            self.place_fixed(parameter)
        elif len(parameter) != len(channels):
            raise self._refuse(
                f"{call.who} has a rule by which its parameters have a row for every channel, and "
                f"'{self._names[id(parameter)]}' has {len(parameter)} for {len(channels)} channels"
            )
        else:
            rows = [channels, *(fixed(size) for size in parameter.shape[1:])]
            self._place(self._names[id(parameter)], rows)

    def place_slopes(self, tensor: torch.Tensor, channels: Channels) -> None:
        """Says that a parameter holds one slope for every channel, or one for all."""
        name = self._names.get(id(tensor))
        if name is None:
            raise self._refuse("'prelu' has slopes that are no parameter")
        self._place(name, [channels if tensor.numel() > 1 else fixed(1)])
        self.slopes.add(name)

    def _place(self, name: str, axes: list[Channels]) -> None:
        """Says what a parameter's axes are; a layer that is used twice has the same both times."""
        for known, axis in zip(self.axes.setdefault(name, axes), axes, strict=True):
            self._channels.equate(known, axis)
