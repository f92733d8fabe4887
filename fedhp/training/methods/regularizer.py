"""The penalties that press units towards zero before they are cut, one of `fedhp.pruning.regularizers`."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from fedhp.costs.memory import Extras
from fedhp.model.structure import Structure
from fedhp.pruning.evidence import evidence
from fedhp.pruning.regularizers import REGULARIZERS, allocate, bytes_per_unit, check_regularizer
from fedhp.training.method import ClientRun, Method
from fedhp.training.method_names import REGULARIZER
from fedhp.training.recipe import Recipe


class Regularization(Method):
    """Presses on what there is, while anything is left to cut."""

    name = REGULARIZER
    by_strategy = True
    stackable = True

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where there is a target, and a penalty."""
        return recipe.prune.target_compression > 1 and recipe.prune.regularizer != "none"

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """What it keeps for each weight, and makes for each unit."""
        name = recipe.prune.regularizer
        made = bytes_per_unit(name, recipe.architecture.layout)
        return Extras(REGULARIZERS[name].slots, unit_bytes=made)

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """Its key."""
        return f"prune.regularizer = {recipe.prune.regularizer}"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that the model has what it presses on."""
        check_regularizer(recipe.prune.regularizer, recipe.architecture.layout)

    def __init__(self) -> None:
        self._structure: Structure | None = None  # of which there is evidence
        self._presses = False

    @property
    def key(self) -> Hashable:
        """Which it is, if it still presses."""
        return (self.name, self._regularizer) if self._presses else None

    def begin(self, run: ClientRun) -> None:
        """Allocates what it keeps."""
        self._regularizer = run.recipe.prune.regularizer
        self._look(run)
        if self._presses:
            allocate(self._regularizer, run.optimizer)

    def on_gradients(self, run: ClientRun) -> None:
        """Adds the penalty's gradient to those of the loss."""
        if run.structure is not self._structure:
            self._look(run)
        if self._presses:
            push = REGULARIZERS[self._regularizer].push
            push(self._evidence.values(), run.optimizer, run.recipe.prune.regularizer_strength)

    def kept(self) -> Mapping[str, Any]:
        """Nothing: what there is to press on is made anew as a training begins."""
        return {}

    def _look(self, run: ClientRun) -> None:
        """Finds what there is to press on, the units being as many as they now are."""
        self._structure, counts = run.structure, run.structure.counts
        self._presses = run.recipe.schedule.asks_for_less(counts)
        if not self._presses:
            return
        parameters = dict(run.module.named_parameters())
        self._evidence = evidence(run.recipe.architecture.layout, parameters, counts, np.random.default_rng())
