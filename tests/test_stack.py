"""Clients side by side in one computation, against each of them alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import random_shard, small_recipe, small_task

from fedhp.data import Shard
from fedhp.data.shard import together
from fedhp.errors import BudgetError, TrainingError
from fedhp.model.building import initial_state, to_module
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PruneConfig
from fedhp.training.batches import MemoryConfig
from fedhp.training.cohort import train_cohort
from fedhp.training.method import Method
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe
from fedhp.training.rows import Row, Rows
from fedhp.training.session import Client
from fedhp.training.trainer import train_locally
from fedhp.training.update import Update

# Layers of fewer than about twenty units are multiplied by other code than wider ones.
WIDE = architecture(ModelConfig("mlp", [64, 40], 24), (1, 8, 8), 10)
SIZES = (61, 61, 48, 33, 32, 20, 9)
SGD = TrainConfig(batch_size=16, local_epochs=2, learning_rate=0.1, device="cpu")
PRUNE = PruneConfig(target_compression=2, start=0.0, end=0.5, cuts=4)


def data(
    sizes=SIZES, num_classes: int = 10, dtype: type = np.uint8, shape: tuple[int, ...] = (1, 8, 8)
) -> list[Shard]:
    """Shards of one data set."""
    whole = random_shard(shape, num_classes, sum(sizes), dtype=dtype)
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [whole.part(part) for part in parts]


def clients(recipe: Recipe, shards: list[Shard], budget: int | None = None) -> list[Client]:
    """Clients of one round, each with a number of its own."""
    state = initial_state(recipe.architecture, 5)
    tasks = [small_task(recipe, shard, budget, state=state) for shard in shards]
    pairs = zip(tasks, shards, strict=True)
    return [Client(replace(task, client=n), shard) for n, (task, shard) in enumerate(pairs)]


def alone(recipe: Recipe, all_clients: list[Client]) -> list[Update]:
    return [train_locally(recipe, one.task, one.shard, held_out=one.held_out) for one in all_clients]


def assert_same(one: Update, other: Update, to_the_bit: bool = True) -> None:
    assert one.client == other.client
    assert one.state.structure == other.state.structure
    assert one.num_examples == other.num_examples
    compare = np.testing.assert_array_equal if to_the_bit else np.testing.assert_allclose
    how = {} if to_the_bit else {"rtol": 1e-4, "atol": 1e-5}
    for name, weights in other.state.weights.items():
        compare(one.state.weights[name], weights, **how, err_msg=name)
    for group, scores in other.state.scores.items():
        compare(one.state.scores[group], scores, **how, err_msg=group)
    theirs = other.statistics
    assert one.statistics.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
    assert one.statistics.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-5)
    for name in ("accuracy", "memory_predicted_bytes", "memory_mean_bytes", "batch_size_first"):
        assert getattr(one.statistics, name) == getattr(theirs, name), name


@pytest.mark.parametrize("stack", [1, 2, 3, 7])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_stack_is_its_clients_alone_to_the_last_bit(stack, momentum):
    """Of a batch that 4 divides and layers wide enough: otherwise see the next."""
    recipe = small_recipe(WIDE, replace(SGD, momentum=momentum))
    who = clients(recipe, data())
    for one, other in zip(train_cohort(recipe, who, stack), alone(recipe, who), strict=True):
        assert isinstance(one, Update)
        assert_same(one, other)


@pytest.mark.parametrize("widths", [[64, 40], [7, 5]])
@pytest.mark.parametrize("stack", [2, 7])
def test_odd_batches_and_narrow_layers_are_the_same_but_for_rounding(stack, widths):
    """Products round by where in memory rows begin, and those of few units are other code."""
    arch = architecture(ModelConfig("mlp", widths, 4), (1, 8, 8), 10)
    recipe = small_recipe(arch, replace(SGD, batch_size=13), PRUNE)
    who = clients(recipe, data())
    for one, other in zip(train_cohort(recipe, who, stack), alone(recipe, who), strict=True):
        assert isinstance(one, Update)
        assert_same(one, other, to_the_bit=False)


@pytest.mark.parametrize("stack", [2, 7])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_clients_of_a_stack_prune_their_own_units(stack, momentum):
    recipe = small_recipe(WIDE, replace(SGD, momentum=momentum), PRUNE)
    who = clients(recipe, data())
    together_, lone = train_cohort(recipe, who, stack), alone(recipe, who)
    for one, other in zip(together_, lone, strict=True):
        assert isinstance(one, Update)
        assert_same(one, other)
    assert len({update.state.structure.digest for update in lone}) == len(lone)
    assert lone[0].state.structure.num_units() < lone[0].assigned.num_units()


WAYS = {
    "adam": {"optimizer": "adam", "learning_rate": 0.003},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.01},
    "weight decay": {"weight_decay": 0.01},
    "FedProx": {"proximal_mu": 0.5},
    "clipping": {"clip_norm": 0.3},
    "masked loss": {"masked_loss": True},
    "smoothed labels": {"label_smoothing": 0.1},
    "a constant rate": {"lr_schedule": "constant", "momentum": 0.0},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_is_the_same_in_a_stack(way):
    """Some clients lack classes; rates differ, as steps are at different places of the schedule."""
    recipe = small_recipe(WIDE, replace(SGD, **WAYS[way]), PRUNE)
    who = clients(recipe, data((61, 48, 9, 8)))
    for one, other in zip(train_cohort(recipe, who, 4), alone(recipe, who), strict=True):
        assert isinstance(one, Update)
        assert_same(one, other, to_the_bit=False)


@pytest.mark.parametrize(
    ("criterion", "regularizer"),
    [(name, "none") for name in ("fisher", "flexrel", "magnitude", "outgoing_l1", "activation", "random")]
    + [("taylor", "group_lasso"), ("taylor", "halo")],
)
def test_every_criterion_judges_alike_in_a_stack(criterion, regularizer):
    prune = replace(PRUNE, criterion=criterion, regularizer=regularizer)
    recipe = small_recipe(WIDE, SGD, prune)
    who = clients(recipe, data((61, 48, 33)))
    for one, other in zip(train_cohort(recipe, who, 3), alone(recipe, who), strict=True):
        assert isinstance(one, Update)
        assert_same(one, other, to_the_bit=False)


def test_a_batch_that_grows_does_so_for_each():
    recipe = small_recipe(WIDE, SGD, PRUNE, MemoryConfig("fill", max_batch=40))
    need = recipe.memory_model(1).training_bytes(WIDE.layout.widths, 16)
    who = clients(recipe, data(), need)
    for one, other in zip(train_cohort(recipe, who, 7), alone(recipe, who), strict=True):
        assert isinstance(one, Update)
        assert_same(one, other)
        assert one.statistics.batch_size_last == other.statistics.batch_size_last
    assert {update.statistics.batch_size_last for update in alone(recipe, who)} == {9, 20, 32, 33, 40}


def test_held_out_samples_are_judged_as_alone():
    recipe = small_recipe(WIDE, SGD, PRUNE)
    who = [replace(one, held_out=random_shard((1, 8, 8), 10, 15)) for one in clients(recipe, data())]
    for one, other in zip(train_cohort(recipe, who, 7), alone(recipe, who), strict=True):
        assert isinstance(one, Update)
        for name in ("num_local_test", "local_accuracy_global", "local_accuracy_personal"):
            assert getattr(one.statistics, name) == getattr(other.statistics, name)


@pytest.mark.parametrize("prune", [PruneConfig(target_compression=1.0), PRUNE])
def test_memory_is_a_devices_whatever_lies_beside_it(prune, monkeypatch):
    """Within what a stack of one measures, and the same for every number of clients at a time."""
    recipe = small_recipe(WIDE, SGD, prune)
    who = clients(recipe, data())
    measured = {}
    for stack in (1, 3, 7):
        monkeypatch.setattr("fedhp.training.meter.PEAKS", peaks := {})
        monkeypatch.setattr("fedhp.training.peaks.PEAKS", peaks)
        updates = train_cohort(recipe, who, stack)
        measured[stack] = [one.statistics.memory_measured_bytes for one in updates]  # type: ignore[union-attr]
    assert measured[1] == measured[3] == measured[7]
    said = [update.statistics.memory_predicted_bytes for update in alone(recipe, who)]
    for seen, most in zip(measured[1], said, strict=True):
        assert 0.95 * most <= seen <= most


def spoilt(shards: list[Shard], which: int) -> list[Shard]:
    """Makes one client's samples no numbers."""
    images = np.full((len(shards[which]), *shards[which].input_shape), np.nan, np.float32)
    labels = np.zeros(len(images), np.int64)
    shards[which] = Shard(images, labels, np.arange(len(images)), num_classes=10)
    return shards


