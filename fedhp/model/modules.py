"""A torch module and its tensors: weights put in and taken out, sizes said anew after a cut.

Running statistics travel as `fedhp.model.running` says.
"""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from fedhp.model.batch_norms import batch_norms
from fedhp.model.layout import Layout
from fedhp.model.running import MEAN, SQUARE, named
from fedhp.model.structure import Structure
from fedhp.model.torch_kernels import lie_innermost


def put_weights(
    module: nn.Module,
    layout: Layout,
    weights: Mapping[str, NDArray[np.float32]],
    device: torch.device | str = "cpu",
) -> None:
    """Gives a module copies of these parameters and running statistics, of whatever shapes they are."""
    for name, _ in list(module.named_parameters()):
        set_parameter(module, name, torch.tensor(weights[name], device=device))
    lay_out(module, layout)
    for name, layer in batch_norms(module):
        mean, square = weights[named(name, MEAN)], weights[named(name, SQUARE)]
        layer.running_mean = torch.tensor(mean, device=device)
        layer.running_var = torch.tensor(np.maximum(square - mean * mean, 0), device=device)
        layer.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=device)


def rows_like(tensor: torch.Tensor, number: int) -> torch.Tensor:
    """Returns an empty tensor of so many rows, each of which lies in memory as a dense tensor does."""
    strides = tensor.numel(), *tensor.stride()
    return tensor.new_empty(number * tensor.numel()).as_strided((number, *tensor.shape), strides)


# Of each module, torch keeps dictionaries of what hangs on it.
_HANGING = [key for key, value in vars(nn.Module()).items() if isinstance(value, dict)]


def copy_of(module: nn.Module, parameters: Mapping[int, nn.Parameter]) -> nn.Module:
    """Returns a copy of a module of torch's own layers without hooks and buffers, quicker than it was built.

    Layers without parameters are common to both.

    Args:
        module: The module.
        parameters: What the copy has in the place of its parameters, by their ``id``.
    """
    if not (module._parameters or module._modules):
        return module  # there is nothing of which each needs its own
    copied, own = module.__new__(type(module)), vars(module).copy()
    for key in _HANGING:
        own[key] = own[key].copy()
    own["_parameters"] = {
        name: p if p is None else parameters[id(p)] for name, p in module._parameters.items()
    }
    own["_modules"] = {name: copy_of(part, parameters) for name, part in module.named_children()}
    vars(copied).update(own)
    return copied


def lay_out(module: nn.Module, layout: Layout) -> None:
    """Lays parameters out in memory, those that `lie_innermost` with their channels innermost."""
    for parameter in module.parameters():
        if lie_innermost(parameter, layout):
            # Said outright: where there is one channel, `contiguous` would leave the order open.
            laid = torch.empty_like(parameter, memory_format=torch.channels_last)
            parameter.data = laid.copy_(parameter.data)


def thin_before_convolutions(module: nn.Module, layout: Layout) -> None:
    """Gives layers that skip places, such as shortcuts, only the places that they look at.

    What they compute stays the same; torch 2.13's CPU kernel for their backward pass is not safe otherwise.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and _skips(layer) and lie_innermost(layer.weight, layout):
            layer.register_forward_pre_hook(_thinning(layer.stride))
            layer.stride = (1, 1)


def _skips(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.padding in ((0, 0), "valid")


def _thinning(stride: tuple[int, ...]) -> Callable[[nn.Module, tuple[torch.Tensor]], torch.Tensor]:
    rows, columns = stride
    return lambda layer, inputs: inputs[0][..., ::rows, ::columns]


def take_weights(module: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Returns a module's parameters and running statistics, as `put_weights` takes them."""
    parameters = module.named_parameters()
    weights = {name: np.ascontiguousarray(p.detach().cpu().numpy()) for name, p in parameters}
    for name, layer in batch_norms(module):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, variance = layer.running_mean.cpu().numpy(), layer.running_var.cpu().numpy()
        weights[named(name, MEAN)], weights[named(name, SQUARE)] = mean, variance + mean * mean
    return weights


def cut_statistics(module: nn.Module, layout: Layout, within: Structure, sub: Structure) -> None:
    """Cuts running statistics from ``within`` down to ``sub``, in place."""
    for name, layer in batch_norms(module):
        for _, positions in layout.indices(named(name, MEAN), within, sub):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            chosen = torch.from_numpy(positions).to(layer.running_mean.device)
            layer.running_mean, layer.running_var = layer.running_mean[chosen], layer.running_var[chosen]


def restate_sizes(module: nn.Module) -> None:
    """Makes layers say the sizes that their tensors have: some compute with what they say."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            _restate_convolution(layer)
        elif isinstance(layer, (_BatchNorm, _InstanceNorm)) and layer.weight is not None:
            layer.num_features = len(layer.weight)
        elif isinstance(layer, nn.GroupNorm):
            per_group = layer.num_channels // layer.num_groups
            layer.num_channels = len(layer.weight)
            layer.num_groups = layer.num_channels // per_group


def _restate_convolution(layer: nn.Conv1d | nn.Conv2d) -> None:
    outputs, inputs = layer.weight.shape[:2]
    if layer.groups > 1:  # only whole groups are cut
        layer.groups = outputs // (layer.out_channels // layer.groups)
    layer.out_channels, layer.in_channels = outputs, inputs * layer.groups


def settle(module: nn.Module, samples: torch.Tensor) -> None:
    """Gives lazy layers their sizes, by showing a network samples; all other networks stay as they are."""
    if any(isinstance(layer, LazyModuleMixin) for layer in module.modules()):
        training = module.training
        with torch.no_grad():
            module.eval()(samples)
        module.train(training)


def hollow(module: nn.Module) -> nn.Module:
    """Returns a copy of a module without its weights: parameters are on the ``meta`` device."""
    weights = {id(p): nn.Parameter(torch.empty(p.shape, device="meta")) for p in module.parameters()}
    return copy.deepcopy(module, dict(weights))


def fill(module: nn.Module) -> None:
    """Gives parameters without weights some on the CPU, of whatever values."""
    for name, parameter in list(module.named_parameters()):
        if parameter.is_meta:
            set_parameter(module, name, torch.empty(parameter.shape))


def resize(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives a module empty tensors of these shapes, on the device where they are."""
    for name, parameter in list(module.named_parameters()):
        set_parameter(module, name, torch.empty(shapes[name], device=parameter.device))
    for name, layer in batch_norms(module):
        shape = shapes[named(name, MEAN)]
        assert layer.running_mean is not None
        device = layer.running_mean.device
        layer.running_mean = torch.empty(shape, device=device)
        layer.running_var = torch.empty(shape, device=device)
    restate_sizes(module)


def set_parameter(module: nn.Module, name: str, value: torch.Tensor) -> nn.Parameter:
    """Makes a tensor a module's parameter, in the place of the one of this name, and returns it."""
    path, _, leaf = name.rpartition(".")
    parameter = nn.Parameter(value)
    setattr(module.get_submodule(path), leaf, parameter)
    return parameter
