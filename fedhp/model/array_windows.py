"""`fedhp.model.networks.sensors.conv1d` on NumPy's arrays: convolutions over time, forth and back.

Maps are of shape ``(batch, steps, channels)``. What a convolution takes in lies between zeros, and is read as
one long row of samples: each tap of the kernel is then one product for all of them. What windows over two
samples come to is never looked at.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhp.data.arrays import made
from fedhp.model import numpy_kernels as kernels
from fedhp.model.array_network import ArrayNetwork, Floats
from fedhp.model.array_norm import ArrayNorm
from fedhp.model.dense import CROSS_ENTROPY, Batch, Loss, judged
from fedhp.model.layout import Layout
from fedhp.model.networks.windows import KERNEL
from fedhp.model.structure import Structure

_BESIDE = KERNEL // 2  # zeros before a sample, and as many behind it


class _Layer(NamedTuple):
    """What a layer keeps for the way back: what it took in, normalised maps, their scale, what it said."""

    taken: Floats
    normal: Floats
    scale: Floats
    said: Floats


class ArrayWindows(ArrayNetwork):
    """That network.

    Args:
        layout: Its wiring.
        weights: Parameters and running statistics.
    """

    def __init__(self, layout: Layout, weights: Mapping[str, Floats]) -> None:
        super().__init__({name: weights[name] for name in layout.trained})
        number = sum(name.startswith("conv") for name in layout.trained)
        self._norms = [
            ArrayNorm(f"norm{place}", self.named, layout, weights) for place in range(1, number + 1)
        ]

    @property
    def statistics(self) -> list[Floats]:
        """What normalisations keep."""
        return [kept for norm in self._norms for kept in norm.running]

    def weights(self) -> dict[str, Floats]:
        """Returns parameters and running statistics."""
        statistics = (norm.told() for norm in self._norms)
        return {**super().weights(), **{name: own for told in statistics for name, own in told.items()}}

    def cut_statistics(self, layout: Layout, within: Structure, sub: Structure) -> None:
        """Cuts running statistics, in place."""
        for norm in self._norms:
            norm.cut(layout, within, sub)

    def restart_statistics(self) -> None:
        """Makes running statistics the mean over the samples to come."""
        for norm in self._norms:
            norm.restart()

    def retake_statistics(self, batches: Iterator[Floats]) -> None:
        """Makes them the mean over these samples, of which one batch is held at a time."""
        self.restart_statistics()
        while (samples := next(batches, None)) is not None:
            self._features(samples, [])
            del samples

    def gradients(
        self, samples: Floats, labels: NDArray[np.int64], loss: Loss = CROSS_ENTROPY
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Computes gradients: see `fedhp.model.gradients.gradients`."""
        layers: list[_Layer] = []
        features, steps = self._features(samples, layers)
        batch = Batch(samples[None], labels[None], [len(labels)], loss)
        losses, right, flow = judged(kernels, self._logits(features), batch)
        head = self.named["head.weight"]
        self.named["head.bias"].grad = kernels.total(flow, 1)[0]
        head.grad = kernels.product(flow.swapaxes(1, 2), features)[0]
        flow = kernels.product(flow, head.data[None])[0]
        del features
        flow /= steps
        self._back(layers, np.broadcast_to(flow[:, None], (len(flow), steps, flow.shape[1])))
        return losses.reshape(()), right.reshape(())

    def outputs(self, samples: Floats) -> Floats:
        """Returns the logits of samples in evaluation, of shape ``(1, batch, classes)``."""
        return self._logits(self._features(samples)[0])

    def _logits(self, features: Floats) -> Floats:
        weights, biases = (self.named[f"head.{leaf}"].data[None] for leaf in ("weight", "bias"))
        return kernels.affine(features, weights, biases)

    def _features(self, samples: Floats, layers: list[_Layer] | None = None) -> tuple[Floats, int]:
        """Returns the means over time of the last maps, of shape ``(1, batch, channels)``, and their steps.

        Args:
            samples: What is shown.
            layers: Is given what the way back needs; None in evaluation.
        """
        taken = _between_zeros(samples.reshape(len(samples), -1, samples.shape[-1]).swapaxes(1, 2))
        for number, norm in enumerate(self._norms, 1):
            normal = convolved(taken, self.named[f"conv{number}.weight"].data)
            said, scale = (norm.evaluated(normal), normal) if layers is None else norm.forward(normal)
            kernels.rectify(said)
            if layers is not None:
                layers.append(_Layer(taken, normal, scale, said))
            del normal, scale
            taken = _halved(said)
            del said
        maps = taken[:, _BESIDE:-_BESIDE]
        means = kernels.total(maps, 1)
        means /= maps.shape[1]
        return means[None], maps.shape[1]

    def _back(self, layers: list[_Layer], flow: Floats) -> None:
        flows = [flow]
        del flow
        for number in range(len(layers), 0, -1):
            taken, normal, scale, said = layers.pop()
            wide = _doubled(flows.pop(), said)
            del said
            self._norms[number - 1].back(wide[:, : normal.shape[1]], normal, scale)
            del normal, scale
            weight = self.named[f"conv{number}.weight"]
            weight.grad = convolution_gradient(wide, taken, weight.data)
            if number > 1:
                flows.append(convolution_back(wide, weight.data))
            del wide, taken


