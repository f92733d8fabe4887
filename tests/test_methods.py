"""Client methods: when they act, against a plain loop; what they keep, against cuts and budgets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import fancy, random_shard, small_recipe, small_task, watched
from torch import nn

from fedhp.costs.memory import Extras
from fedhp.errors import BudgetError, ScenarioError
from fedhp.federation import wire
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.building import to_module
from fedhp.model.options import ModelConfig
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.pruning.cutting import cut
from fedhp.pruning.options import PruneConfig
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.seeds import generator
from fedhp.training.method import ClientRun, Method
from fedhp.training.method_names import PRUNING, TOP_GRADIENTS
from fedhp.training.methods import METHODS, AllInOne, Clipping, DynHP, Halves, OrderedDropout, methods_for
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally

ARCH = architecture(ModelConfig("mlp", [12, 8]), (1, 6, 6), 5)
SHARD = random_shard((1, 6, 6), 5, 40)
TRAIN = TrainConfig(local_epochs=2, batch_size=16, learning_rate=0.1, lr_schedule="constant", device="cpu")
PRUNE = PruneConfig(target_compression=3, start=0.0, end=0.8, cuts=3)
CALLS: list[str] = []


class Told(Method):
    """Notes when it is told."""

    def begin(self, run: ClientRun) -> None:
        CALLS.append("begin")

    def before_step(self, run: ClientRun) -> None:
        CALLS.append(f"before {run.progress:.2f} {all(p.grad is None for p in run.module.parameters())}")

    def on_gradients(self, run: ClientRun) -> None:
        CALLS.append(f"gradients {all(p.grad is not None for p in run.module.parameters())}")

    def after_step(self, run: ClientRun) -> None:
        CALLS.append(f"after {run.progress:.2f}")

    def end(self, run: ClientRun) -> dict:
        CALLS.append("end")
        return {"fc1": np.arange(run.structure.counts["fc1"], dtype=np.float32)}


class Halved(Method):
    """Keeps the weights as they were, and halves every gradient."""

    @classmethod
    def extras(cls, recipe) -> Extras:
        return Extras(slots=1)

    def begin(self, run: ClientRun) -> None:
        for parameter in run.module.parameters():
            run.optimizer.state[parameter]["kept"] = parameter.detach().clone()

    def on_gradients(self, run: ClientRun) -> None:
        for parameter in run.part[0].parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


class Halving(Method):
    """Cuts the second half of a group's units after the first step, and returns no scores."""

    def after_step(self, run: ClientRun) -> None:
        within = run.structure
        if within == ARCH.layout.full():
            kept = {group: mask.copy() for group, mask in within.masks.items()}
            kept["fc1"][6:] = False
            run.structure = Structure(kept)
            cut(run.module, run.optimizer, ARCH.layout, within, run.structure)


class ByInstance(Method):
    def extras(self, recipe) -> Extras:
        return Extras()


class Hoard(Method):
    """Keeps ten thousand numbers in a list in a dict, which it tells nobody of, and returns nothing."""

    def begin(self, run: ClientRun) -> None:
        self.kept = {"some": [torch.zeros(10_000)]}


class Shaken(Method):
    """Makes noise of each gradient's shape."""

    @classmethod
    def extras(cls, recipe) -> Extras:
        return Extras(temporaries=1)

    def on_gradients(self, run: ClientRun) -> None:
        for parameter in run.part[0].parameters():
            parameter.grad.add_(torch.randn_like(parameter), alpha=1e-3)


def own(*kinds: type[Method]) -> tuple[type[Method], ...]:
    return methods_for(PRUNING, [f"{__name__}:{kind.__name__}" for kind in kinds])


