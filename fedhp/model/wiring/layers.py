"""Layers of one's own: what each does to the channels that it takes, told by a line from outside.

Such a layer is not looked into: it is one step of the forward pass, whatever it computes with. Its tensors
are of shape ``(batch, channels, ...)``, and it computes with the sizes that its tensors have, since its units
are cut like all others. Whether it takes fewer channels is tried; that its rule is right is the word of who
wrote it.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedhp.model.wiring.calls import Call, tensors
from fedhp.model.wiring.channels import FIXED
from fedhp.model.wiring.identities import Value
from fedhp.model.wiring.known import Rule, Wiring

WIRING: dict[type[nn.Module], Rule] = {}
"""The rule of each such layer, by its class; a subclass has one of its own."""


def keeps_channels(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    """Rule of a layer that works on every channel by itself.

    Each of its parameters has an entry, or a row, for every channel, or a single entry for all.
    """
    first, *others = _given(call)
    channels = wiring.along(call, first, 1)
    for other in others:
        wiring.channels.equate(channels, wiring.along(call, other, 1))
    for parameter in _layer(call).parameters():
        wiring.parameters.place_rows(call, parameter, channels)
    return [_made(wiring, call, tensor, channels) for tensor in tensors(result)]


def makes_channels(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    """Rule of a layer that makes new channels out of all that it takes.

    Its ``weight`` is of shape ``(made, taken, ...)``, and its ``bias``, where it has one, ``(made,)``.
    """
    layer, (maps, *_) = _layer(call), _given(call)
    told = replace(call, args=(maps, layer.weight, getattr(layer, "bias", None)), kwargs={})
    made = wiring.parameters.weighted(told, wiring.along(call, maps, 1), result.shape[1])
    return [_made(wiring, call, result, made)]


def mixes_channels(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    """Rule of a layer that needs all that it takes: neither that nor what it makes is ever cut."""
    wiring.fix(call.who, *map(wiring.known, _given(call)))
    for parameter in _layer(call).parameters():
        wiring.parameters.place_fixed(parameter)
    return [Value.alike(FIXED, tensor.shape, batched=True) for tensor in tensors(result)]


def _layer(call: Call) -> Any:
    assert call.layer is not None
    return call.layer


def _given(call: Call) -> list[torch.Tensor]:
    return tensors((call.args, call.kwargs))


def _made(wiring: Wiring, call: Call, tensor: torch.Tensor, channels: Any) -> Value:
    if tensor.dim() < 2 or tensor.shape[1] != len(channels):
        raise wiring.refuse(
            f"{call.who} has a rule by which it gives {len(channels)} channels, and gives a tensor of shape "
            f"{tuple(tensor.shape)[1:]} for each sample"
        )
    return Value.along(channels, 1, tensor.shape, batched=True)
