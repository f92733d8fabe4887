"""In which layers an operator is that a format cannot take: converters name the operator alone."""

import re
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch._decomp import decomposition_table

from fedhp.exports.quiet import quiet

_OPERATOR = re.compile(r"\b(?:aten|prims)(?:\.|::)\w+")


def layers_with(network: nn.Module, example: NDArray[Any], said: str) -> list[str]:
    """Returns the layers in which the operators are that a converter named, each with its class.

    Args:
        network: Takes ``example``.
        example: A batch of one sample.
        said: What the converter said; it may name none.
    """
    named = {operator.replace("::", ".").rstrip("_") for operator in _OPERATOR.findall(said)}
    if not named:
        return []
    try:
        with quiet():
            program = torch.export.export(network, (torch.from_numpy(example),))
            # Converters name operators of either: as they were called, or taken apart as far as can be.
            graphs = program.graph, program.run_decompositions(dict(decomposition_table)).graph
    except Exception:  # whatever it is, the converter has said what was amiss
        return []
    found: dict[str, None] = {}
    for node in (node for graph in graphs for node in graph.nodes):
        inside = [*(node.meta.get("nn_module_stack") or {}).values()]
        operator = ".".join(str(node.target).split(".")[:2]).rstrip("_")  # in place or not
        if inside and operator in named:
            place, kind = inside[-1]
            name = place.removeprefix("network.") or "the network itself"
            found[f"{name} ({getattr(kind, '__name__', str(kind).rpartition('.')[2])})"] = None
    return list(found)
