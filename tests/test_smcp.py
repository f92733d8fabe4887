"""Soft masks: what they compute against the cut network, what passes them, and the final cut."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from cut_short import outcome
from small_models import ARCHITECTURES, begun, random_shard, small_recipe, small_task, stepped, unsettled
from torch import nn

import fedhp
from fedhp.costs.products import products
from fedhp.errors import ScenarioError
from fedhp.model.building import to_module
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.pruning.affordable import affordable
from fedhp.pruning.options import PruneConfig
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.training.methods import SoftMasks, methods_for
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe

CASES = ("mlp-1-hidden", "mlp-3-hidden", "cnn-2-convs", "conv1d", "lenet5")
SGD = TrainConfig(batch_size=8, learning_rate=0.1, momentum=0.0, device="cpu")


def recipe_of(arch, target: float = 2.0, rounds: int = 4, **prune: Any) -> Recipe:
    """In the second of four rounds the schedule has come half-way to the target, and cuts in the last."""
    config = PruneConfig(target_compression=target, start=0.0, end=0.9, **prune)
    return replace(small_recipe(arch, SGD, config, rounds=rounds), kinds=methods_for([SoftMasks.name]))


def judged(arch) -> ModelState:
    """Of which a fleet thinks differently of all units."""
    draw, widths = np.random.default_rng(1), arch.layout.widths
    scores = {group: draw.exponential(size=width).astype(np.float32) for group, width in widths.items()}
    return replace(unsettled(arch), scores=scores)


def begun_on(arch, state: ModelState | None = None, round_: int = 2, **prune: Any):
    recipe, shard = recipe_of(arch, **prune), random_shard(arch.input_shape, arch.num_classes, 24)
    session = begun(recipe, small_task(recipe, shard, round_=round_, state=state or judged(arch)), shard)
    (method,) = (one for one in session.run.methods if isinstance(one, SoftMasks))
    return session, method


def step(session) -> None:
    stepped(session)
    session.after_step(0.0, 0)


def masked_units(method: SoftMasks) -> Structure:
    return Structure({group: mask.numpy() > 0 for group, mask in method._masks.items()})


# The knapsack


def cost(counts) -> float:
    """Two layers between three groups, by products of widths."""
    return counts["a"] * counts["b"] + counts["b"] * counts["c"]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("allowed", [4, 9, 14, 20])
def test_what_is_kept_is_worth_nearly_as_much_as_the_best_that_a_cost_allows(seed, allowed):
    """Against all 343 numbers of units that could be kept."""
    widths = {"a": 4, "b": 3, "c": 4}
    draw = np.random.default_rng(seed)
    worth = {group: draw.exponential(size=width) for group, width in widths.items()}
    found = affordable(worth, Structure.full(widths), dict.fromkeys(widths, 1), cost, allowed)
    assert cost(found.counts) <= allowed

    def best_of(counts) -> float:
        return sum(np.sort(worth[group])[len(worth[group]) - n :].sum() for group, n in counts.items())

    each = product(*(range(1, width + 1) for width in widths.values()))
    some = [counts for numbers in each if cost(counts := dict(zip(widths, numbers, strict=True))) <= allowed]
    kept = sum(worth[group][mask].sum() for group, mask in found.masks.items())
    assert kept == pytest.approx(best_of(found.counts))
    assert kept >= 0.8 * max(map(best_of, some))


def test_with_a_price_for_each_unit_the_least_for_its_price_goes_first():
    """Units of b cost three each: 3 for it buys less than what the cheap ones are worth."""
    worth = {"a": np.array([1.0, 5.0, 2.0]), "b": np.array([4.0, 9.0])}
    within = Structure({"a": np.array([1, 1, 0, 1]), "b": np.array([1, 1])})

    def price(counts) -> float:
        return counts["a"] + 3 * counts["b"]

    floors = {"a": 1, "b": 1}
    assert affordable(worth, within, floors, price, 9) == within
    assert affordable(worth, within, floors, price, 8).masks["a"].tolist() == [False, True, False, True]
    assert affordable(worth, within, floors, price, 4).counts == {"a": 1, "b": 1}
    assert affordable(worth, within, floors, price, 0).counts == {"a": 1, "b": 1}  # no less than the floors


def test_multiplications_are_counted_by_hand():
    """12 pixels, 7 and 6 units, 3 classes; 9x7 pixels, two 3x3 convolutions at 63 and at 4x3 places."""
    dense, images = (ARCHITECTURES[case] for case in ("mlp-whole-inputs", "cnn-2-convs"))
    assert products(dense, dense.layout.widths) == 12 * 7 + 7 * 6 + 6 * 3
    assert products(dense, {"fc1": 2, "fc2": 5}) == 12 * 2 + 2 * 5 + 5 * 3
    assert products(images, images.layout.widths) == 63 * 9 * 5 + 12 * 9 * 5 * 6 + 2 * 6 * 7 + 7 * 4


# One device


@pytest.mark.parametrize("case", CASES)
def test_a_masked_network_says_what_the_network_without_those_units_says(case):
    arch = ARCHITECTURES[case]
    session, method = begun_on(arch)
    kept = masked_units(method)
    assert kept.num_units() < arch.layout.full().num_units()
    alone = to_module(arch, unsettled(arch).cut(arch.layout, kept)).train()
    whole = session.run.module.train()  # running statistics begin anew with an epoch
    samples = torch.randn(4, *arch.input_shape)
    inputs = arch.kept_inputs(kept)
    theirs = alone(samples if inputs is None else samples.flatten(1)[:, torch.from_numpy(inputs)])
    torch.testing.assert_close(
        whole(samples if inputs is None else samples.flatten(1)), theirs, rtol=1e-3, atol=1e-4
    )


def test_gradients_go_straight_through_masks_and_masked_weights_decay():
    """By plain PyTorch: a step from the masked network's gradients, taken by the weights without masks."""
    arch = ARCHITECTURES["mlp-whole-inputs"]
    session, method = begun_on(arch)
    masks = {group: mask.clone() for group, mask in method._masks.items()}
    assert 0 < masks["fc2"].sum() < 6
    before = {name: torch.from_numpy(array.copy()) for name, array in unsettled(arch).weights.items()}
    forward = {name: tensor.clone().requires_grad_() for name, tensor in before.items()}
    with torch.no_grad():
        forward["fc2.weight"] *= masks["fc1"]
        forward["head.weight"] *= masks["fc2"]
    images, labels = session.run.batch(session.rows)
    hidden = images.flatten(1)
    for name in ("fc1", "fc2"):
        hidden = torch.relu(nn.functional.linear(hidden, forward[f"{name}.weight"], forward[f"{name}.bias"]))
    said = nn.functional.linear(hidden, forward["head.weight"], forward["head.bias"])
    nn.functional.cross_entropy(said, labels).backward()
    grads = {name: one.grad for name, one in forward.items() if one.grad is not None}
    rate = session.before_step()
    step(session)
    parameters = dict(session.run.module.named_parameters())
    for name, group in (("fc2.weight", "fc1"), ("head.weight", "fc2")):
        grad = grads[name] + 2e-4 * before[name] * (1 - masks[group])
        dense = session.run.optimizer.state[parameters[name]]["dense"]
        torch.testing.assert_close(dense, before[name] - rate * grad)
        assert (grads[name][:, masks[group] == 0] != 0).any(), "what is masked learns"
    torch.testing.assert_close(parameters["fc1.bias"].detach(), before["fc1.bias"] - rate * grads["fc1.bias"])


