"""Whatever training holds is counted: random networks of all kinds, in every step and every cut.

What is measured are all tensors, storage by storage, which knows nothing of the memory model.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from small_models import random_shard, small_recipe, small_task
from torch import nn

from fedhp.costs.live_tensors import LiveTensors
from fedhp.costs.rehearsal import memory_model
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.evidence import groups_without_scales, groups_without_takers
from fedhp.pruning.options import PruneConfig
from fedhp.pruning.regularizers import REGULARIZERS
from fedhp.training import meter, stack, trainer
from fedhp.training.batches import MemoryConfig
from fedhp.training.options import OPTIMIZERS, TrainConfig
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Joined(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.branch(x)], 1)


def random_network(seed: int, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Convolutions, residual and joined, normalised or not; or a stream that many dense layers write into."""
    rng = np.random.default_rng(seed)
    norm = [nn.BatchNorm2d, lambda width: nn.GroupNorm(width // 2, width), lambda _: nn.Identity()][seed % 3]
    act = rng.choice([nn.ReLU, nn.SiLU, nn.GELU])
    if seed % 4 == 3:
        width = int(rng.integers(6, 20))
        stream = [Residual(nn.Sequential(nn.Linear(width, width), act())) for _ in range(11)]
        stem = nn.Linear(int(np.prod(input_shape)), width)
        return nn.Sequential(nn.Flatten(), stem, *stream, nn.Linear(width, num_classes))
    width = 2 * int(rng.integers(3, 7))
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], width, 3, padding=1), norm(width), act()]
    for _ in range(int(rng.integers(1, 4))):
        branch = [nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), act()]
        kind = int(rng.integers(4))
        if kind == 0:
            layers += [Residual(nn.Sequential(*branch, nn.Conv2d(width, width, 1))), act()]
        elif kind == 1:
            layers.append(Joined(nn.Sequential(*branch)))
            layers += [nn.Conv2d(2 * width, width, 1), act()]
        elif kind == 2:
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1), act()]
        else:
            layers += branch
    layers += [[nn.MaxPool2d(2)], [nn.AdaptiveAvgPool2d(2)], [nn.Dropout(0.3), nn.AvgPool2d(2)]][seed % 3]
    side = 2 if seed % 3 == 1 else input_shape[1] // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, num_classes))


NUM_NETWORKS = 12
for number in range(NUM_NETWORKS):
    globals()[f"network_{number}"] = partial(random_network, number)


def random_recipe(number: int, trial: int) -> Recipe:
    """The trials go through all criteria, optimisers and regularisers; the rest is drawn."""
    rng = np.random.default_rng((number, trial))
    arch = architecture(ModelConfig(target=f"{__name__}:network_{number}"), (2, 6, 6), 3)
    fit = [
        name
        for name, criterion in CRITERIA.items()
        if not (criterion.scales and groups_without_scales(arch.layout))
        and not (criterion.activations and groups_without_takers(arch.layout))
    ]
    pushes = [
        name for name, r in REGULARIZERS.items() if not (r.scales and groups_without_scales(arch.layout))
    ]
    train = TrainConfig(
        local_epochs=1,
        batch_size=int(rng.choice([2, 5, 16])),
        learning_rate=1e-3,
        optimizer=list(OPTIMIZERS)[(number + trial) % 3],
        momentum=float(rng.choice([0, 0.9])),
        proximal_mu=float(rng.choice([0, 0.1])),
        clip_norm=float(rng.choice([0, 1.0])),
        masked_loss=bool(rng.integers(2)),
        device="cpu",
    )
    prune = PruneConfig(
        criterion=fit[(number + 5 * trial) % len(fit)],
        target_compression=float(rng.choice([1.0, 1.5, 1.5, 1.5])),
        start=0.0,
        end=0.7,
        cuts=2,
        regularizer=pushes[(number + trial) % len(pushes)],
    )
    return small_recipe(arch, train, prune, MemoryConfig(str(rng.choice(["fixed", "noise"]))))


