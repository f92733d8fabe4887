"""What is refused before a run begins."""

import sys

import pytest
import torch
from fleets import device

from fedhp.errors import BudgetError, ScenarioError
from fedhp.run.setup import prepare, strategy_class
from fedhp.scenario.loading import load_scenario
from fedhp.training.method import Method
from strategies import Dense, MaskIntersection

pytestmark = pytest.mark.usefixtures("as_the_server")


@pytest.mark.parametrize(
    ("name", "option", "owners"),
    [
        ("heterofl", "quorum=0.5", "mask_intersection, zero_filled"),
        ("mask_intersection", "levels=[0.5]", "heterofl, fedrolex, fjord, all_in_one, federated_dropout"),
        ("dense", "uncovered=zero", "mask_intersection, holders_mean"),
        ("mask_intersection", "min_votes=3", "feddst"),
    ],
)
def test_an_option_that_another_strategy_owns_is_refused(name, option, owners):
    chosen = load_scenario("quickstart", [f"strategy.name={name}", f"strategy.{option}"])
    with pytest.raises(ScenarioError, match=rf"strategy\.{option.partition('=')[0]}: .*'{name}'.*{owners}"):
        prepare(chosen)


@pytest.mark.parametrize("key", ["train.methods=['__main__:Mine']", "model.target=__main__:build"])
def test_what_stands_in_the_script_itself_is_refused_where_workers_would_look_for_it(key, monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "Mine", type("Mine", (Method,), {}), raising=False)
    layers = torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
    monkeypatch.setattr(main, "build", lambda: torch.nn.Sequential(*layers), raising=False)
    with pytest.raises(ScenarioError, match=r"'__main__:.*' is of the script .*num_workers=0"):
        prepare(load_scenario("quickstart", [key, "simulation.num_workers=2"]))
    prepare(load_scenario("quickstart", [key, "simulation.num_workers=0", "prune.target_compression=2"]))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("mask_intersektion", "mask_intersection, holders_mean.*dense.*Did you mean 'mask_intersection'"),
        ("factories:MemoryGrid", "no subclass of FleetStrategy"),
        ("factories:Nothing", "'factories' has no 'Nothing'"),
        ("no_such_module:Own", "'no_such_module'.*Python path"),
    ],
)
def test_an_unknown_strategy_is_refused_and_the_known_ones_named(name, match):
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", values={"strategy.name": name}))


def test_a_class_whose_budget_is_too_small_is_refused_before_the_run():
    fleet = {"fleet.classes": [{"name": "gateway", "memory": "1MiB"}, {"name": "mote", "memory": "512B"}]}
    with pytest.raises(BudgetError, match=r"'mote' \(512B\).*takes [\d,]+ bytes.*budget is 512 bytes"):
        prepare(load_scenario("quickstart", values=fleet))
    dense = prepare(load_scenario("quickstart", values={**fleet, "strategy.name": "dense"}))
    assert isinstance(dense.strategy, Dense)
    # Real devices tell their budgets themselves, and none of them need be of such a class.
    strategy = prepare(load_scenario("quickstart", values=fleet), simulated=False).strategy
    strategy.enlist([device(0, 512), device(1, 2**20)])
    assert [device.client for device in strategy.devices] == [1]


def test_a_budget_that_the_regularisers_own_memory_breaks_is_refused_before_the_run():
    """HALO keeps three more tensors per parameter; strategies that do not prune keep none of them."""
    smallest = prepare(load_scenario("quickstart")).memory.training_bytes(dict.fromkeys(SMALLEST, 2), 1)
    halo = {"fleet.classes": [{"memory": f"{smallest}B"}], "prune.regularizer": "halo"}
    prepare(load_scenario("quickstart", values={**halo, "prune.regularizer": "group_lasso"}))
    with pytest.raises(BudgetError, match=r"prune.regularizer = halo keeps 3 tensors per parameter$"):
        prepare(load_scenario("quickstart", values=halo))
    dense, plain = (
        prepare(load_scenario("quickstart", values={"strategy.name": "dense", "prune.regularizer": name}))
        for name in ("halo", "none")
    )
    widths = dense.recipe.architecture.layout.widths
    assert dense.memory.training_bytes(widths, 8) == plain.memory.training_bytes(widths, 8)