def test_a_method_is_told_of_every_moment_in_turn():
    """40 samples in steps of 16, 16 and 8, twice: the shares of both epochs that are done are those of 80."""
    CALLS.clear()
    recipe = small_recipe(ARCH, TRAIN)
    update = train_locally(replace(recipe, kinds=own(Told)), small_task(recipe, SHARD), SHARD)
    wanted = ["begin"]
    for before, after in zip((0, 16, 32, 40, 56, 72), (16, 32, 40, 56, 72, 80), strict=True):
        wanted += [f"before {before / 80:.2f} True", "gradients True", f"after {after / 80:.2f}"]
    assert [*wanted, "end"] == CALLS
    assert update.state.scores["fc1"].tolist() == list(range(12))


def test_what_a_method_does_to_gradients_is_what_the_optimiser_takes():
    recipe = replace(small_recipe(ARCH, TRAIN), kinds=own(Halved))
    task = small_task(recipe, SHARD)
    update = train_locally(recipe, task, SHARD)
    module = to_module(ARCH, task.state)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    order = generator(recipe.seed, "batches", 1, 5)
    for _ in range(2):
        rows = order.permutation(40)
        for start in (0, 16, 32):
            images, labels = SHARD.batch(rows[start : start + 16])
            optimizer.zero_grad()
            (nn.functional.cross_entropy(module(images), labels) / 2).backward()
            optimizer.step()
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(update.state.weights[name], parameter.detach(), atol=1e-6)


def test_what_a_method_keeps_is_cut_with_the_units_and_counted():
    plain = small_recipe(ARCH, TRAIN, PRUNE)
    recipe = replace(plain, kinds=own(Halved))
    least = [r.memory_model(1).training_bytes(ARCH.layout.widths, 16) for r in (plain, recipe)]
    assert least[1] - least[0] == 4 * ARCH.layout.num_parameters(ARCH.layout.widths)
    task = small_task(recipe, SHARD, least[1])
    update, run = watched(recipe, task, SHARD)
    assert update.state.structure.num_units() < task.state.structure.num_units()
    assert update.statistics.memory_measured_bytes <= least[1]
    kept = {group: update.state.structure.kept(group) for group in ARCH.layout.widths}
    wanted = fancy(dict(task.state.weights), kept)
    for name, parameter in run.module.named_parameters():
        np.testing.assert_array_equal(run.optimizer.state[parameter]["kept"], wanted[name])
    one = [r.memory_model(1).training_bytes(ARCH.layout.widths, 1) for r in (plain, recipe)]
    with pytest.raises(BudgetError, match=f"takes {one[1]:,} bytes"):
        train_locally(recipe, small_task(recipe, SHARD, one[0]), SHARD)


def test_what_a_method_keeps_to_itself_is_measured():
    """Forty thousand bytes more, in a training of its own shapes."""
    peaks = []
    for kinds in ((), own(Hoard)):
        recipe = replace(small_recipe(ARCH, TRAIN), kinds=kinds)
        peaks.append(train_locally(recipe, small_task(recipe, SHARD), SHARD).statistics.memory_measured_bytes)
    assert peaks[1] - peaks[0] == 40_000


@pytest.mark.parametrize("batch", [1, 16])
def test_what_a_method_makes_of_gradients_is_counted(batch):
    train = replace(TRAIN, momentum=0.0, batch_size=batch)
    recipe = replace(small_recipe(ARCH, train), kinds=own(Shaken))
    need = recipe.memory_model(1).training_bytes(ARCH.layout.widths, batch)
    update = train_locally(recipe, small_task(recipe, SHARD, need), SHARD)
    assert 0.9 * need <= update.statistics.memory_measured_bytes <= need


@pytest.mark.parametrize("number", [-1, 0.5, True])
def test_no_method_keeps_less_than_nothing(number):
    with pytest.raises(ValueError, match=f"slots must be a whole number, 0 or more, got {number}"):
        Extras(slots=number)


