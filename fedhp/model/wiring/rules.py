"""How channels pass through the functions of torch: what each does to the identities of its tensors.

Functions with weights make new channels out of those that they take. What works on every entry by itself
makes the channels of its tensors equal; what works over places leaves channels as they are; what only
rearranges does to identities what it does to entries. And what mixes channels (a softmax over them, a layer
normalisation) takes them as they are: they are never cut.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fedhp.errors import ScenarioError
from fedhp.model.networks.norms import ONE_VALUE
from fedhp.model.wiring.calls import Call, tensors
from fedhp.model.wiring.channels import FIXED, fixed
from fedhp.model.wiring.identities import Value, replaced
from fedhp.model.wiring.known import Rule, Wiring

_ENTRYWISE = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "tanhshrink", "logsigmoid", "hardshrink",
    "softshrink", "threshold", "rrelu", "dropout", "dropout1d", "dropout2d", "alpha_dropout",
    "feature_dropout", "feature_alpha_dropout", "add", "sub", "mul", "div", "true_divide", "floordiv",
    "floor_divide", "mod", "remainder", "neg", "negative", "abs", "absolute", "clamp", "clamp_min",
    "clamp_max", "clip", "minimum", "maximum", "pow", "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1",
    "log", "log1p", "log2", "erf", "sin", "cos", "sign", "round", "floor", "ceil", "lerp", "where", "addcmul",
    "gt", "lt", "ge", "le", "eq", "ne", "logical_not", "masked_fill", "nan_to_num", "contiguous", "clone",
    "detach", "data", "float", "double", "half", "bfloat16", "to", "type_as", "rand_like", "randn_like",
    "zeros_like", "ones_like", "empty_like", "full_like", "bernoulli", "normal", "uniform",
}  # fmt: skip
_POOLS = {f"{kind}_pool{axes}d" for axes in (1, 2) for kind in ("max", "avg", "lp")} | {
    f"adaptive_{kind}_pool{axes}d" for axes in (1, 2) for kind in ("max", "avg")
}
_OVER_PLACES = _POOLS | {"interpolate", "upsample"}
REARRANGES = {
    "flatten", "view", "reshape", "view_as", "reshape_as", "unflatten", "transpose", "swapaxes", "swapdims",
    "permute", "movedim", "moveaxis", "T", "mT", "t", "squeeze", "unsqueeze", "getitem", "select", "narrow",
    "chunk", "tensor_split", "split", "split_with_sizes", "unbind", "cat", "concat", "concatenate", "stack",
    "flip", "roll", "expand", "expand_as", "repeat", "tile", "repeat_interleave", "index_select", "unfold",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
}  # fmt: skip
_JOINS = {"cat", "concat", "concatenate"}
# Where a function says along which axes it mixes, and along which it does otherwise: None for all.
_MIXES: dict[str, tuple[int, Any]] = {
    **dict.fromkeys(("mean", "sum", "prod", "std", "var", "logsumexp", "cumsum", "softmax"), (1, None)),
    **dict.fromkeys(("log_softmax", "amax", "amin", "max", "min", "argmax", "argmin"), (1, None)),
    "norm": (2, None),
    "normalize": (2, 1),
    "local_response_norm": (9, 1),
}  # fmt: skip


def _linear(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    made = wiring.parameters.weighted(
        call, wiring.along(call, call.argument(0, "input"), -1), result.shape[-1]
    )
    return [Value.along(made, -1, result.shape, batched=True)]


def _convolution(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    maps, weight, groups = (
        call.argument(0, "input"),
        call.argument(1, "weight"),
        call.argument(6, "groups", 1),
    )
    if maps.dim() != weight.dim():
        raise _reaches(wiring, call, maps)
    taken = wiring.along(call, maps, 1)
    if groups == 1:
        made = wiring.parameters.weighted(call, taken, len(weight))
        return [Value.along(made, 1, result.shape, batched=True)]
    # Only a whole group can be cut: its inputs and its outputs are one unit.
    inputs = wiring.channels.equate_blocks(taken, groups)
    made = wiring.parameters.weighted(call, fixed(weight.shape[1]), len(weight))
    wiring.channels.equate(inputs, wiring.channels.equate_blocks(made, groups))
    return [Value.along(made, 1, result.shape, batched=True)]


def _reaches(wiring: Wiring, call: Call, tensor: torch.Tensor) -> ScenarioError:
    """Returns the error for what would take channels for places."""
    return wiring.refuse(f"{call.who}, given {tensor.dim()} axes, reaches into the channels")


def _batch_norm(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    channels = wiring.along(call, call.argument(0, "input"), 1)
    wiring.parameters.scaled(call, channels, [(3, "weight"), (4, "bias")])
    wiring.parameters.counted(call, channels)
    return [Value.along(channels, 1, result.shape, batched=True)]


def _group_norm(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    if call.argument(2, "weight") is None:
        raise wiring.unknown(call.who)  # a cut could not tell its groups
    if result[0].numel() == call.argument(1, "num_groups"):
        raise wiring.refuse(f"{call.who} {ONE_VALUE}")
    channels = wiring.along(call, call.argument(0, "input"), 1)
    wiring.channels.equate_blocks(channels, call.argument(1, "num_groups"))
    wiring.parameters.scaled(call, channels, [(2, "weight"), (3, "bias")])
    return [Value.along(channels, 1, result.shape, batched=True)]


def _layer_norm(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    wiring.parameters.place_fixed(call.argument(2, "weight"))
    wiring.parameters.place_fixed(call.argument(3, "bias"))
    return _mixed(wiring, call, result, range(-len(call.argument(1, "normalized_shape")), 0))


def _prelu(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    channels = wiring.along(call, call.argument(0, "input"), 1)
    wiring.parameters.place_slopes(call.argument(1, "weight"), channels)
    return [Value.along(channels, 1, result.shape, batched=True)]


def _over_places(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    maps = call.argument(0, "input")
    wanted = next((axes for end, axes in (("1d", 3), ("2d", 4)) if call.name.endswith(end)), maps.dim())
    if maps.dim() != wanted:
        raise _reaches(wiring, call, maps)
    channels = wiring.along(call, maps, 1)
    return [Value.along(channels, 1, made.shape, batched=True) for made in tensors(result)]


def _pad(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    maps, pads = call.argument(0, "input"), list(call.argument(1, "pad"))
    value = wiring.known(maps)
    first = maps.dim() - len(pads) // 2
    changed = [axis for axis in range(first, maps.dim()) if value.changes(axis)]
    if changed and call.argument(2, "mode", "constant") != "constant":
        wiring.fix(call.who, value)
    for axis in range(first, maps.dim()):
        at = 2 * (maps.dim() - 1 - axis)
        if axis not in changed:
            pads[at : at + 2] = [0, 0]  # places, which are as many as they are
    ids = functional.pad(value.ids, pads, value=FIXED)
    return [Value(tuple(result.shape), ids, value.batched)]


def _mixing(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    place, otherwise = _MIXES[call.name]
    axes = call.argument(place, "dim", call.kwargs.get("axis", otherwise))
    if isinstance(axes, torch.Tensor):  # the larger of two tensors
        return _entrywise(wiring, call, result)
    if axes is None or isinstance(axes, bool):
        axes = range(call.argument(0, "input").dim())
    return _mixed(wiring, call, result, [axes] if isinstance(axes, int) else axes)


def _mixed(wiring: Wiring, call: Call, result: Any, axes: Sequence[int]) -> list[Value | None]:
    """Passes a value through what mixes its entries along some axes, and may reduce them to one."""
    tensor = call.argument(0, "input")
    value = wiring.known(tensor)
    places = {axis % tensor.dim() for axis in axes}
    if any(value.changes(axis) for axis in places):
        wiring.fix(call.who, value)
    ids = value.ids
    for axis in sorted(places, reverse=True):
        ids = ids.narrow(axis, 0, 1)
    gone = [axis for axis in range(tensor.dim()) if axis not in places]
    out = []
    for made in tensors(result):
        kept = ids if made.dim() == tensor.dim() else ids.reshape([ids.shape[axis] for axis in gone])
        out.append(Value(tuple(made.shape), kept, value.batched))
    return out


def _entrywise(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    made = result
    values = []
    for tensor in tensors((call.args, call.kwargs)):
        value = wiring.known(tensor)
        if not value.neutral:
            values.append(value.aligned(made.dim()))
    if not values:
        return [Value.alike(FIXED, made.shape, batched=False, neutral=True)]
    widest = max(values, key=lambda value: value.ids.numel())
    for value in values:
        if value is not widest:
            _join(wiring, call, widest, value)
    batched = any(value.batched for value in values)
    return [Value(tuple(made.shape), widest.ids, batched)]


def _join(wiring: Wiring, call: Call, widest: Value, other: Value) -> None:
    """Makes the channels of two tensors equal, except where one is stretched over the other's channels."""
    axes = range(len(widest.shape))
    if any(widest.changes(axis) and other.shape[axis] == 1 for axis in axes):
        wiring.fix(call.who, other)
    else:
        one, two = torch.broadcast_tensors(widest.ids, other.ids)
        pairs = np.unique(np.stack([one.numpy().ravel(), two.numpy().ravel()]), axis=1)
        wiring.channels.equate(*pairs)


