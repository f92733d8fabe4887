"""One-shot magnitude pruning by Torch-Pruning (Fang et al. 2023, arXiv 2301.12900), in terms of fedhp."""

# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping

import torch
from torch import nn

from fedhp.errors import ExportError, FedhpError, ScenarioError
from fedhp.model.architecture import Architecture
from fedhp.model.inference import to_plain_module
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure

VERSION = "1.6.1"
_HALVINGS = 12  # of shares: layers have at most some hundred units


def check_installed() -> None:
    """Imports the package.

    Raises:
        FedhpError: If it is not installed.
    """
    try:
        import torch_pruning

        del torch_pruning
    except ModuleNotFoundError:
        raise FedhpError(
            "this benchmark needs the package 'torch-pruning', which is not installed. Install it with: "
            f"pip install torch-pruning=={VERSION}"
        ) from None


def one_shot(arch: Architecture, state: ModelState, target: int, over_all: bool = False) -> ModelState:
    """Cuts a trained network at once, to about as many parameters, by the L2 norms of groups.

    Every layer loses the same share, which is the package's default, or all are ranked together. Where a
    larger share takes a unit of several layers at once, it does so of some: few parameters are missing.

    Args:
        arch: Of the network.
        state: Its weights; of full size.
        target: How many parameters are wanted.
        over_all: Whether layers are ranked together.

    Raises:
        ScenarioError: If the network has group normalisation.
        ExportError: If the package leaves other weights than those of the units that it keeps.
    """
    cuts = _Cuts(arch, state, over_all)
    more, less = _around(lambda share: cuts.parameters({None: share}), target)
    shares: dict[str | None, float] = {None: less}
    for layer in () if over_all else cuts.heaviest_first(shares):
        if cuts.parameters({**shares, layer: more}) <= target:
            shares[layer] = more
    return cuts.state(min(shares, {None: more}, key=lambda one: abs(cuts.parameters(one) - target)))


class _Cuts:
    """Cuts of a network, by the shares of channels that layers lose; None stands for all other layers."""

    def __init__(self, arch: Architecture, state: ModelState, over_all: bool) -> None:
        self._layout, self._arch, self._full, self._over_all = arch.layout, arch, state, over_all
        if any(isinstance(module, nn.GroupNorm) for module in self._network().modules()):
            raise ScenarioError(
                "torch-pruning keeps the number of groups of a group normalisation, and so cuts other units "
                "than fedhp; choose model.norm=batch"
            )

    def parameters(self, shares: Mapping[str | None, float]) -> int:
        """Returns how many parameters are left."""
        return self._layout.num_parameters(self._cut(shares)[0].counts)

    def state(self, shares: Mapping[str | None, float]) -> ModelState:
        """Returns what is left, held against the package's own network."""
        structure, network = self._cut(shares)
        state = self._full.cut(self._layout, structure)
        ours = to_plain_module(self._arch, state).state_dict()
        theirs = network.state_dict()
        same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        if not same:
            raise ExportError("torch-pruning left other weights than those of the units that it keeps")
        return state

    def heaviest_first(self, shares: Mapping[str | None, float]) -> list[str]:
        """Returns a layer of each group of units, by the parameters of a unit once so much is cut."""
        counts = self._cut(shares)[0].counts
        layers = {self._made(name): name for name in _layers(self._network()) if self._made(name)}

        def left(group: str) -> int:
            return self._layout.num_parameters({**counts, group: counts[group] - 1})

        return [layers[group] for group in sorted(layers, key=left)]

    def _made(self, layer: str) -> str:
        """Returns the group that a layer makes; empty for the one that makes the scores."""
        runs = self._layout.runs(f"{layer}.weight")[0]
        return (runs[0].group or "") if runs else ""

    def _network(self) -> nn.Module:
        return to_plain_module(self._arch, self._full).eval()

    def _cut(self, shares: Mapping[str | None, float]) -> tuple[Structure, nn.Module]:
        import torch_pruning as tp

        network = self._network()
        layers, structure = _layers(network), self._layout.full()
        pruner = tp.pruner.BasePruner(
            network,
            torch.zeros(2, *self._arch.input_shape),
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=self._over_all,
            pruning_ratio=shares[None],
            pruning_ratio_dict={layers[name]: share for name, share in shares.items() if name},
            ignored_layers=[layer for name, layer in layers.items() if not self._made(name)],
        )
        names = {layer: name for name, layer in layers.items()}
        for cut in pruner.step(interactive=True) or ():
            structure = structure.without(self._made(names[cut[0].dep.target.module]), cut[0].idxs)
            cut.prune()
        return structure, network


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers whose outputs can be cut, by name."""
    kinds = nn.Linear, nn.Conv1d, nn.Conv2d
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, kinds)}


def _around(parameters: Callable[[float], int], target: int) -> tuple[float, float]:
    """Returns two shares to cut, just about a target: what the one leaves is more, what the other less."""
    more, less = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (more + less) / 2
        more, less = (middle, less) if parameters(middle) > target else (more, middle)
    return more, less