@pytest.mark.parametrize("stack", [1, 7])
def test_who_fails_fails_alone(stack):
    recipe = small_recipe(WIDE, SGD, PRUNE)
    who = clients(recipe, spoilt(data(dtype=np.float32), 2))
    outcomes = train_cohort(recipe, who, stack)
    assert isinstance(outcomes[2], TrainingError)
    assert "the training loss of client 2 in round 1 is nan" in str(outcomes[2])
    without = who[:2] + who[3:]
    others = outcomes[:2] + outcomes[3:]
    for one, other in zip(others, train_cohort(recipe, without, stack), strict=True):
        assert isinstance(one, Update)
        assert isinstance(other, Update)
        assert_same(one, other)


def test_who_has_no_room_fails_alone():
    recipe = small_recipe(WIDE, SGD)
    who = clients(recipe, data())
    small = replace(who[0].task.profile, memory_bytes=1000)
    who[0] = replace(who[0], task=replace(who[0].task, profile=small))
    outcomes = train_cohort(recipe, who, 7)
    assert isinstance(outcomes[0], BudgetError)
    assert all(isinstance(one, Update) for one in outcomes[1:])


class Stops(Method):
    """A method of one's own that fails for one client."""

    def on_gradients(self, run) -> None:
        if run.task.client == 1:
            raise ValueError("it stops here")