def test_a_masked_unit_comes_back_when_it_shows_that_it_is_worth_it():
    """The fleet thinks least of the very units that the device's own steps show to be worth most."""
    arch = ARCHITECTURES["mlp-whole-inputs"]
    session, method = begun_on(arch, blend=0.0)
    step(session)
    worth = {group: one.numpy().copy() for group, one in method._worth.items()}
    opinion = {group: (one.max() - one + 0.01).astype(np.float32) for group, one in worth.items()}
    state = replace(unsettled(arch), scores=opinion)
    session, method = begun_on(arch, state, blend=0.0)
    first = masked_units(method)
    while session.has_batch:
        step(session)
    later = masked_units(method)
    assert later != first
    assert any((later.masks[group] & ~first.masks[group]).any() for group in first.masks)


def test_what_is_sent_has_no_masks(tmp_path):
    arch = ARCHITECTURES["mlp-whole-inputs"]
    session, method = begun_on(arch)
    columns = session.run.module.get_parameter("head.weight").detach().abs().sum(0)
    assert (columns == 0).any()
    method.end(session.run)
    sent = session.run.weights()["head.weight"]
    np.testing.assert_array_equal(sent, unsettled(arch).weights["head.weight"])


@pytest.mark.parametrize("case", ["mlp-3-hidden", "cnn-2-convs"])
def test_at_the_end_what_is_masked_is_cut_within_the_cost(case):
    arch = ARCHITECTURES[case]
    session, method = begun_on(arch, round_=4, cost="flops", target=2.0)
    while session.has_batch:
        step(session)
    assert session.run.progress >= 0.9
    counts = session.run.structure.counts
    assert products(arch, counts) <= products(arch, arch.layout.widths) / 2
    assert all("dense" not in own for own in session.run.optimizer.state.values())
    assert set(method.end(session.run)) == set(counts)