def _glu(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    maps = call.argument(0, "input")
    value = wiring.known(maps)
    axis = call.argument(1, "dim", -1)
    one, gate = value.full.chunk(2, axis)
    halves = [Value.of(half, value.batched) for half in (one, gate)]
    _join(wiring, call, *halves)
    return [halves[0]]


def _rearranged(wiring: Wiring, call: Call, result: Any) -> list[Value | None]:
    given = tensors((call.args, call.kwargs))
    values = {id(tensor): wiring.value(tensor) for tensor in given}
    known = {key: value for key, value in values.items() if value is not None}
    wiring.views_maps |= call.name == "view" and given[0].dim() > 3
    rearranged = rearrange(call, {key: value.full for key, value in known.items()})
    batched = any(value.batched for value in known.values())
    return [Value.of(ids, batched) for ids in tensors(rearranged)]


def rearrange(call: Call, ids: dict[int, torch.Tensor]) -> Any:
    """Does to identities what a call does to entries.

    Args:
        call: The call of a function in `REARRANGES`.
        ids: The identities of the tensors that it takes, by the tensors' ``id``.
    """
    if call.name in _JOINS:  # what is joined that is no feature map is never cut
        constants = tensors((call.args, call.kwargs))
        ids = {id(one): torch.full((), FIXED).expand(one.shape) for one in constants} | ids
    args, kwargs = replaced(call.args, ids), replaced(call.kwargs, ids)
    if call.name in _JOINS:
        axis = call.argument(1, "dim", 0)
        return _joined(list(args[0] if args else kwargs["tensors"]), axis)
    if call.name == "view":
        return torch.Tensor.reshape(*args, **kwargs)
    return call.function(*args, **kwargs)


def _joined(parts: list[torch.Tensor], axis: int) -> torch.Tensor:
    """Concatenates identities; those of feature maps, which are many, by one place of each."""
    shape = list(parts[0].shape)
    for other in range(len(shape)):
        if other != axis % len(shape) and all(part.stride(other) == 0 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts]
    joined = torch.cat(parts, axis)
    shape[axis] = joined.shape[axis]
    return joined.expand(shape)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "prelu": _prelu,
    "pad": _pad,
    "glu": _glu,
    **dict.fromkeys(_OVER_PLACES, _over_places),
    **dict.fromkeys(_MIXES, _mixing),
    **dict.fromkeys(_ENTRYWISE, _entrywise),
    **dict.fromkeys(REARRANGES, _rearranged),
}