def test_what_a_method_cuts_comes_back_with_the_scores_of_what_is_left():
    recipe = replace(small_recipe(ARCH, TRAIN), kinds=own(Halving))
    task = small_task(recipe, SHARD)
    update = train_locally(recipe, task, SHARD)
    assert update.state.structure.counts["fc1"] == 6
    for group, scores in task.state.scores.items():
        left = scores[:6] if group == "fc1" else scores
        np.testing.assert_array_equal(update.state.scores[group], left)
    packed = wire.pack_update(update)
    profile = DeviceProfile("phone", None, len(SHARD))
    read = wire.unpack_update(packed, ARCH.layout, 5, update.assigned, profile)
    assert read.state.structure == update.state.structure


def test_own_methods_act_after_penalties_and_before_clipping():
    asked = [*PRUNING, Halves.name, OrderedDropout.name, AllInOne.name, TOP_GRADIENTS]
    kinds = methods_for(asked, [f"{__name__}:Told"])
    assert list(kinds).index(Told) == list(kinds).index(Clipping) - 1
    others = [kind for kind in METHODS.values() if kind is DynHP or not kind.shrinks]
    assert [kind for kind in kinds if kind is not Told] == others


def test_a_strategy_may_bring_a_method_by_reference():
    assert Told in methods_for([f"{__name__}:Told"])
    assert methods_for([f"{__name__}:Told"], [f"{__name__}:Told"]).count(Told) == 1


@pytest.mark.parametrize(
    ("asked", "own", "match"),
    [
        (["dynph"], [], "a strategy's methods.*'dynph'.*'dynhp'"),
        ([f"{__name__}:Tolt"], [], "^a strategy's methods: .* is not to be found"),
        (
            [],
            [f"{__name__}:ByInstance"],
            "train.methods: .*ByInstance': extras is asked .*@classmethod",
        ),
        ([], ["dynhp"], "train.methods: a reference reads 'module:attribute', got 'dynhp'"),
        ([], [f"{__name__}:ARCH"], f"train.methods: '{__name__}:ARCH' is no subclass of"),
        ([], [f"{__name__}:Tolt"], f"'{__name__}:Tolt' is not to be found.*Did you mean 'Told'"),
    ],
)
def test_what_is_no_method_is_refused_by_name(asked, own, match):
    with pytest.raises(ScenarioError, match=match):
        methods_for(asked, own)


class Shrinking(Told):
    shrinks = True


def test_another_method_takes_the_place_of_dynhp():
    chosen = load_scenario("quickstart", values={"train.method": f"{__name__}:Shrinking"})
    kinds = recipe_of(chosen, (1, 8, 8), 10).kinds
    assert DynHP not in kinds
    assert Shrinking in kinds
    assert DynHP not in recipe_of(chosen, (1, 8, 8), 10, ()).kinds
    assert Shrinking not in recipe_of(chosen, (1, 8, 8), 10, ()).kinds  # of a strategy that does not prune


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("dynph", "train.method must be one of dynhp.*got 'dynph'.*Did you mean 'dynhp'"),
        ("clipping", "train.method must be one of"),  # which shrinks nothing
        (f"{__name__}:Told", f"train.method: '{__name__}:Told' does not say .*train.methods"),
        (f"{__name__}:Tolt", f"train.method: '{__name__}:Tolt' is not to be found.*Did you mean 'Told'"),
    ],
)
def test_what_shrinks_nothing_is_refused_in_the_place_of_dynhp(method, match):
    with pytest.raises(ScenarioError, match=match):
        recipe_of(load_scenario("quickstart", values={"train.method": method}), (1, 8, 8), 10)


def test_only_what_has_something_to_do_is_at_work():
    def at_work(**train) -> list[str]:
        return [kind.name for kind in small_recipe(ARCH, replace(TRAIN, **train)).methods]

    assert at_work() == []
    assert at_work(proximal_mu=0.1) == ["fedprox"]
    assert at_work(masked_loss=True, clip_norm=1.0) == ["masked_loss", "clipping"]
    assert [kind.name for kind in small_recipe(ARCH, TRAIN, PRUNE).methods] == ["dynhp"]
