"""Masked loss: classes that a client has no samples of take no part in its loss."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.memory import Extras
from fedhp.training.method import ClientRun, Method
from fedhp.training.recipe import Recipe


class MaskedLoss(Method):
    """Masks the logits of absent classes, in training; evaluation knows all classes."""

    name = "masked_loss"
    stackable = True
    on_arrays = True

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where it is asked for."""
        return recipe.train.masked_loss

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """The mask."""
        return Extras(masked=True)

    def __init__(self) -> None:
        self._mask: Any = None

    @property
    def tensors(self) -> Sequence[Any]:
        """The mask."""
        return () if self._mask is None else (self._mask,)

    @property
    def key(self) -> Hashable:
        """Whether there is a mask."""
        return self.name if self._mask is not None else None

    def begin(self, run: ClientRun) -> None:
        """Makes the mask, if a class is absent."""
        mask = class_mask(run.shard.classes(), run.recipe.architecture.num_classes)
        run.mask = self._mask = None if mask is None else run.runtime.array(mask, run.device)

    def kept(self) -> Mapping[str, Any]:
        """Nothing: the mask is made anew as a training begins."""
        return {}


def class_mask(present: NDArray[np.int64], num_classes: int) -> NDArray[np.float32] | None:
    """Returns what is added to logits so that absent classes take no part in the softmax.

    Minus infinity: an absent class has the probability 0 and its logit a gradient of exactly 0. HeteroFL
    (Diao et al. 2021, arXiv 2010.01264) replaces the logits of absent classes by 0 in its code.
    Their gradients are 0 there too; but each still takes the weight ``exp(0)`` in the softmax, so that the
    other logits are pushed above 0, even by a client of a single class, which here learns nothing.

    Args:
        present: The classes that the client has.
        num_classes: The number of all classes.

    Returns:
        An array of shape ``(num_classes,)``; None where no class is absent.
    """
    absent = np.setdiff1d(np.arange(num_classes), present)
    if not absent.size:
        return None
    mask = np.zeros(num_classes, np.float32)
    mask[absent] = -np.inf
    return mask
