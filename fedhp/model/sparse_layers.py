"""Layers that hold a part of their weights: the values, and where in the dense weight each stands.

Nothing dense is there but while its layer is computed, in either direction, and of a dense layer no more than
a block of its rows at a time: first of the weight, then of its gradient, of which the layer takes the entries
of its own weights and shows the rest to whoever looks for places to grow at.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.stored import BLOCK, FEWEST_BLOCKS, POSITIONS
from fedhp.model.structure import Structure


class Search(Protocol):
    """Looks for places to grow at, while the gradient of a layer's dense weight passes by."""

    def offer(self, gradient: torch.Tensor, taken: torch.Tensor, start: int) -> None:
        """Shows a block of the gradient, flat, which may be overwritten.

        Args:
            gradient: The block.
            taken: The positions in it that have weights.
            start: Where in the flat dense weight it begins.
        """
        ...

    def end(self) -> None:
        """Has seen the last."""
        ...


class Block(NamedTuple):
    """Some rows of a dense weight: which, which of the layer's values they hold, and where they begin."""

    rows: slice
    values: slice
    start: int


class _Sparse(nn.Module):
    """What such layers have in common.

    Attributes:
        weight_positions: Where in its block each value stands, of shape ``(nnz,)`` as ``weight`` has.
        dense_shape: The shape of the dense weight.
        block_rows: How many of its rows are there at a time.
        ends: How many values stand in blocks up to each.
        search: Looks at the gradient in the next backward pass; None for nobody.
    """

    weight_positions: torch.Tensor
    dense_shape: tuple[int, ...]
    block_rows: int
    ends: list[int]
    search: Search | None

    @property
    def weight_size(self) -> int:
        """The number of entries of the dense weight."""
        return math.prod(self.dense_shape)

    @property
    def block_size(self) -> int:
        """The number of entries of a block."""
        return self.block_rows * math.prod(self.dense_shape[1:])

    def blocks(self) -> Iterator[Block]:
        """Yields the blocks of the dense weight."""
        first = 0
        for place, end in enumerate(self.ends):
            row = place * self.block_rows
            rows = slice(row, min(row + self.block_rows, self.dense_shape[0]))
            yield Block(rows, slice(first, end), place * self.block_size)
            first = end

    def place(self, positions: torch.Tensor) -> None:
        """Takes positions in the whole dense weight, int32, strictly increasing, one per value."""
        bounds = torch.arange(self.block_size, self.weight_size, self.block_size, dtype=torch.int32)
        ends = torch.searchsorted(positions, bounds.to(positions.device)).tolist()
        self.ends = [*ends, len(positions)]
        self.weight_positions = positions.remainder_(self.block_size)

    def places(self) -> torch.Tensor:
        """Returns `place`'s positions, anew."""
        positions = self.weight_positions.clone()
        for block in self.blocks():
            positions[block.values] += block.start
        return positions

    def dense(self, values: torch.Tensor, block: Block) -> torch.Tensor:
        """Makes a block of the dense weight."""
        shape = (block.rows.stop - block.rows.start, *self.dense_shape[1:])
        flat = values.new_zeros(math.prod(shape))
        return flat.index_add_(0, self.weight_positions[block.values], values[block.values]).view(shape)

    def take(self, dense: torch.Tensor, block: Block, into: torch.Tensor) -> None:
        """Takes the values' gradient out of that of a block, and then shows it to who looks."""
        flat, positions = dense.reshape(-1), self.weight_positions[block.values]
        torch.index_select(flat, 0, positions, out=into[block.values])
        if self.search is not None:
            self.search.offer(flat, positions, block.start)

    def end_search(self) -> None:
        """Has it look at this backward pass, and at no other."""
        if self.search is not None:
            self.search.end()
        self.search = None


class SparseLinear(_Sparse, nn.Linear):
    """A dense layer with a part of its weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Computes as any dense layer whose other weights are 0."""
        if input.dim() == 2:
            return _Linear.apply(input, self.weight, self.bias, self)  # type: ignore[return-value]
        out: Any = _Linear.apply(input.flatten(0, -2), self.weight, self.bias, self)
        return out.view(*input.shape[:-1], -1)


class SparseConv1d(_Sparse, nn.Conv1d):
    """A convolution over sequences with a part of its weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Computes as any convolution whose other weights are 0."""
        return _Convolution.apply(input, self.weight, self.bias, self)  # type: ignore[return-value]


