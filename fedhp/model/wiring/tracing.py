"""From any network of usual layers to its `Layout`: which channels must live and die together.

The network runs once, watched, with an identity for every channel (`fedhp.model.wiring.rules`). Layers with
weights make new ones; an addition, a depthwise or grouped convolution and a group normalisation make some
equal; a concatenation lines them up; a flatten repeats them. What ends up equal is one unit, and units that
appear in the same places are one group. Then it runs again with units cut out (`fedhp.model.wiring.trying`):
who does not do to the units that are left what was done to all of them mixes channels, and those are never
cut. What is not known is refused by name: a guess would cut the wrong weights.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from fedhp.errors import ScenarioError
from fedhp.model.axes import Axis
from fedhp.model.batch_norms import statistics_names
from fedhp.model.layout import Layout, no_units
from fedhp.model.modules import hollow
from fedhp.model.scaler import has_scalers
from fedhp.model.wiring.calls import forward
from fedhp.model.wiring.channels import fixed
from fedhp.model.wiring.identities import Channels
from fedhp.model.wiring.known import Wiring
from fedhp.model.wiring.layers import WIRING
from fedhp.model.wiring.rules import RULES
from fedhp.model.wiring.trying import SAMPLES, blamed

# Layers that are known to mix what they take, whatever it is.
_MIXERS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Transformer, _ConvTransposeNd, nn.Conv3d)
# What cross-entropy does by itself, and trains badly after.
_SQUASHING = ("softmax", "sigmoid")


def trace(module: nn.Module, input_shape: Sequence[int], num_classes: int, floor: int, said: str) -> Layout:
    """Returns the layout of a network.

    Args:
        module: The network, on the CPU and with weights, in training mode; its weights stay as they are, its
            running statistics do not.
        input_shape: The shape of one sample, channels first.
        num_classes: Width of the output, which is never cut.
        floor: Units that every group keeps at least.
        said: How the user named the network, for errors.

    Raises:
        ScenarioError: If the network does something that is not known to keep channels apart, or does not map
            such samples to that many classes; the message names the layer.
    """
    return _Tracer(module, tuple(input_shape), num_classes, floor, said).layout()


class _Tracer:
    """From a network to its layout."""

    def __init__(
        self, module: nn.Module, input_shape: tuple[int, ...], num_classes: int, floor: int, said: str
    ) -> None:
        self._module, self._input_shape, self._said = module, input_shape, said
        self._num_classes, self._floor = num_classes, floor
        self._wiring = Wiring(module, {**RULES, **WIRING}, self._refusal, SAMPLES)

    def layout(self) -> Layout:
        """Runs the network, and returns the layout that it has shown."""
        self._check_parameters()
        self._run()
        statistics = statistics_names(self._module)
        shapes = {name: tuple(p.shape) for name, p in self._module.named_parameters()}
        used = {*self._wiring.parameters.axes, *self._wiring.parameters.own}
        shapes |= {name: (len(self._wiring.parameters.axes[name][0]),) for name in statistics if name in used}
        if unused := [name for name in [*shapes, *statistics] if name not in used]:
            raise self._refusal(f"'{unused[0]}' belongs to no layer that its forward pass uses")
        hollowed = hollow(self._module)
        while True:
            layout = self._settled(shapes, frozenset(statistics))
            culprit = blamed(
                hollowed, layout, self._groups, self._wiring.steps, self._input_shape, self._said
            )
            if culprit is None:
                return layout
            if not self._wiring.fix(culprit.who, *culprit.takes, *culprit.gives):
                raise self._wiring.unknown(culprit.who)

    def _run(self) -> None:
        samples = torch.zeros(SAMPLES, *self._input_shape)
        self._wiring.begin(samples)
        result = forward(self._module, WIRING, samples, self._wiring.watch, self._said)
        value = self._wiring.value(result) if isinstance(result, torch.Tensor) else None
        if value is None or value.shape != (SAMPLES, self._num_classes):
            raise ScenarioError(
                f"{self._said} must return one logit per class, {self._num_classes}, for each sample, and "
                f"returns {tuple(result.shape)[1:] if isinstance(result, torch.Tensor) else 'no tensor'}"
            )
        last = next(step for step in reversed(self._wiring.steps) if value in step.gives)
        if last.name in _SQUASHING:
            raise self._refusal(
                f"{last.who} at its end trains badly: the loss takes logits and does the softmax itself. "
                "Leave it away, and apply it to what the trained model returns"
            )
        self._wiring.channels.fix(value.channels)

    def _check_parameters(self) -> None:
        for name, layer in self._module.named_modules():
            if isinstance(layer, _MIXERS) and type(layer) not in WIRING:
                raise self._wiring.unknown(f"layer '{name}' ({type(layer).__name__})")
        if frozen := [name for name, p in self._module.named_parameters() if not p.requires_grad]:
            raise self._refusal(f"'{frozen[0]}' is frozen (requires_grad is False), and all would be trained")
        # A layer that is used under two names is one; a parameter of two layers would be parted by a cut.
        parameters = [
            p for layer in self._module.modules() for p in layer._parameters.values() if p is not None
        ]
        if len({id(parameter) for parameter in parameters}) < len(parameters):
            raise self._refusal("a parameter belongs to two layers")

    def _settled(self, shapes: dict[str, tuple[int, ...]], buffers: frozenset[str]) -> Layout:
        """Returns the layout as far as is known, once no axis has units in an order of its own."""
        wiring = self._wiring
        while True:
            placed = wiring.parameters.axes | {name: self._own_axes(name) for name in wiring.parameters.own}
            self._groups = wiring.channels.groups()
            runs = {name: [self._groups.run(axis) for axis in placed[name]] for name in shapes}
            disordered = [(name, at) for name in shapes for at, run in enumerate(runs[name]) if run is None]
            if not disordered:
                break
            name, at = disordered[0]
            wiring.channels.fix(placed[name][at])
            wiring.held[f"'{name}' takes them in another order"] = None
        widths = self._groups.widths
        if not widths:
            why = f" ({', '.join(wiring.held)})" if wiring.held else ""
            raise no_units(self._said, why)
        axes: dict[str, list[Axis]] = {name: [run or () for run in found] for name, found in runs.items()}
        floors = {group: min(self._floor, width) for group, width in widths.items()}
        over_batches = any(isinstance(layer, _BatchNorm) for layer in self._module.modules())
        slopes = frozenset(wiring.parameters.slopes)
        return Layout(
            widths,
            shapes,
            axes,
            floors,
            buffers,
            wiring.views_maps,
            over_batches,
            slopes,
            static=has_scalers(self._module),
        )

    def _own_axes(self, name: str) -> list[Channels]:
        """Returns the axes of a parameter that is used outside of a layer: cut along the first, or not."""
        if name in self._wiring.parameters.axes:
            raise self._refusal(f"'{name}' is used in a layer and outside")
        channels, value = self._wiring.channels, self._wiring.parameters.own[name]
        if not value.shape:
            return []
        rows = channels.roots(value.channels).reshape(value.channels.shape[0], -1)
        if (rows != rows[:, :1]).any():
            channels.fix(rows)
        first = np.broadcast_to(channels.roots(rows[:, 0]), value.shape[0])
        return [first, *map(fixed, value.shape[1:])]

    def _refusal(self, cause: str) -> ScenarioError:
        return ScenarioError(f"{self._said} cannot be pruned: {cause}")
