"""What units say while a module is trained, for criteria that look at activations."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fedhp.model.layout import Layout


class Taps:
    """Shows the activations of every group while a module is trained, at the layers that take them in.

    There they are final: normalised, rectified, pooled and flattened. A grouped convolution lies within its
    units, since it takes in only what is cut along with what it makes: they are shown where they leave it.

    Args:
        module: The module.
        layout: Its wiring.
        counts: Units per group that it holds.
        show: Called in every forward pass with a group and its activations, of shape
            ``(batch, units, entries)``, once per layer that takes them in.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        counts: Mapping[str, int],
        show: Callable[[str, torch.Tensor], None],
    ) -> None:
        self._layout, self._show = layout, show
        self.recount(counts)
        takers = [name for name in self._places if self._places[name]]
        self._handles = [
            module.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
                self._hook(name),
                prepend=True,  # all places of a map, of which some layers are given a part
            )
            for name in takers
        ]

    def recount(self, counts: Mapping[str, int]) -> None:
        """Follows a cut: from now on the module holds these units."""
        self._places = {
            name: [place for place in self._layout.places(name, counts) if place.axis == 1]
            for name in self._layout.trained
        }

    def close(self) -> None:
        """Leaves the module as it was."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def show(taker: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not torch.is_grad_enabled():
                return  # no step
            taken = inputs[0].detach()
            if isinstance(taker, nn.Linear):
                taken = taken.movedim(-1, 1)  # of maps, too, it takes the last axis
            for place in self._places[name]:
                size = place.num_units * place.span
                units = taken.narrow(1, place.start, size).reshape(len(taken), place.num_units, -1)
                self._show(place.group, units)

        return show