class SparseConv2d(_Sparse, nn.Conv2d):
    """A convolution over images with a part of its weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Computes as any convolution whose other weights are 0."""
        return _Convolution.apply(input, self.weight, self.bias, self)  # type: ignore[return-value]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, values: torch.Tensor, bias: Any, layer: _Sparse) -> Any:
        ctx.save_for_backward(input, values)
        ctx.layer = layer
        out = input.new_empty(len(input), layer.dense_shape[0])
        for block in layer.blocks():
            weight, own = layer.dense(values, block).t(), out[:, block.rows]
            if bias is None:
                torch.mm(input, weight, out=own)
            else:
                torch.addmm(bias[block.rows], input, weight, out=own)
            del weight  # before the next is made
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        input, values = ctx.saved_tensors
        layer, (grad,) = ctx.layer, grads
        of_input = torch.zeros_like(input) if ctx.needs_input_grad[0] else None
        of_values = torch.empty_like(values)
        for block in layer.blocks():
            own = grad[:, block.rows]
            if of_input is not None:
                of_input.addmm_(own, layer.dense(values, block))
            layer.take(own.t() @ input, block, of_values)
        layer.end_search()
        of_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return of_input, of_values, of_bias, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, values: torch.Tensor, bias: Any, layer: Any) -> Any:
        ctx.save_for_backward(input, values)
        # As they are now: a layer before which places are left out has another stride then.
        none_out = False, [0] * len(layer.stride)
        ctx.options = layer.stride, layer.padding, layer.dilation, *none_out, layer.groups
        ctx.layer = layer
        (block,) = layer.blocks()
        return layer._conv_forward(input, layer.dense(values, block), bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,), layer, needs = grads, ctx.layer, ctx.needs_input_grad
        input, values = ctx.saved_tensors
        (block,), of_input, of_values = layer.blocks(), None, torch.empty_like(values)

        def gradients(weight: torch.Tensor, *wanted: bool) -> Any:
            sizes = [layer.dense_shape[0]]
            return torch.ops.aten.convolution_backward(grad, input, weight, sizes, *ctx.options, list(wanted))

        if needs[0]:
            of_input, _, _ = gradients(layer.dense(values, block), True, False, False)
        # Its gradient takes nothing of the weight but the shape, so that nothing need be made for it.
        shape = values[:1].expand(layer.weight_size).view(layer.dense_shape)
        _, dense, of_bias = gradients(shape, False, True, needs[2])
        layer.take(dense, block, of_values)
        layer.end_search()
        return of_input, of_values, of_bias, None


_SPARSE: Mapping[type[nn.Module], type[_Sparse]] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}


def can_be_sparse(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the weights of a network that can be stored in part, by name, and their shapes.

    Those of torch's own dense layers and convolutions that no other layer uses, but of none that pads other
    than with zeros in so many places.
    """
    uses: dict[int, int] = {}
    for layer in module.modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found = {}
    for name, layer in module.named_modules():
        if type(layer) in _SPARSE and uses[id(layer.weight)] == 1 and _pads_plainly(layer):
            assert isinstance(layer.weight, torch.Tensor)
            found[f"{name}.weight" if name else "weight"] = tuple(layer.weight.shape)
    return found


def _pads_plainly(layer: nn.Module) -> bool:
    by_number = not isinstance(getattr(layer, "padding", 0), str)
    return by_number and getattr(layer, "padding_mode", "zeros") == "zeros"


def make_sparse(module: nn.Module, numbers: Mapping[str, int]) -> None:
    """Lets layers hold so many of their weights, by name, of no account yet and on the CPU."""
    for name, number in numbers.items():
        layer: Any = module.get_submodule(name.rpartition(".")[0])
        outputs, *others = layer.dense_shape = tuple(layer.weight.shape)
        is_dense = isinstance(layer, nn.Linear)
        most = max(1, min(BLOCK // math.prod(others), -(-outputs // FEWEST_BLOCKS)))
        layer.block_rows = most if is_dense else outputs
        layer.search = None
        layer.__class__ = _SPARSE[type(layer)]
        layer.weight = nn.Parameter(torch.empty(number))
        layer.register_buffer(POSITIONS, None, persistent=False)
        layer.place(torch.arange(number, dtype=torch.int32))


def sparse_layers(module: nn.Module) -> dict[str, Any]:
    """Returns a network's layers that hold a part of their weights, by the name of the weight."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _Sparse)}
    return {f"{name}.weight" if name else "weight": layer for name, layer in layers.items()}


def place_weights(module: nn.Module, structure: Structure, device: torch.device | str = "cpu") -> None:
    """Tells layers where their weights stand."""
    for name, layer in sparse_layers(module).items():
        positions: NDArray[np.int32] = structure.kept(name).astype(np.int32)
        layer.place(torch.from_numpy(positions).to(device))


def placed_weights(module: nn.Module, within: Structure) -> Structure:
    """Returns a structure, with those weights that the layers now have."""
    masks = dict(within.masks)
    for name, layer in sparse_layers(module).items():
        masks[name] = np.zeros(layer.weight_size, np.bool_)
        masks[name][layer.places().cpu().numpy()] = True
    return Structure(masks)