class Notes:
    """Runs pieces of a session's work, and notes of each its peak and the bytes that were said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, int, int]] = []
        watching, alone, beside = meter.Meter.watching, trainer.step_alone, stack.Stack.step

        def stepped_alone(session: Any) -> Any:
            with self._noted(session.run, "step", len(session.rows)):
                return alone(session)

        def stepped_beside(stack: Any, members: Any, rates: Any) -> Any:
            (run,) = (member.run for member in members)
            with self._noted(run, "step", run.steps.batch):
                return beside(stack, members, rates)

        @contextmanager
        def watched(its: meter.Meter, key: Any, held: Any) -> Iterator[None]:
            run = held.__self__
            named = isinstance(key[0], str)
            noted = self._noted(run, key[0], run.steps.batch) if named else nullcontext()
            with noted, watching(its, key, held):
                yield

        monkeypatch.setattr(trainer, "step_alone", stepped_alone)
        monkeypatch.setattr(stack.Stack, "step", stepped_beside)
        monkeypatch.setattr(meter.Meter, "watching", watched)

    @contextmanager
    def _noted(self, run: Any, what: str, batch: int) -> Iterator[None]:
        said = run.memory.training_bytes(run.structure.counts, batch)
        with LiveTensors(run.held()) as live:
            yield
        self.seen.append((what, live.peak, said))


@pytest.mark.parametrize("number", range(NUM_NETWORKS))
def test_whatever_training_holds_is_counted(number, monkeypatch):
    """Never more than was said; and the largest step within 5 %, but for 8 bytes of scores per unit."""
    for trial in range(2):
        recipe = random_recipe(number, trial)
        monkeypatch.setattr("fedhp.training.meter.PEAKS", {})
        with monkeypatch.context() as patch:
            notes = Notes(patch)
            shard = random_shard((2, 6, 6), 2, 5 * recipe.train.batch_size)
            task = small_task(recipe, shard, 10**9)
            train_locally(recipe, task, shard)
        for what, peak, said in notes.seen:
            assert peak <= said, (
                f"{what}: {peak:,} bytes where {said:,} were said; {recipe.train}, {recipe.prune}"
            )
        steps = [(peak, said) for what, peak, said in notes.seen if what == "step"]
        units = sum(recipe.architecture.layout.widths.values())
        assert any(said <= 1.05 * peak + 8 * units for peak, said in steps)


class Stream(nn.Module):
    """Thirty layers that write into one stream of eight units, and nothing but them."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(int(np.prod(input_shape)), 8), nn.Linear(8, num_classes)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(30))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_budget_of_exactly_what_is_said_holds_with_many_small_layers(optimizer, clip_norm, monkeypatch):
    """Adam counts the steps of all 64 tensors; that makes 256 bytes more than without."""
    monkeypatch.setattr("fedhp.training.meter.PEAKS", {})
    arch = architecture(ModelConfig(target=f"{__name__}:Stream"), (1, 8, 8), 10)
    train = TrainConfig(
        optimizer=optimizer, batch_size=16, learning_rate=1e-9, clip_norm=clip_norm, device="cpu"
    )
    recipe, shard = small_recipe(arch, train), random_shard((1, 8, 8), 10, 64)
    said = recipe.memory_model(1).training_bytes(arch.layout.widths, 16)
    assert said - memory_model(arch, 2, 1).training_bytes(arch.layout.widths, 16) >= 4 * 64
    with monkeypatch.context() as patch:
        notes = Notes(patch)
        update = train_locally(recipe, small_task(recipe, shard, said), shard)
    assert update.statistics.memory_measured_bytes <= update.statistics.memory_predicted_bytes == said
    assert said - 8 * 8 - 64 <= max(peak for _, peak, _ in notes.seen) <= said


@pytest.mark.parametrize("criterion", ["activation", "apoz", "correlation"])
def test_scores_of_a_stream_that_many_layers_take_in_are_counted(criterion, monkeypatch):
    arch = architecture(ModelConfig(target=f"{__name__}:Stream"), (1, 8, 8), 10)
    prune = PruneConfig(criterion=criterion, target_compression=1.5, start=0.5, end=1.0, cuts=1)
    recipe = small_recipe(arch, TrainConfig(batch_size=2, learning_rate=1e-9, device="cpu"), prune)
    shard = random_shard((1, 8, 8), 10, 40)
    with monkeypatch.context() as patch:
        notes = Notes(patch)
        train_locally(recipe, small_task(recipe, shard, 10**9), shard)
    assert all(peak <= said for _, peak, said in notes.seen)


class Recurrent(nn.Module):
    """One square layer that is used three times, so that parts of its gradient live beside their sum."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(int(np.prod(input_shape)), 32), nn.Linear(32, num_classes)
        self.again = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x.flatten(1)).relu()
        for _ in range(3):
            x = self.again(x).relu()
        return self.head(x)


@pytest.mark.parametrize("compression", [1.0, 1.5])
def test_parts_of_the_gradient_of_a_layer_that_is_used_several_times_are_counted(compression, monkeypatch):
    """They grow with the square of its units: at 32 of them, 4,096 bytes each."""
    arch = architecture(ModelConfig(target=f"{__name__}:Recurrent"), (1, 8, 8), 10)
    prune = PruneConfig(criterion="magnitude", target_compression=compression, start=0.5, end=1.0, cuts=1)
    recipe = small_recipe(arch, TrainConfig(batch_size=16, learning_rate=1e-9, device="cpu"), prune)
    shard = random_shard((1, 8, 8), 10, 64)
    with monkeypatch.context() as patch:
        notes = Notes(patch)
        train_locally(recipe, small_task(recipe, shard, 10**9), shard)
    assert all(peak <= said <= 1.02 * peak for what, peak, said in notes.seen if what == "step")
    assert all(peak <= said for _, peak, said in notes.seen)