def test_a_method_of_ones_own_fails_for_its_client():
    recipe = small_recipe(WIDE, SGD)
    recipe = replace(recipe, kinds=(*recipe.kinds, Stops))
    outcomes = train_cohort(recipe, clients(recipe, data()), 7)
    assert str(outcomes[1]) == "it stops here"
    assert all(isinstance(one, Update) for n, one in enumerate(outcomes) if n != 1)


CONVOLUTIONS = {
    "cnn": (architecture(ModelConfig("cnn", [4, 6, 8], 2), (1, 8, 8), 10), (1, 8, 8)),
    "conv1d": (
        architecture(ModelConfig("conv1d", [16, 24, 16], 1, norm="group"), (1, 4, 16), 10),
        (1, 4, 16),
    ),
}
CONV_WAYS = {
    "momentum": {},
    "plain": {"momentum": 0.0},
    "adam": WAYS["adam"],
    "weight decay": WAYS["weight decay"],
    "masked loss": {"masked_loss": True},
    "smoothed labels": {"label_smoothing": 0.1},
    "clipping": {"clip_norm": 0.3},
}


@pytest.mark.parametrize("way", CONV_WAYS)
@pytest.mark.parametrize("network", CONVOLUTIONS)
def test_convolutions_side_by_side_are_each_alone_but_for_rounding(network, way):
    arch, shape = CONVOLUTIONS[network]
    recipe = small_recipe(arch, replace(SGD, **CONV_WAYS[way]), PRUNE)
    who = clients(recipe, data(shape=shape))
    lone = alone(recipe, who)
    together_ = train_cohort(recipe, who, 7)
    for one, other in zip(together_, lone, strict=True):
        assert isinstance(one, Update)
        assert_same(one, other, to_the_bit=False)
        assert one.statistics.memory_measured_bytes == other.statistics.memory_measured_bytes
    assert lone[0].state.structure.num_units() < lone[0].assigned.num_units()


@pytest.mark.parametrize("network", CONVOLUTIONS)
def test_a_convolutional_client_left_over_is_alone_to_the_last_bit(network):
    arch, shape = CONVOLUTIONS[network]
    recipe = small_recipe(arch, SGD, PRUNE)
    who = clients(recipe, data(shape=shape))
    last = train_cohort(recipe, who, 3)[-1]
    assert isinstance(last, Update)
    assert_same(last, alone(recipe, who)[-1])


@pytest.mark.parametrize("network", CONVOLUTIONS)
def test_a_convolutional_client_that_fails_fails_alone(network):
    arch, shape = CONVOLUTIONS[network]
    recipe = small_recipe(arch, SGD, PRUNE)
    who = clients(recipe, spoilt(data(shape=shape, dtype=np.float32), 2))
    outcomes = train_cohort(recipe, who, 7)
    assert isinstance(outcomes[2], TrainingError)
    without = [*enumerate(outcomes)][:2] + [*enumerate(outcomes)][3:]
    for n, one in without:
        assert isinstance(one, Update)
        assert_same(one, alone(recipe, [who[n]])[0], to_the_bit=False)