def convolved(taken: Floats, weights: Floats) -> Floats:
    """Returns what a convolution puts out.

    Args:
        taken: Maps between zeros, of shape ``(batch, steps + 4, inputs)``.
        weights: Of shape ``(outputs, inputs, 5)``.

    Returns:
        A view of shape ``(batch, steps, outputs)``.
    """
    number, length, _ = taken.shape
    taps, outputs = _taps(weights), made(np.empty((number, length, len(weights)), np.float32))
    product = made(np.empty_like(outputs))
    flat, out, scratch = (array.reshape(number * length, -1) for array in (taken, outputs, product))
    rows = len(flat) - KERNEL + 1
    np.matmul(flat[:rows], taps[0].T, out=out[:rows])
    for place in range(1, KERNEL):
        np.matmul(flat[place : place + rows], taps[place].T, out=scratch[:rows])
        out[:rows] += scratch[:rows]
    return outputs[:, : length - KERNEL + 1]


def convolution_gradient(flow: Floats, taken: Floats, weights: Floats) -> Floats:
    """Returns the gradient of a convolution's weights.

    Args:
        flow: What flows back into its outputs, with zeros behind each sample.
        taken: What it took in, between zeros.
        weights: The weights.
    """
    grads = _taps(weights)
    outputs, inputs = flow.reshape(-1, flow.shape[2]), taken.reshape(-1, taken.shape[2])
    rows = len(inputs) - KERNEL + 1
    for place in range(KERNEL):
        np.matmul(outputs[:rows].T, inputs[place : place + rows], out=grads[place])
    return made(grads.transpose(1, 2, 0).copy())


def convolution_back(flow: Floats, weights: Floats) -> Floats:
    """Returns what flows back into a convolution's inputs, of shape ``(batch, steps, inputs)``."""
    number, length, _ = flow.shape
    taps, inputs = _taps(weights), made(np.zeros((number, length, weights.shape[1]), np.float32))
    product = made(np.empty_like(inputs))
    flat, into, scratch = (array.reshape(number * length, -1) for array in (flow, inputs, product))
    rows = len(flat) - KERNEL + 1
    for place in range(KERNEL):
        np.matmul(flat[:rows], taps[place], out=scratch[:rows])
        into[place : place + rows] += scratch[:rows]
    return inputs[:, _BESIDE:-_BESIDE]


def _taps(weights: Floats) -> Floats:
    """Returns a copy tap by tap, of shape ``(5, outputs, inputs)``: BLAS takes no steps through memory."""
    taps = weights.transpose(2, 0, 1).copy()
    made(taps.transpose(1, 2, 0))
    return taps


def _between_zeros(maps: Floats) -> Floats:
    number, steps, channels = maps.shape
    wide = made(np.zeros((number, steps + 2 * _BESIDE, channels), np.float32))
    wide[:, _BESIDE:-_BESIDE] = maps
    return wide


def _halved(maps: Floats) -> Floats:
    """Returns the larger of every two steps, between zeros; a single step stays."""
    number, steps, channels = maps.shape
    if steps == 1:
        return _between_zeros(maps)
    half = steps // 2
    wide = made(np.zeros((number, half + 2 * _BESIDE, channels), np.float32))
    pairs = maps[:, : 2 * half].reshape(number, half, 2, channels)
    np.maximum(pairs[:, :, 0], pairs[:, :, 1], out=wide[:, _BESIDE:-_BESIDE])
    return wide


def _doubled(flow: Floats, maps: Floats) -> Floats:
    """Returns what flows back through `_halved` and the ReLU that put these maps out, zeros behind it."""
    number, steps, channels = maps.shape
    wide = made(np.zeros((number, steps + 2 * _BESIDE, channels), np.float32))
    if steps == 1:
        wide[:, :1] = flow
    else:
        half = steps // 2
        into, pairs = (one[:, : 2 * half].reshape(number, half, 2, channels) for one in (wide, maps))
        is_first = made(pairs[:, :, 0] >= pairs[:, :, 1])
        np.copyto(into[:, :, 0], flow, where=is_first)
        np.copyto(into[:, :, 1], flow, where=np.logical_not(is_first, out=is_first))
        del is_first
    kernels.rectify_back(wide[:, :steps], maps)
    return wide
