"""Normalisation of maps of shape ``(batch, steps, channels)``, over the batch or over groups of channels."""

from collections.abc import Mapping

import numpy as np

from fedhp.data.arrays import made
from fedhp.model.array_network import Floats, Parameter
from fedhp.model.layout import Layout
from fedhp.model.running import MEAN, SQUARE, named
from fedhp.model.structure import Structure

_EPSILON = 1e-5  # PyTorch's


class ArrayNorm:
    """A normalisation: a batch's where the layout has running statistics, a group's otherwise.

    Sums are taken along a sample first and then over samples, which keeps their rounding small.

    Args:
        name: Its own.
        parameters: The network's parameters.
        layout: The network's wiring.
        weights: The state that it begins with.

    Attributes:
        running: Mean and variance of a batch's; empty for groups.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, Parameter], layout: Layout, weights: Mapping[str, Floats]
    ) -> None:
        self._name = name
        self._weight, self._bias = (parameters[f"{name}.{leaf}"] for leaf in ("weight", "bias"))
        runs = layout.runs(f"{name}.weight")[0]
        self._together = runs[0].span if runs else layout.shapes[f"{name}.weight"][0]
        self._num_seen = 0
        self.running: list[Floats] = []
        if named(name, MEAN) in layout.buffers:
            mean, square = (np.array(weights[named(name, leaf)], np.float32) for leaf in (MEAN, SQUARE))
            self.running = [mean, np.maximum(square - mean * mean, 0)]

    def told(self) -> dict[str, Floats]:
        """Returns running statistics as they travel: see `fedhp.model.running`."""
        if not self.running:
            return {}
        mean, variance = self.running
        return {named(self._name, MEAN): mean, named(self._name, SQUARE): np.add(variance, mean * mean)}

    def cut(self, layout: Layout, within: Structure, sub: Structure) -> None:
        """Cuts running statistics."""
        for _, positions in layout.indices(named(self._name, MEAN), within, sub) if self.running else ():
            self.running = [kept[positions] for kept in self.running]

    def restart(self) -> None:
        """Makes running statistics the mean over the samples to come."""
        self._num_seen = 0

    def forward(self, maps: Floats) -> tuple[Floats, Floats]:
        """Normalises maps in place.

        Returns:
            What is made of them by weights and biases, and the scale by which they were divided, inverted.
        """
        mean = self._mean(maps)
        maps -= mean
        scale = self._mean(maps, maps)
        if self.running:
            self._run(len(maps), mean.ravel(), scale.ravel(), maps.shape[0] * maps.shape[1])
        scale += _EPSILON
        np.divide(1, np.sqrt(scale, out=scale), out=scale)
        maps *= scale
        said = made(np.multiply(maps, self._weight.data))
        said += self._bias.data
        return said, scale

    def evaluated(self, maps: Floats) -> Floats:
        """Returns what is made of maps in evaluation, in their place."""
        if not self.running:
            return self.forward(maps)[0]
        mean, variance = self.running
        factors = self._weight.data / np.sqrt(variance + np.float32(_EPSILON))
        maps -= mean
        maps *= factors
        maps += self._bias.data
        return maps

    def back(self, flow: Floats, maps: Floats, scale: Floats) -> None:
        """Makes of what flows back into what was said what flows back into the maps, in place.

        Args:
            flow: The former.
            maps: The maps as normalised, which are given away.
            scale: As `forward` returned it.
        """
        self._bias.grad = made(made(flow.sum(1)).sum(0))
        self._weight.grad = made(made(np.einsum("btc,btc->bc", flow, maps)).sum(0))
        flow *= self._weight.data
        mean, slope = self._mean(flow), self._mean(flow, maps)
        flow -= mean
        maps *= slope
        flow -= maps
        flow *= scale

    def _mean(self, maps: Floats, others: Floats | None = None) -> Floats:
        """Returns means, of products with others, over all that is normalised together, for each channel."""
        number, steps, _ = maps.shape
        sums = made(maps.sum(1) if others is None else np.einsum("btc,btc->bc", maps, others))
        if self.running:
            means = made(sums.sum(0))[None, None]
            means /= number * steps
        else:
            of_groups = made(sums.reshape(number, -1, self._together).sum(2))
            means = made(of_groups.repeat(self._together, 1))[:, None]
            means /= self._together * steps
        return means

    def _run(self, num_samples: int, mean: Floats, variance: Floats, size: int) -> None:
        """Takes a batch into the running statistics, by its samples: the last one may be short."""
        is_first, batch = self._num_seen == 0, (mean, variance * np.float32(size / (size - 1)))
        self._num_seen += num_samples
        weight = np.float32(num_samples / self._num_seen)
        for kept, newest in zip(self.running, batch, strict=True):
            # The first replaces what was there: no number of times NaN takes an overflow away.
            kept[...] = newest if is_first else kept + weight * (newest - kept)