def test_many_channels_are_convolved_one_network_after_another():
    """Where a grouped convolution would be slower than single ones: told by shapes, as wide as assigned."""
    arch = architecture(ModelConfig("cnn", [16, 20, 8], 2), (1, 8, 8), 10)
    recipe = small_recipe(arch, SGD, PRUNE)
    who = clients(recipe, data((40, 33)))
    for one, other in zip(train_cohort(recipe, who, 2), alone(recipe, who), strict=True):
        assert isinstance(one, Update)
        assert_same(one, other)


def dropping() -> torch.nn.Module:
    """A dense chain, but for a hook that draws from torch's common stream."""
    chain = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
    )
    chain[2].register_forward_hook(lambda layer, _, out: torch.dropout(out, 0.5, layer.training))
    return chain


def test_what_hooks_of_a_network_draw_is_the_clients_own():
    arch = architecture(ModelConfig(target="test_stack:dropping"), (1, 8, 8), 10, dropping)
    recipe = small_recipe(arch, SGD)
    who = clients(recipe, data((33, 32, 9)))
    for one, other in zip(train_cohort(recipe, who, 3), alone(recipe, who[::-1])[::-1], strict=True):
        assert isinstance(one, Update)
        assert_same(one, other)


class Changing(Method):
    """A method of one's own that says of no two trainings that their steps take the same."""

    stackable = True

    @property
    def key(self):
        return id(self)


def test_a_peak_is_measured_whatever_a_method_says_that_it_depends_on(monkeypatch):
    """Not what lies there between steps alone, the first time that a peak is wanted."""
    monkeypatch.setattr("fedhp.training.meter.PEAKS", peaks := {})
    monkeypatch.setattr("fedhp.training.peaks.PEAKS", peaks)
    recipe = small_recipe(WIDE, SGD)
    who = clients(recipe, data((33, 32)))
    changing = train_cohort(replace(recipe, kinds=(*recipe.kinds, Changing)), who, 2)
    for one, other in zip(changing, train_cohort(recipe, who, 2), strict=True):
        assert isinstance(one, Update)
        assert isinstance(other, Update)
        assert one.statistics.memory_measured_bytes == other.statistics.memory_measured_bytes


class Replaces(Method):
    """A method of one's own that puts other tensors where the parameters' were, against what it says."""

    stackable = True

    def after_step(self, run) -> None:
        for parameter in run.module.parameters():
            parameter.data = parameter.data * 0.9


class Looks(Method):
    """A method of one's own that looks at module and optimiser for the first time at a moment of its own."""

    stackable = True
    moment = ""

    def look(self, moment: str, run) -> None:
        if moment == self.moment:
            state = run.optimizer.state
            assert all(state[p]["momentum_buffer"].shape == p.shape for p in run.module.parameters())
            seen = [state[p]["momentum_buffer"].any() for p in run.module.parameters()]
            assert all(seen) == (moment in ("second step", "end")), moment
            type(self).looked += 1

    def begin(self, run) -> None:
        self.step = 0
        self.look("begin", run)

    def before_step(self, run) -> None:
        self.step += 1
        self.look({1: "first step", 2: "second step"}.get(self.step, ""), run)

    def end(self, run) -> None:
        self.look("end", run)


@pytest.mark.parametrize("moment", ["begin", "first step", "second step", "end"])
@pytest.mark.parametrize("network", ["dense", "grouped"])
def test_a_module_is_the_clients_own_whenever_somebody_looks_at_it(moment, network, monkeypatch):
    monkeypatch.setattr(Looks, "moment", moment)
    monkeypatch.setattr(Looks, "looked", 0, raising=False)
    arch, shape = (WIDE, (1, 8, 8)) if network == "dense" else CONVOLUTIONS["cnn"]
    recipe = small_recipe(arch, SGD)
    who = clients(recipe, data((33, 32, 9), shape=shape))
    looking = train_cohort(replace(recipe, kinds=(*recipe.kinds, Looks)), who, 3)
    assert Looks.looked >= len(who)  # and where a step is rehearsed
    for one, other in zip(looking, train_cohort(recipe, who, 3), strict=True):
        assert isinstance(one, Update)
        assert isinstance(other, Update)
        assert_same(one, other)


