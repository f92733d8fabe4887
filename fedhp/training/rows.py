"""Copies of one network as rows of common tensors, with modules only where somebody looks at one."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.modules import copy_of, rows_like
from fedhp.model.optimizer import Optimizer, parameters_of
from fedhp.model.side_by_side import form_of
from fedhp.model.state import ModelState
from fedhp.training.options import MOMENTUM


class Rows:
    """The network that several clients are sent, once for each.

    Args:
        network: One of this structure, its weights of no account: of torch's own layers, without hooks and
            buffers.
        state: What they are sent.
        number: To how many.

    Attributes:
        of: The network of this structure.
        form: How steps of such networks are computed together.
        names: Of its parameters.
        tensors: They, an axis for the clients first.
        lent: What the momentum of each is kept in, if it is kept here, zero at first.
    """

    def __init__(self, network: nn.Module, state: ModelState, number: int) -> None:
        self.of, self.form = network, form_of(network)
        parameters = dict(self.of.named_parameters())
        self.names = [*parameters]
        self.tensors = [
            rows_like(p, number).copy_(torch.tensor(state.weights[name])) for name, p in parameters.items()
        ]
        self.lent: list[torch.Tensor] = []

    def velocities(self) -> list[torch.Tensor]:
        """Returns what the momenta are kept in from now on."""
        self.lent = self.lent or [torch.zeros_like(tensor) for tensor in self.tensors]
        return self.lent


class Row(NamedTuple):
    """Where a client's network lies."""

    rows: Rows
    place: int

    @property
    def has_others(self) -> bool:
        """Whether others lie beside it."""
        return len(self.rows.tensors[0]) > 1

    def tensors(self) -> list[torch.Tensor]:
        """Returns its parameters."""
        return [tensor[self.place] for tensor in self.rows.tensors]

    def module(self) -> nn.Module:
        """Returns a module of these parameters."""
        own, of = map(nn.Parameter, self.tensors()), self.rows.of
        return copy_of(of, dict(zip(map(id, of.parameters()), own, strict=True)))

    def lend_velocities(self, optimizer: Optimizer) -> None:
        """Puts the momentum that there is in the place of that of an optimiser just made."""
        for parameter, velocity in zip(parameters_of(optimizer), self.rows.lent, strict=False):
            optimizer.state[parameter][MOMENTUM] = velocity[self.place]

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Returns the weights, as `fedhp.model.modules.take_weights` does of a module."""
        arrays = (np.ascontiguousarray(tensor.cpu().numpy()) for tensor in self.tensors())
        return dict(zip(self.rows.names, arrays, strict=True))
