"""A network's graph (``torch.fx``): drawn, and played on shapes. What fails there is told by the layer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from fedhp.errors import ScenarioError

_SHAPE = "shape"
_SAMPLES = 2  # a batch of one is a special case of some layers
# How torch's layers call what they want a sample to have.
_WANTED = ("in_features", "in_channels", "num_features", "num_channels")


def draw(module: nn.Module, said: str) -> fx.GraphModule:
    """Returns a network's graph, whose nodes are layers and functions.

    Args:
        module: The network.
        said: How the user named it, for errors.

    Raises:
        ScenarioError: If its forward pass cannot be traced; the message names the module that is to blame.
    """
    tracer = _Graphs()
    try:
        return fx.GraphModule(module, tracer.trace(module))
    except Exception as error:  # the network's own code runs here, and may raise anything
        inside = f" of {_layer(module, tracer.failed)}" if tracer.failed else ""
        raise ScenarioError(
            f"{said}: the forward pass{inside} cannot be traced: {type(error).__name__}: {_reason(error)}. "
            "It must take the same steps whatever the samples are"
        ) from None


def play(graph: fx.GraphModule, input_shape: Sequence[int], said: str) -> None:
    """Notes, at every node, the shape of its result, which `shape` returns.

    Args:
        graph: The network's, its parameters on the ``meta`` device.
        input_shape: The shape of one sample, channels first.
        said: How the user named the network, for errors.

    Raises:
        ScenarioError: If the network does not take such samples; the message names the layer.
    """
    where = f"{said}, on samples of shape {tuple(input_shape)}"
    _Shapes(graph, where).run(torch.empty(_SAMPLES, *input_shape, device="meta"))


def shape(node: Any) -> tuple[int, ...]:
    """Returns the shape of a node's result; empty where it is no tensor."""
    return node.meta.get(_SHAPE, ()) if isinstance(node, fx.Node) else ()


def is_tensor(node: Any) -> bool:
    """Says whether a node's result is a tensor."""
    return isinstance(node, fx.Node) and _SHAPE in node.meta


def function_name(node: fx.Node) -> str:
    """Returns the name of the function or method that a node calls."""
    target: Callable[..., Any] | str = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def told(node: fx.Node, module: nn.Module) -> str:
    """Says a node as the user knows it: a layer by its path, a function by the module that calls it."""
    if node.op == "call_module":
        return f"layer {_layer(module, str(node.target))}"
    callers = list(node.meta.get("nn_module_stack", {}).values())
    inside = f" in '{callers[-1][0]}'" if callers else ""
    return f"'{function_name(node)}'{inside}"


class _Graphs(fx.Tracer):
    """Draws graphs whose nodes are layers: those of torch, and subclasses that compute what torch's do.

    Attributes:
        failed: The path of the module whose forward pass has raised, the innermost; empty for the whole.
    """

    failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        same = any(
            isinstance(m, kind) and type(m).forward is kind.forward
            for kind in (nn.Linear, nn.Conv1d, nn.Conv2d)
        )
        return same or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


class _Shapes(fx.Interpreter):
    """Plays a graph and notes shapes."""

    def __init__(self, graph: fx.GraphModule, where: str) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # which would add to what is raised here
        self._where = where

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception as error:  # torch raises many kinds where shapes do not fit
            raise ScenarioError(self._misfit(n, error)) from None
        if isinstance(result, torch.Tensor):
            n.meta[_SHAPE] = tuple(result.shape)
        return result

    def _misfit(self, node: fx.Node, error: Exception) -> str:
        taken = " and ".join(str(shape(one)) for one in node.all_input_nodes if is_tensor(one))
        wanted = self._wanted(node) if node.op == "call_module" else ""
        who = told(node, self.module)
        return f"{self._where}: {who} cannot take a batch of shape {taken}{wanted}: {_reason(error)}"

    def _wanted(self, node: fx.Node) -> str:
        layer = self.fetch_attr(str(node.target))
        return next(
            (f", with its {name}={getattr(layer, name)}" for name in _WANTED if hasattr(layer, name)), ""
        )


def _layer(module: nn.Module, path: str) -> str:
    return f"'{path}' ({type(module.get_submodule(path)).__name__})"


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
