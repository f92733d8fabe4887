"""What networks draw: by the seed alone, whoever draws before, beside and after."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import random_shard, small_recipe, small_task
from torch import nn
from torch.nn import functional

import fedhp
from fedhp.model.building import initial_state
from fedhp.model.draws import drawing
from fedhp.model.options import ModelConfig
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.records import load_state
from fedhp.training.evaluation import evaluate
from fedhp.training.method import ClientRun, Method
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally

SHAPE = (1, 4, 4)


def drop_out(input_shape, num_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, num_classes)
    )


def drop_channels(input_shape, num_classes):
    convolution = nn.Conv2d(input_shape[0], 6, 3, padding=1)
    rest = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)]
    return nn.Sequential(convolution, nn.ReLU(), nn.Dropout2d(0.5), *rest)


class Stream(nn.Module):
    """A residual network whose branch is added only to some samples: stochastic depth."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x.flatten(1))
        return self.head(x + functional.dropout(self.branch(x), 0.5, self.training).relu())


class Always(nn.Module):
    """Drops in evaluation too, as ``functional.dropout`` does by default."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 8), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.dropout(self.body(x.flatten(1)).relu()))


def trained(network: str, seed: int = 3, round_: int = 1) -> ModelState:
    arch = architecture(ModelConfig(target=f"{__name__}:{network}"), SHAPE, 3)
    train = TrainConfig(local_epochs=2, batch_size=8, device="cpu")
    prune = PruneConfig(target_compression=2, start=0.1, end=0.6, cuts=3)
    recipe, shard = small_recipe(arch, train, prune, seed=seed), random_shard(SHAPE, 3, 40)
    task = small_task(recipe, shard, round_=round_, state=initial_state(arch, 0))
    return train_locally(recipe, task, shard).state


def same(one: ModelState, other: ModelState) -> bool:
    return one.structure == other.structure and all(
        np.array_equal(one.weights[name], other.weights[name]) for name in other.weights
    )


@pytest.mark.parametrize("network", ["drop_out", "drop_channels", "Stream", "Always"])
def test_a_seed_gives_one_result_whatever_was_drawn_before(network, monkeypatch):
    """The first training rehearses and measures its steps, the second one does neither."""
    monkeypatch.setattr("fedhp.training.meter.PEAKS", {})
    first = trained(network)
    torch.rand(7)
    assert same(trained(network), first)
    assert not same(trained(network, seed=4), first)
    assert not same(trained(network, round_=2), first)


def test_rounds_and_epochs_draw_anew():
    """Else the same samples' units would be dropped in every epoch."""
    seen = []
    arch = architecture(ModelConfig(target=f"{__name__}:drop_out"), SHAPE, 3)
    recipe, shard = small_recipe(arch, TrainConfig(local_epochs=3, device="cpu")), random_shard(SHAPE, 3, 8)

    class Hooked(Method):
        def begin(self, run: ClientRun) -> None:
            dropout = next(m for m in run.module.modules() if isinstance(m, nn.Dropout))
            dropout.register_forward_hook(lambda _m, _i, output: seen.append(output == 0))

    train_locally(replace(recipe, kinds=(Hooked,)), small_task(recipe, shard), shard)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_an_evaluation_that_draws_draws_the_same_each_time(monkeypatch):
    """With other cores too: threads would draw in the order in which they come."""
    arch = architecture(ModelConfig(target=f"{__name__}:Always"), SHAPE, 3)
    state, shard = initial_state(arch, 0), random_shard(SHAPE, 3, 50)
    first = evaluate(arch, state, shard, batch=5)
    torch.rand(7)
    monkeypatch.setattr("fedhp.training.evaluation.cores", lambda: 4)
    monkeypatch.setattr("fedhp.training.evaluation.ThreadPoolExecutor.map", None)
    assert evaluate(arch, state, shard, batch=5) == first


def test_nobody_elses_draws_shift():
    def rest() -> tuple[float, float, float]:
        return float(torch.rand(())), np.random.rand(), random.random()

    def begin() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    begin()
    wanted = rest()
    begin()
    trained("drop_out")
    assert rest() == wanted
    begin()
    with drawing(1, "cpu"):
        drawn = rest()
    assert rest() == wanted
    with drawing(1, "cpu"):
        assert rest() == drawn


def test_runs_of_one_seed_end_with_the_same_weights(tmp_path):
    small = {"fleet.num_clients": 4, "simulation.num_workers": 0, "prune.target_compression": 2, "rounds": 2}
    network = {"model.target": f"{__name__}:digits"}
    runs = [fedhp.simulate("quickstart", tmp_path / n, show=False, **small, **network) for n in "ab"]
    one, other = (fedhp.load_model(tmp_path / n, trust_target=True).state_dict() for n in "ab")
    assert [run.rounds.accuracy.tolist() for run in runs[1:]] == [runs[0].rounds.accuracy.tolist()]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def digits(input_shape, num_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, num_classes)
    )


def test_runs_in_two_threads_draw_as_alone(tmp_path):
    """The generators are the whole process's: two runs that drew by turns would each see the other's."""

    def weights(name: str) -> dict:
        small = {"train.epochs": 2, "data.max_train": 100, "prune.target_compression": 2}
        network = {"model.target": f"{__name__}:digits"}
        run = fedhp.train("quickstart", tmp_path / name, **small, **network)
        return load_state(run.folder)[0].weights

    alone = weights("alone")
    with ThreadPoolExecutor(2) as pool:
        beside = list(pool.map(weights, ("one", "two")))
    for own in beside:
        assert all(np.array_equal(own[name], array) for name, array in alone.items())