@pytest.mark.parametrize(
    ("strategy", "overrides", "said"),
    [
        ("heterofl", {"prune.regularizer": "halo"}, "smaller model or input"),
        ("heterofl", {"train.proximal_mu": 0.5}, "train.proximal_mu = 0.5 keeps 1 tensor per parameter"),
        (
            "mask_intersection",
            {"train.proximal_mu": 0.5, "prune.regularizer": "halo"},
            "halo keeps 3 tensors per parameter, and train.proximal_mu = 0.5 keeps 1 tensor per parameter",
        ),
    ],
)
def test_a_refused_budget_names_what_this_strategy_keeps_and_nothing_else(strategy, overrides, said):
    values = {"strategy.name": strategy, "fleet.classes": [{"name": "mote", "memory": "512B"}], **overrides}
    with pytest.raises(BudgetError) as refusal:
        prepare(load_scenario("quickstart", values=values))
    assert str(refusal.value).endswith(said)


SMALLEST = ("inputs", "fc1", "fc2")


@pytest.mark.parametrize(
    ("override", "match"),
    [
        (
            "prune.criterion=bn_scale",
            r"bn_scale needs a normalisation layer .* 'inputs', 'fc1', 'fc2' have none",
        ),
        ("prune.regularizer=slimming", r"slimming presses on the scales of normalisation layers"),
    ],
)
def test_what_needs_normalisation_is_refused_before_the_run_where_there_is_none(override, match):
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", [override]))
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", [override, "prune.target_compression=1"]))
    prepare(load_scenario("quickstart", [override, "strategy.name=dense"]))


def test_a_target_beyond_the_floors_is_refused_before_the_run():
    with pytest.raises(ScenarioError, match=r"target_compression = 5000 cannot be reached"):
        prepare(load_scenario("quickstart", ["prune.target_compression=5000"]))


class OfFlower(MaskIntersection):
    def configure_train(self, server_round, arrays, config, grid):
        return []


class OfEarlier(MaskIntersection):
    prunes = True


class OfOneText(MaskIntersection):
    methods = "dynhp"


class OfNothing(MaskIntersection):
    needs = "nothing"


class OfSums(MaskIntersection):
    def reconciliation(self, model):
        return super().reconciliation(model)


class OfAsking(MaskIntersection):
    def ask(self, grid):
        return super().ask(grid)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OfAsking, "overrides ask, .* override sample or assign instead, or say needs = 'updates'"),
        (OfNothing, "needs must be 'sums' or 'updates', got 'nothing'"),
        (OfSums, "overrides reconciliation, .* says needs = 'updates'"),
        (OfFlower, "overrides Flower's configure_train, .*; override sample, assign, survivors or average"),
        (OfEarlier, r"sets prunes; say methods = \(\*MaskIntersection.methods,\) instead"),
        (OfOneText, "methods must be a tuple of names or references, got 'dynhp'"),
    ],
)
def test_a_strategy_of_which_a_run_would_ignore_something_is_refused(kind, said):
    with pytest.raises(ScenarioError, match=f"strategy.name: '.*:{kind.__name__}'.*{said}"):
        strategy_class(f"{__name__}:{kind.__name__}")


def test_a_client_method_is_refused_where_nothing_is_pruned():
    values = {"train.method": "tests:Mine", "strategy.name": "dense"}
    with pytest.raises(ScenarioError, match=r"train.method = tests:Mine has no effect with strategy 'dense'"):
        prepare(load_scenario("quickstart", values=values))
