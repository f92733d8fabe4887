"""What the user should know of a run, before and as it trains: worth a line each, no reason to refuse it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from statistics import median

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.assignment import budget_for, fit_counts
from fedhp.costs.memory import MemoryModel
from fedhp.data.dataset import Dataset
from fedhp.data.notes import data_notes
from fedhp.records.rows import RoundReport, together
from fedhp.sizes import at_least, format_size
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe

_FEW = 10  # held-out samples, below which an accuracy on them moves in steps of more than a tenth
_ODD = 3.0  # times that a device's values may spread as widely, or as narrowly, as the server's, unnoted
_PATIENCE = 5  # rounds after which a model that learns is better than guessing
_LEAST_PATIENCE = 3  # where a run has fewer
_RISE = 0.02  # of the loss of guessing: how far the training loss may be above the first round's, unnoted
_DRAFT = "; 'fedhp init' writes a scenario with budgets that suit the data"
_NOTHING = 0.01  # of the full model's parameters, below which what is left learns next to nothing


def run_notes(
    dataset: Dataset, recipe: Recipe, memory: MemoryModel, budgets: Mapping[str, int | None]
) -> Iterator[str]:
    """Yields what stands out in the data, and then in what devices can train of the model.

    Args:
        dataset: The data.
        recipe: How to train.
        memory: Its memory model.
        budgets: Budgets in bytes within which the model is pruned, by what names them for the user; None is
            no limit.
    """
    yield from data_notes(dataset)
    yield from small_budgets(recipe, memory, budgets)
    if recipe.architecture.plain is None:  # or nothing is ever cut
        yield from cut_at_the_start(recipe, memory, budgets)


def small_budgets(recipe: Recipe, memory: MemoryModel, budgets: Mapping[str, int | None]) -> Iterator[str]:
    """Says of each budget but the largest that it can train less than half of what pruning aims at.

    Somewhat less is what small devices are for: they train a part. Where nothing is to be pruned, they train
    a part for good: then only those are told that hold next to nothing. Of the largest, `cut_at_the_start`
    tells.
    """
    layout, target = memory.layout, recipe.prune.target_compression
    wanted = layout.num_parameters(recipe.schedule.counts(1.0))
    enough = _NOTHING if target == 1 else 0.5
    is_cut = recipe.architecture.plain is None
    most = max(map(_size, budgets.values()), default=0) if is_cut else None
    for name, budget in budgets.items():
        if budget is None or budget == most:
            continue
        holds = _holds(recipe, memory, budget)
        if holds < enough * wanted:
            yield (
                f"{name}: {format_size(budget)} can train {holds:,} parameters, the target is {wanted:,}; "
                f"raise the budget, to {_enough_for(recipe, memory, wanted)} for all of them, or "
                f"prune.target_compression, or choose a smaller model"
            )


def cut_at_the_start(recipe: Recipe, memory: MemoryModel, budgets: Mapping[str, int | None]) -> Iterator[str]:
    """Says how far the model is cut before it trains, where no budget holds all of it.

    What goes then goes unjudged: by the initial weights, which mean nothing. What the schedule cuts later is
    judged by what it contributes.
    """
    if not budgets or None in budgets.values():
        return
    layout, target = memory.layout, recipe.prune.target_compression
    name, budget = max(
        ((name, size) for name, size in budgets.items() if size is not None), key=itemgetter(1)
    )
    full, wanted = layout.num_parameters(layout.widths), layout.num_parameters(recipe.schedule.counts(1.0))
    holds, middle = _holds(recipe, memory, budget), (full + wanted) // 2
    if holds == full:
        return
    dense = at_least(memory.training_bytes(layout.widths, recipe.train.batch_size))
    largest = ", the largest budget," if len(budgets) > 1 else ""
    draft = "" if recipe.architecture.is_users_own else _DRAFT
    half = f", or to {_enough_for(recipe, memory, middle)} for half of the cut to be judged"
    yield (
        f"the model starts at {full / holds:.2f}x compression, where prune.target_compression is {target:g}: "
        f"{name}{largest} holds {holds:,} of its {full:,} parameters, and what goes at the start "
        f"goes unjudged. Raise it to {dense}, or choose a smaller model, to start from all"
        f"{half if holds < middle < full else ''}{draft}"
    )


def _holds(recipe: Recipe, memory: MemoryModel, budget: int) -> int:
    """Returns how many parameters the part of the model has that a budget can train."""
    layout = memory.layout
    largest = fit_counts(memory, recipe.shape, layout.widths, budget, recipe.train.batch_size)
    return layout.num_parameters(largest)


def _enough_for(recipe: Recipe, memory: MemoryModel, num_parameters: int) -> str:
    return at_least(budget_for(memory, recipe.shape, num_parameters, recipe.train.batch_size))


def tiny_parts(parts: Mapping[str, int], whole: int) -> Iterator[str]:
    """Says which devices train next to nothing of a model that is not pruned.

    Args:
        parts: Parameters that a device trains, by what names it for the user.
        whole: Parameters of the full model.
    """
    tiny = {name: number for name, number in parts.items() if number < _NOTHING * whole}
    if tiny:
        yield (
            f"{', '.join(tiny)}: at most {max(tiny.values()):,} of the full model's {whole:,} parameters can "
            f"be trained there, which learn next to nothing; raise the budget or choose a smaller model"
        )


def few_held_out(numbers: Sequence[int]) -> Iterator[str]:
    """Says that clients hold out too few samples for an accuracy of each.

    Args:
        numbers: Per client, its held-out samples.
    """
    if (middle := median(numbers)) < _FEW:
        yield (
            f"data.local_test: {min(numbers)} to {max(numbers)} samples are held out per client, in the "
            f"median {middle:g}: a client's accuracy on so few is coarse; raise it, or have fewer clients"
        )


def odd_spreads(spreads: Mapping[str, float]) -> Iterator[str]:
    """Says which devices' own values spread so much more, or less, than the server's that they may be wrong.

    Args:
        spreads: Standard deviations of their values, over that of the server's, by what names a device.
    """
    for name, spread in spreads.items():
        if not 1 / _ODD < spread < _ODD:
            yield (
                f"{name}: its values spread {spread:.2g} times as widely as the server's data, where they "
                f"differ most; if they are on another scale, bring them to the server's (with uint8 scaled "
                f"to 0 .. 1)"
            )


class LossNotes:
    """Says, once each, that a model does not learn, and that training makes it worse.

    The training loss is that of the clients that answered, and may rise while the model gets better. So a
    rise is told only where the held-out loss is better neither than guessing nor than before training. Where
    in most rounds nobody who answered held half of the model, the rate is not what to change.

    Args:
        label_counts: Per class, the number of held-out samples.
        train: How the model is trained.
        rounds: How often.
    """

    def __init__(self, label_counts: NDArray[np.int64], train: TrainConfig, rounds: int) -> None:
        shares = label_counts[label_counts > 0] / label_counts.sum()
        self._guessing = -float(shares @ np.log(shares))
        self._patience = max(_LEAST_PATIENCE, min(_PATIENCE, rounds))
        self._best = math.inf
        self._poor = self._guessing  # the held-out loss below which something is learned
        self._first: float | None = None
        self._has_risen = False
        self._params = 0  # of the global model that the next round trains
        self._num_trained = self._num_held = 0  # rounds with answers, and those in which one held half
        clip = "" if train.clip_norm else " or set train.clip_norm=1"
        longer = "run longer, or " if self._patience < _PATIENCE else ""
        self._remedy = f"{longer}lower train.learning_rate ({train.learning_rate:g}){clip}"

    def after(self, report: RoundReport) -> Iterator[str]:
        """Yields what the newest round gives cause to say; of round 0, before training, nothing."""
        before, self._params = self._params, report.params
        if not report.round:
            self._poor = max(self._guessing, report.loss)
            return
        parts = [row.params_received for row in report.clients if row.status == "ok"]
        self._num_trained += bool(parts)
        self._num_held += max(parts, default=-1) >= before / 2
        yield from self._not_learned(report)
        yield from self._risen(report)

    def _advice(self) -> str:
        missed = self._num_trained - self._num_held
        if missed <= self._num_trained / 2:
            return self._remedy
        return (
            f"in {missed} of {self._num_trained} rounds no device that answered held half of the model, most "
            f"of which is hardly trained: raise server.clients_per_round, or budgets"
        )

    def _not_learned(self, report: RoundReport) -> Iterator[str]:
        self._best = min(self._best, report.loss)
        if report.round == self._patience and self._best >= self._guessing > 0:
            yield (
                f"nothing is learned: in {report.round} rounds the held-out loss was {self._best:.2f} at "
                f"best, and that of guessing is {self._guessing:.2f}; {self._advice()}, and check that "
                f"labels and samples belong together"
            )

    def _risen(self, report: RoundReport) -> Iterator[str]:
        loss: float | None = together(report.clients, "train_loss")
        if loss is None or self._has_risen:
            return
        self._first = loss if self._first is None else self._first
        if loss > self._first + _RISE * self._guessing and report.loss >= self._poor:
            self._has_risen = True
            yield (
                f"the training loss rises: {loss:.2f} in round {report.round}, after {self._first:.2f} in "
                f"the first; {self._advice()}"
            )


def _size(budget: int | None) -> float:
    return math.inf if budget is None else budget
