"""A forward pass, watched: every function of torch that it calls, and which layer calls it.

The network itself runs, on the CPU and on samples of zeros, so that whatever Python can do with shapes is
allowed. What it must not do is to read numbers off its samples, which would let its steps depend on them.
"""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fedhp.errors import ScenarioError
from fedhp.model.draws import drawing

# How torch's layers call what they want a sample to have.
_WANTED = ("in_features", "in_channels", "num_features", "num_channels")
_READS_NUMBERS = {"__bool__", "__float__", "__int__", "__index__", "__array__", "item", "tolist", "numpy"}
# Operators with their operands exchanged or in place, by the names that their functions have.
_OPERATORS = {
    f"{kind}{name}": "div" if name in ("truediv", "div") else name
    for kind in ("", "r", "i")
    for name in ("add", "sub", "mul", "truediv", "div", "floordiv", "pow", "mod")
}


Kind = str | type[nn.Module]
Layers = Container[type[nn.Module]]


@dataclass(frozen=True)
class Call:
    """One call of a function of torch.

    Attributes:
        name: The function's name; ``add`` for ``x + y``, ``x += y`` and ``x.add_(y)`` alike.
        function: The function.
        args: What it is given by place.
        kwargs: What it is given by name.
        who: The layer that calls it, or the function and the module that calls it, for people.
        layer: The layer of torch that calls it; None where a module of the user's own does. A layer that is
            shown as one call is its own function.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    who: str
    layer: nn.Module | None

    @property
    def kind(self) -> Kind:
        """What its rule is found by: the function's name, or the class of a layer that is one call."""
        return type(self.layer) if self.layer is not None and self.function is self.layer else self.name

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Returns what is given at a place or by a name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Watch = Callable[[Call, Any], None]


def forward(module: nn.Module, whole: Layers, samples: torch.Tensor, watch: Watch, said: str) -> Any:
    """Runs a network's forward pass, shows every call and its result, and returns its output.

    Args:
        module: The network.
        whole: The layers that are shown as one call, and not looked into.
        samples: What it is given.
        watch: Is shown every call whose arguments hold a tensor, and its result.
        said: How the user named the network, for errors.

    Raises:
        ScenarioError: If the network does not take such samples, or reads numbers off them; the message names
            the layer.
    """
    with _following(module, whole, watch) as stack, drawing(0, "cpu"), torch.no_grad():
        try:
            with _Watched(watch, stack, f"{said}, on samples of shape {tuple(samples.shape[1:])}"):
                return module(samples)
        except ScenarioError:
            raise
        except Exception as error:  # the network's own code runs here, and may raise anything
            raise _stack_error(stack, said, samples, error) from None


@dataclass
class _Stack:
    """The modules whose forward passes are under way, the outermost first, with what they are given."""

    whole: Layers
    entries: list[tuple[str, nn.Module, str]] = field(default_factory=list)

    @property
    def layer(self) -> tuple[str, nn.Module, str] | None:
        """The layer of torch, or shown as one call, that is at work, if one is."""
        kinds = ((entry, type(entry[1])) for entry in self.entries)
        return next((entry for entry, kind in kinds if kind in self.whole or _is_torchs(kind)), None)

    @property
    def inside(self) -> nn.Module | None:
        """The layer at work that is shown as one call, if one is."""
        return next((part for _, part, _ in self.entries if type(part) in self.whole), None)

    def told(self, name: str) -> str:
        """Says a call as the user knows it: a layer by its path, a function by the module that calls it."""
        if self.layer is not None:
            return f"layer {_said(self.layer)}"
        inside = f" in '{self.entries[-1][0]}'" if self.entries and self.entries[-1][0] else ""
        return f"'{name}'{inside}"


@cache
def _is_torchs(kind: type[nn.Module]) -> bool:
    """Says whether a layer is one of torch, or a subclass that computes what torch's does."""
    origin = next(one for one in kind.__mro__ if "forward" in vars(one)).__module__
    return origin.startswith("torch.nn.") and not issubclass(kind, nn.Sequential)


def _said(entry: tuple[str, nn.Module, str]) -> str:
    return f"'{entry[0]}' ({type(entry[1]).__name__})"


@contextmanager
def _following(module: nn.Module, whole: Layers, watch: Watch) -> Iterator[_Stack]:
    stack, handles = _Stack(whole), []
    for name, part in module.named_modules():

        def enter(part: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            stack.entries.append((name, part, _shapes(inputs)))

        def leave(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            if stack.inside is part:
                name = f"{type(part).__module__}.{type(part).__qualname__}"  # no function's: it has a dot
                watch(Call(name, part, args, kwargs, stack.told(name), part), result)
            stack.entries.pop()

        handles += [
            part.register_forward_pre_hook(enter),
            part.register_forward_hook(leave, with_kwargs=True),
        ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


class _Watched(TorchFunctionMode):
    """Shows calls."""

    def __init__(self, watch: Watch, stack: _Stack, where: str) -> None:
        super().__init__()
        self._watch, self._stack, self._where = watch, stack, where

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the function and shows what it returned."""
        name, kwargs = _name(func), kwargs or {}
        if self._stack.inside is not None:
            return func(*args, **kwargs)
        _, layer, taken = self._stack.layer or ("", None, _shapes((args, kwargs)))
        call = Call(name, func, args, kwargs, self._stack.told(name), layer)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            raise _misfit(self._where, call.who, layer, taken, error) from None
        self._watch(call, result)
        return result


def reads_numbers(call: Call) -> bool:
    """Says whether a call takes numbers off a tensor, as control flow does."""
    return call.name in _READS_NUMBERS


def _name(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    if name == "__get__":  # of a property
        name = function.__self__.__name__
    if name in _READS_NUMBERS:
        return name
    plain = name.strip("_")
    return _OPERATORS.get(plain, plain) if name.startswith("__") else plain


def tensors(values: Any) -> list[torch.Tensor]:
    """Returns all tensors among nested values, in order."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [t for value in values for t in tensors(value)] if isinstance(values, (tuple, list)) else []


def _shapes(values: Any) -> str:
    found = [tensor for tensor in tensors(values) if not isinstance(tensor, nn.Parameter)]
    return " and ".join(str(tuple(tensor.shape)) for tensor in found)


def _misfit(where: str, who: str, layer: nn.Module | None, taken: str, error: Exception) -> ScenarioError:
    wanted = next(
        (f", with its {name}={getattr(layer, name)}" for name in _WANTED if hasattr(layer, name)), ""
    )
    return ScenarioError(f"{where}: {who} cannot take a batch of shape {taken}{wanted}: {_reason(error)}")


def _stack_error(stack: _Stack, said: str, samples: torch.Tensor, error: Exception) -> ScenarioError:
    if stack.layer is not None:
        _, layer, taken = stack.layer
        where = f"{said}, on samples of shape {tuple(samples.shape[1:])}"
        return _misfit(where, stack.told(""), layer, taken, error)
    inside = f" of {_said(stack.entries[-1])}" if stack.entries and stack.entries[-1][0] else ""
    return ScenarioError(
        f"{said}: the forward pass{inside} cannot be traced: {type(error).__name__}: {_reason(error)}. "
        "It must take the same steps whatever the samples are"
    )


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
