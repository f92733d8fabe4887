"""Training with PyTorch's modules: see `fedhp.training.runtime.Runtime`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.costs.live_tensors import LiveTensors
from fedhp.data.shard import Shard
from fedhp.errors import ScenarioError
from fedhp.model.architecture import Architecture
from fedhp.model.batch_norms import restart_statistics, retake_statistics
from fedhp.model.building import to_module
from fedhp.model.draws import drawing
from fedhp.model.gradients import gradients
from fedhp.model.modules import take_weights, thin_before_convolutions
from fedhp.model.optimizer import Optimizer
from fedhp.model.side_by_side import form_of
from fedhp.model.state import ModelState
from fedhp.pruning.cutting import cut
from fedhp.training.evaluation import evaluate_module
from fedhp.training.optimizers import made, state_tensors
from fedhp.training.options import TrainConfig

__all__ = [
    "cut",
    "drawing",
    "evaluate",
    "form",
    "gradients",
    "live",
    "restart_statistics",
    "retake_statistics",
    "weights",
]

evaluate, form, live, weights = evaluate_module, form_of, LiveTensors, take_weights


def device(wanted: str) -> torch.device:
    """Returns the device of ``train.device``."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ScenarioError("train.device = cuda, but torch sees no CUDA device; use auto or cpu")
    return torch.device(wanted)


def check(recipe: Any, model: str) -> None:
    """Every network can be trained so."""


def network(arch: Architecture, state: ModelState, device: torch.device) -> nn.Module:
    """Returns a copy of a model, to be trained."""
    module = to_module(arch, state, device)
    thin_before_convolutions(module, arch.layout)
    return module


def optimizer(network: nn.Module, train: TrainConfig) -> Optimizer:
    """Returns its optimiser."""
    return made(network.parameters(), train)


def batch(
    shard: Shard, rows: NDArray[np.intp], inputs: NDArray[np.intp] | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns samples and classes."""
    images, labels = shard.batch(rows, inputs)
    return (images, labels) if device.type == "cpu" else (images.to(device), labels.to(device))


def array(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Returns a tensor."""
    return torch.from_numpy(array).to(device)


def kept(network: nn.Module, optimizer: Optimizer | None = None) -> list[torch.Tensor]:
    """Returns what lives between steps."""
    of_optimizer = state_tensors(optimizer) if optimizer else []
    return [*network.parameters(), *network.buffers(), *of_optimizer]
