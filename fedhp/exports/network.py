"""A finished network as a device uses it: a raw sample in, a score for each class out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.data.normalisation import Normalisation
from fedhp.exports.trained import Trained
from fedhp.model.inference import to_plain_module

# In deviations: below it, what a mean loses in single precision is no more than what its samples lose.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class RawSample:
    """What one sample is before anything is done to it.

    Attributes:
        shape: Without the axis of the batch.
        axes: What each axis is: of images ``channels``, ``height`` and ``width``, of windows ``channels`` and
            ``time``, of plain features ``features``.
        dtype: ``uint8`` or ``float32``.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: Literal["uint8", "float32"]

    def arranged(self, images: NDArray[Any]) -> NDArray[Any]:
        """Returns samples of shape (N, C, H, W), as `fedhp.data` has them, in this one's shape and type."""
        if self.axes[-1] == "channels" and len(self.axes) == 3:
            images = images.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images.reshape(-1, *self.shape), self.dtype)


def raw_sample(
    input_shape: Sequence[int], normalisation: Normalisation, dtype: np.dtype[Any], channels_last: bool
) -> RawSample:
    """Returns what a network's samples are, without axes that have one entry and mean nothing.

    Args:
        input_shape: Channels, height and width, as the network was trained.
        normalisation: Tells windows from images: sensors have scales of their own.
        dtype: Of the data's own numbers; anything but bytes goes in as float32.
        channels_last: Whether images have their channels in the last axis.
    """
    kind: Literal["uint8", "float32"] = "uint8" if dtype == np.uint8 else "float32"
    channels, height, width = input_shape
    if normalisation.axis == 0 and height > 1 and width > 1:
        if channels_last:
            return RawSample((height, width, channels), ("height", "width", "channels"), kind)
        return RawSample((channels, height, width), ("channels", "height", "width"), kind)
    long = tuple(size for size in input_shape if size > 1) or (1,)
    if len(long) == 1:
        return RawSample(long, ("features",), kind)
    axes = ("time", "channels") if normalisation.axis == 2 else ("channels", "time")
    return RawSample(long, axes, kind)


def network_inputs(trained: Trained, images: NDArray[Any]) -> torch.Tensor:
    """Returns raw samples (N, channels, height, width) as the plain module takes them, normalised."""
    inputs = torch.from_numpy(trained.normalisation.applied(images, "a sample"))
    kept = trained.arch.kept_inputs(trained.state.structure)
    return inputs if kept is None else inputs.flatten(1).index_select(1, torch.tensor(kept))


class DeviceNetwork(nn.Module):
    """Takes a raw `RawSample`, with the axis of the batch before its own, and returns scores for each class.

    In single precision from the start, which is what runtimes of devices have: the mean is taken in two parts
    where one would be too coarse. What the network has no use for is left out before anything is computed.

    Args:
        trained: The network.
        sample: What it takes.
        network: What became of it since, which takes the same.
    """

    def __init__(self, trained: Trained, sample: RawSample, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = to_plain_module(trained.arch, trained.state) if network is None else network
        self._input_shape = tuple(trained.arch.input_shape)
        self._channels_last = len(sample.axes) == 3 and sample.axes[-1] == "channels"
        scale = 255 if sample.dtype == "uint8" else 1
        kept = trained.arch.kept_inputs(trained.state.structure)
        mean, factor = self._constants(trained.normalisation, scale, kept)
        coarse = mean.astype(np.float32)
        rest = (mean - coarse).astype(np.float32)
        self.mean: torch.Tensor
        self.factor: torch.Tensor
        self.kept: torch.Tensor | None
        self.rest: torch.Tensor | None
        self.register_buffer("kept", None if kept is None else torch.tensor(kept))
        self.register_buffer("mean", torch.tensor(coarse))
        self.register_buffer("factor", torch.tensor(factor.astype(np.float32)))
        matters = np.abs(rest * factor).max() > _NEGLIGIBLE
        self.register_buffer("rest", torch.tensor(rest) if matters else None)
        self.eval()

    def _constants(
        self, normalisation: Normalisation, scale: int, kept: NDArray[np.intp] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns what is taken from raw values, and what the rest is multiplied by; both of one shape."""
        mean = normalisation.shaped(normalisation.mean) * scale
        factor = 1 / (normalisation.shaped(normalisation.std) * scale)
        if kept is None:
            return mean, factor
        if mean.size == 1:
            return mean.ravel(), factor.ravel()
        mean, factor = (np.broadcast_to(one, self._input_shape).ravel()[kept] for one in (mean, factor))
        return mean, factor

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Returns scores, float32 of shape (batch, classes)."""
        if self._channels_last:
            samples = samples.permute(0, 3, 1, 2)
        if self.kept is not None:
            samples = samples.flatten(1).index_select(1, self.kept)  # which quantisers know, unlike an index
        else:
            samples = samples.reshape(len(samples), *self._input_shape)
        values = samples.float() - self.mean
        if self.rest is not None:
            values = values - self.rest
        return self.network(values * self.factor)