def test_tensors_that_a_method_replaces_are_those_that_are_trained():
    recipe = small_recipe(WIDE, SGD)
    recipe = replace(recipe, kinds=(*recipe.kinds, Replaces))
    who = clients(recipe, data())
    for one, other in zip(train_cohort(recipe, who, 7), alone(recipe, who), strict=True):
        assert isinstance(one, Update)
        assert_same(one, other, to_the_bit=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("inputs", ["all", "the same", "others"])
def test_samples_are_gathered_in_one_read_as_one_by_one(dtype, inputs):
    shards, stream = data((9, 7, 5), dtype=dtype), np.random.default_rng(0)
    rows = [stream.integers(0, len(shard), 4) for shard in shards]
    same = np.array([3, 8, 60])
    picked = {"all": [None] * 3, "the same": [same] * 3, "others": [same, same + 1, same + 2]}[inputs]
    images, labels = together(shards, rows, picked)
    for place, shard in enumerate(shards):
        own_images, own_labels = shard.batch(rows[place], picked[place])
        assert torch.equal(images[place], own_images)
        assert torch.equal(labels[place], own_labels)


def test_copies_share_nothing():
    state = initial_state(WIDE, 1)
    module = to_module(WIDE, state)
    rows = Rows(small_recipe(WIDE, SGD).network(state.structure), state, 2)
    first, second = Row(rows, 0).module(), Row(rows, 1).module()
    samples = torch.randn(3, 1, 8, 8)
    assert torch.equal(first(samples), module(samples))
    with torch.no_grad():
        first[1].weight.zero_()
    first[1].register_forward_hook(lambda *_: pytest.fail("the other's"))
    assert torch.equal(second(samples), module(samples))
    assert dict(second.named_parameters()).keys() == dict(module.named_parameters()).keys()


class Halves(Method):
    """A method of one's own that puts other gradients in the place of those that it is shown."""

    stackable = True

    def on_gradients(self, run) -> None:
        for parameter in run.module.parameters():
            parameter.grad = parameter.grad * 0.5


class HalvesInPlace(Halves):
    def on_gradients(self, run) -> None:
        for parameter in run.module.parameters():
            parameter.grad.mul_(0.5)


class TakesAway(Halves):
    def on_gradients(self, run) -> None:
        if run.task.client == 1:
            run.module[1].bias.grad = None


def test_gradients_that_a_method_replaces_are_those_that_count():
    recipe = small_recipe(WIDE, SGD)
    who = clients(recipe, data((33, 32, 9)))
    replaced, changed = (
        train_cohort(replace(recipe, kinds=(*recipe.kinds, kind)), who, 3) for kind in (Halves, HalvesInPlace)
    )
    for one, other in zip(replaced, changed, strict=True):
        assert isinstance(one, Update)
        assert isinstance(other, Update)
        assert_same(one, other)


def test_a_method_that_takes_gradients_away_beside_others_is_told_what_to_do():
    recipe = small_recipe(WIDE, SGD)
    outcomes = train_cohort(replace(recipe, kinds=(*recipe.kinds, TakesAway)), clients(recipe, data()), 7)
    assert [isinstance(one, Update) for one in outcomes] == [n != 1 for n in range(7)]
    assert isinstance(outcomes[1], TrainingError)
    assert "stackable" in str(outcomes[1])


class Scores(Method):
    """A method of one's own whose scores are of another type, or of what is no group."""

    said = None

    def end(self, run):
        return self.said


def test_scores_of_a_methods_own_travel_as_float32_and_of_groups_alone(monkeypatch):
    recipe = small_recipe(WIDE, SGD)
    recipe = replace(recipe, kinds=(*recipe.kinds, Scores))
    (who,) = clients(recipe, data((33,)))
    monkeypatch.setattr(Scores, "said", {"fc1": [1.0] * 40})
    assert train_locally(recipe, who.task, who.shard).state.scores["fc1"].dtype == np.float32
    monkeypatch.setattr(Scores, "said", {"fc9": np.ones(40)})
    with pytest.raises(TrainingError, match="'fc9', which is no group of units: expected"):
        train_locally(recipe, who.task, who.shard)


class FailsBefore(Method):
    """A method of one's own that fails before a client's second step."""

    stackable = True

    def begin(self, run) -> None:
        self.steps = 0

    def before_step(self, run) -> None:
        self.steps += 1
        if run.task.client == 1 and self.steps == 2:
            raise ValueError("no more")


def test_a_client_that_fails_before_a_step_fails_alone():
    recipe = small_recipe(WIDE, SGD)
    who = clients(recipe, data((33, 32, 20)))
    one, failed, other = train_cohort(replace(recipe, kinds=(*recipe.kinds, FailsBefore)), who, 3)
    assert isinstance(failed, ValueError)
    assert isinstance(one, Update)
    assert isinstance(other, Update)
    lone = alone(recipe, who)
    assert_same(one, lone[0])
    assert_same(other, lone[2], to_the_bit=False)