# A fleet

SMALL: dict[str, Any] = {
    "rounds": 6,
    "model.widths": [24, 16],
    "fleet.num_clients": 4,
    "data.max_train": 300,
    "train.method": "smcp",
    "prune.target_compression": 4,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smcp") / "run"
    return fedhp.simulate("quickstart", folder, show=False, simulation={"num_workers": 0}, **SMALL)


def test_the_server_cuts_once_when_masks_may_change_no_more(run):
    before, after = run.rounds["compression"][:4], run.rounds["compression"][4:]
    assert (before == before[0]).all()
    assert (after == after.iloc[-1]).all()
    assert after.iloc[-1] >= 4


def test_memory_is_counted_and_within_the_budgets(run):
    rows = run.clients
    assert (rows["memory_measured_bytes"] <= rows["memory_predicted_bytes"]).all()
    assert (rows["memory_predicted_bytes"] <= rows["memory_budget_bytes"]).all()


def test_it_does_not_depend_on_workers(run, tmp_path):
    other = fedhp.simulate("quickstart", tmp_path / "two", show=False, simulation={"num_workers": 2}, **SMALL)
    assert outcome(other.folder) == outcome(run.folder)


def test_a_training_on_one_device_goes_on_to_the_same_end(tmp_path):
    from cut_short import snapshots

    one = {key: value for key, value in SMALL.items() if not key.startswith(("fleet", "rounds"))}
    one |= {"train.epochs": 5, "data.max_train": 200}
    with snapshots(tmp_path / "run", tmp_path) as taken:
        fedhp.train("quickstart", tmp_path / "run", **one)
    expected = outcome(tmp_path / "run")
    assert expected["summary"]["compression"] >= 4
    midway = [one for one in taken if list(one.glob("checkpoint-*"))]
    folder = midway[len(midway) // 2]
    fedhp.resume(folder)
    assert outcome(folder) == expected


# Bad input


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"prune.target_compression": 5000}, r"cannot be reached: with model\.floor units per group"),
        (
            {"prune.criterion": "magnitude"},
            r"prune\.criterion = magnitude has no effect with train\.method = smcp",
        ),
        ({"prune.regrow": 0.2}, r"prune\.regrow = 0\.2 has no effect with train\.method = smcp"),
        (
            {"train.method": "dynhp", "prune.cost": "flops"},
            r"prune\.cost = flops has no effect with .* = dynhp",
        ),
        ({"prune.cost": "watts"}, r"prune\.cost"),
    ],
)
def test_what_does_not_fit_is_refused(values, match):
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", values={"train.method": "smcp", **values}), simulated=True)
