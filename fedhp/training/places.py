"""Places at which weights could grow, found in a layer's gradient while it passes by."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedhp.training.update import Gradients

if TYPE_CHECKING:
    import torch


class Places:
    """The best places to grow at, of all that have no weight: a `fedhp.model.sparse_layers.Search`.

    Args:
        number: How many.
        score: Makes scores of a gradient, in its place.

    Attributes:
        found: The best of what was seen, int32 in the flat dense weight; None where nothing was.
    """

    def __init__(self, number: int, score: "Callable[[torch.Tensor], torch.Tensor]") -> None:
        self.number, self._score = number, score
        self.found: torch.Tensor | None = None
        self._scores: torch.Tensor | None = None

    def offer(self, gradient: "torch.Tensor", taken: "torch.Tensor", start: int) -> None:
        """See `fedhp.model.sparse_layers.Search`."""
        scores = self._score(gradient)
        scores.index_add_(0, taken, scores.new_full((), -math.inf).expand(len(taken)))
        self._keep(scores, start)

    def _keep(self, scores: "torch.Tensor", start: int, are_falling: bool = False) -> None:
        """Keeps the best of what was found before and of these; falling ones by their places' complement."""
        import torch

        best, places = scores.topk(min(self.number, len(scores)), sorted=False)
        places = places.to(torch.int32).add_(start)
        if are_falling:
            places.bitwise_not_()
        if self._scores is not None and self.found is not None:
            best, self._scores = torch.cat([self._scores, best]), None
            places, self.found = torch.cat([self.found, places]), None
            best, chosen = best.topk(min(self.number, len(best)), sorted=False)
            places = places[chosen]
        self._scores, self.found = best, places

    def end(self) -> None:
        """Forgets how good they are."""
        self._scores = None


class Steepest(Places):
    """The places of the largest gradients by magnitude, with their values.

    The largest and the smallest of a gradient are found in its own memory: their magnitudes would take as
    much again. Places at which it falls below 0 are kept as their complement, ``-1 - place``.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, lambda gradient: gradient)

    @property
    def kept(self) -> "Sequence[torch.Tensor]":
        """The tensors that it keeps."""
        return [tensor for tensor in (self.found, self._scores) if tensor is not None]

    def offer(self, gradient: "torch.Tensor", taken: "torch.Tensor", start: int) -> None:
        """See `fedhp.model.sparse_layers.Search`."""
        super().offer(gradient, taken, start)
        # Those that have weights are infinite now, and must not come to be the largest.
        gradient.neg_().nan_to_num_(posinf=-math.inf, neginf=-math.inf)
        self._keep(gradient, start, are_falling=True)

    def end(self) -> None:
        """Keeps what it has seen."""

    def gradients(self) -> Gradients:
        """Returns the gradients found, but for those that are 0."""
        assert self.found is not None, "a step was taken"
        assert self._scores is not None
        codes, sizes = self.found.cpu().numpy(), self._scores.cpu().numpy()
        there = sizes > 0
        codes, sizes = codes[there], sizes[there]
        places = np.where(codes < 0, ~codes, codes)
        order = np.argsort(places)
        return Gradients(places[order], np.where(codes < 0, -sizes, sizes)[order])
