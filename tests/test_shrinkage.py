"""Shrinkage: the posterior by hand, who keeps what, and that runs go on and do not depend on workers."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from cut_short import outcome, snapshots
from factories import dense_layout, random_state, reply, same_bits, structure, update
from fleets import asked, build, device, scenario

import fedhp
from fedhp.aggregation.personal import Personal, layers_of
from fedhp.aggregation.shrinkage import ShrinkageReconciliation, factor_of
from fedhp.data.shard import Shard
from fedhp.errors import ScenarioError
from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.server_state import ServerState
from fedhp.model.building import initial_state
from fedhp.model.state import ModelState
from fedhp.records import checkpoint
from fedhp.run.setup import strategy_class
from fedhp.scenario.recipes import recipe_of
from fedhp.training.method import ClientRun
from fedhp.training.method_names import HALVES
from fedhp.training.methods.halves import Halves, rounds_of_halves
from fedhp.training.recipe import Steps
from fedhp.training.trainer import train_locally
from fedhp.training.update import RoundTask
from strategies import Dense, Shrinkage

pytestmark = pytest.mark.usefixtures("as_the_server")


# --- the posterior -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("between", "total", "factor"),
    [
        (1.0, 3.0, 0.5),  # s^2 = 2, tau^2 = 1: 2 / (2 + 2 * 1)
        (1.0, 1.0, 0.0),  # both halves say the same: no noise
        (2.0, 3.0, 0.2),  # 1 / (1 + 4)
        (0.0, 3.0, 1.0),
        (-1.0, 3.0, 1.0),
        (0.0, 0.0, 1.0),  # nobody moved
    ],
)
def test_the_factor_of_two_halves(between, total, factor):
    assert factor_of(between, total) == pytest.approx(factor)


LAYOUT = dense_layout()
FULL = LAYOUT.full()
FLEET = random_state(LAYOUT, FULL)


def moved(by: Mapping[str, float]) -> ModelState:
    """The fleet's model, each entry of a layer moved by as much."""
    layers = {name: layer for layer, names in layers_of(LAYOUT.shapes).items() for name in names}
    weights = {name: array + np.float32(by[layers[name]]) for name, array in FLEET.weights.items()}
    return ModelState(weights, FULL)


def after(rounds: Sequence[Sequence[Mapping[str, float]]], first: int = 1) -> Personal:
    """What is known after rounds of halves, in each of which devices 0, 1, ... moved layers so."""
    known = Personal()
    for number, devices in enumerate(rounds, start=first):
        reconciliation = ShrinkageReconciliation(LAYOUT, FLEET, known, number)
        for client, by in enumerate(devices):
            reconciliation.add(update(moved(by), client=client))
        known = reconciliation.personal()
    return known


# Of `in`, nothing is common to both rounds; of `out`, the signs are. Of each entry of it, the products are
# 4 * 2 * 1 = 8, the squares (4 * 4 + 4 * 1) / 2 = 10: noise is 2, and the factor 2 / (2 + 2 * 8).
FIRST = [{"in": 1, "out": 2}, {"in": -1, "out": 2}, {"in": 1, "out": -2}, {"in": -1, "out": -2}]
SECOND = [{"in": 1, "out": 1}, {"in": 1, "out": 1}, {"in": -1, "out": -1}, {"in": -1, "out": -1}]


def test_what_devices_differ_in_for_good_is_told_from_what_they_differ_in_by_chance():
    known = after([FIRST, SECOND])
    assert known.factors == pytest.approx({"in": 1.0, "out": 1 / 9}, abs=1e-6)
    assert known.own(0.5) == {"out"}
    assert known.own(0.1) == known.own(0.0) == frozenset()


def test_what_all_move_alike_is_no_difference():
    """All are moved by 5 more: means over devices are taken off."""
    more = [{layer: by + 5 for layer, by in one.items()} for one in SECOND]
    assert after([FIRST, more]).factors == pytest.approx({"in": 1.0, "out": 1 / 9}, abs=1e-5)


def test_a_device_has_the_posterior_mean_of_its_own_layers_and_the_fleets_others():
    """Of what it returned last: with a factor of 1 / 9, a ninth of the way back to the fleet."""
    known, fleet = after([FIRST, SECOND]), moved({"in": 7, "out": -8})
    model = known.keeping(known.own(0.5)).model_of(2, fleet, known.own(0.5))
    np.testing.assert_array_equal(model.weights["in.weight"], fleet.weights["in.weight"])
    expected = FLEET.weights["out.weight"] + (-8 / 9 - 8 / 9)  # of -1 eight ninths, of -8 one
    np.testing.assert_allclose(model.weights["out.weight"], expected, rtol=1e-5)
    assert known.model_of(2, fleet, frozenset()) is known.model_of(9, fleet, known.own(0.5)) is fleet


def test_two_devices_are_too_few_and_returns_of_long_ago_do_not_count():
    assert after([FIRST[:2], SECOND[:2]]).factors == {}
    assert after([FIRST, [], SECOND]).factors == {}
    assert after([FIRST, SECOND, FIRST[:2]]).factors == after([FIRST, SECOND]).factors


def test_of_a_device_that_returns_a_part_alone_nothing_is_kept():
    reconciliation = ShrinkageReconciliation(LAYOUT, FLEET, after([FIRST]), 2)
    part = structure(LAYOUT, a=[0, 2])
    reconciliation.add(update(FLEET.cut(LAYOUT, part), FULL, client=0))
    assert reconciliation.personal().rounds == {0: 1, 1: 1, 2: 1, 3: 1}
    assert reconciliation.personal().factors == {}


def test_what_is_kept_shrinks_to_the_personal_layers_once_factors_are_known():
    known = after([FIRST, SECOND])
    kept = known.keeping(known.own(0.5))
    assert {name for one in kept.models.values() for name in one} == {"out.weight"}
    later = ShrinkageReconciliation(LAYOUT, FLEET, kept, None)
    later.add(update(moved(FIRST[0]), client=0))
    assert later.personal().factors == known.factors
    np.testing.assert_array_equal(later.personal().models[0]["in.bias"], moved(FIRST[0]).weights["in.bias"])


def test_a_checkpoint_gives_it_back_and_what_does_not_fit_is_refused(tmp_path):
    state = ServerState(FLEET, 2, personal=after([FIRST, SECOND]))
    values = checkpoint.load(checkpoint.save(tmp_path, 3, state.values()))
    read, known = ServerState.of(values, LAYOUT).personal, state.personal
    assert read is not None
    assert known is not None
    assert (read.factors, read.rounds, list(read.models)) == (known.factors, known.rounds, [0, 1, 2, 3])
    for client, weights in read.models.items():
        assert all((weights[name] == array).all() for name, array in known.models[client].items())
    assert ServerState.of({**values, "personal": None}, LAYOUT).personal is None
    with pytest.raises(ValueError, match="factors are to be shares"):
        ServerState.of({**values, "personal": {**values["personal"], "factors": {"in": 2.0}}}, LAYOUT)
    values["personal"]["models"][0][1]["in.bias"] = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"in\.bias of a device does not fit"):
        ServerState.of(values, LAYOUT)


# --- a fleet of two kinds ------------------------------------------------------------------------

SIX = [device(client, num_examples=50) for client in range(6)]


def play(strategy: Shrinkage, server_round: int) -> list[ModelState]:
    """Holds a round; returns what each device was sent.

    Devices move their heads by 1 up or down, by kind, and all else at random: what is learned from opposed
    labels by a network whose other layers have nothing to learn.
    """
    messages = asked(strategy, server_round)
    sent = [wire.unpack_task(message.content, strategy.layout)[1] for message in messages]
    replies = []
    for client, (message, model) in enumerate(zip(messages, sent, strict=True)):
        stream, up = np.random.default_rng([server_round, client]), 1 if client % 2 else -1
        weights = {
            name: array + (up if name.startswith("head") else stream.standard_normal(array.shape))
            for name, array in model.weights.items()
        }
        moved = {name: array.astype(np.float32) for name, array in weights.items()}
        state = ModelState(moved, model.structure, model.scores)
        replies.append(reply(message, update(state, num_examples=50, client=client)))
    strategy.aggregate_train(server_round, replies)
    return sent


def of_devices(devices: list[Device], **values: Any) -> Shrinkage:
    strategy = build(Shrinkage, **values)
    assert isinstance(strategy, Shrinkage)
    strategy.enlist(devices)
    return strategy


def known_to(strategy: Shrinkage) -> Personal:
    assert strategy.server.personal is not None
    return strategy.server.personal


def test_opposed_heads_become_personal_and_what_differs_by_chance_is_shared(caplog):
    """Two rounds of halves of four; a device's own head is then that of its kind, the fleet's the mean."""
    strategy = of_devices(SIX)
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        first, second = play(strategy, 1), play(strategy, 2)
    (note,) = [record.getMessage() for record in caplog.records if record.name == "fedhp.notes"]
    assert "head is personal (factor 0.000)" in note
    assert "fc1 is shared" in note
    for sent in (first, second):
        assert all(same_bits(sent[0], one) for one in sent)
    fleet, third = strategy.state, play(strategy, 3)
    for client, model in enumerate(third):
        differ = {name: model.weights[name] - array for name, array in fleet.weights.items()}
        for name, by in differ.items():
            expected = (1 if client % 2 else -1) if name.startswith("head") else 0
            np.testing.assert_allclose(by, expected, rtol=1e-4)
    kept = known_to(strategy).models.values()
    assert {name for one in kept for name in one} == {"head.weight", "head.bias"}
    whole = wire.state_bytes(strategy.layout, fleet.structure)
    assert [row.bytes_down for row in strategy.outcome.rows] == [whole] * 6


def test_how_far_an_update_goes_is_measured_from_what_its_device_was_sent():
    """After round 3, heads are 2 away from the fleet's; the update moved them by 1."""
    strategy = of_devices(SIX)
    for number in (1, 2, 3):
        play(strategy, number)
    stream, weights = np.random.default_rng([3, 1]), strategy.state.weights
    noise = sum(
        (stream.standard_normal(array.shape) ** 2).sum()
        for name, array in weights.items()
        if not name.startswith("head")
    )
    heads = weights["head.weight"].size + weights["head.bias"].size
    assert strategy.outcome.rows[1].update_norm == pytest.approx(np.sqrt(noise + heads), rel=1e-4)


def test_where_all_is_shared_nothing_is_personal():
    strategy = of_devices(SIX, strategy={"name": "shrinkage", "shared_from": 0.0})
    sent = [play(strategy, number) for number in (1, 2, 3)][2]
    assert all(same_bits(sent[0], one) for one in sent)
    assert not any(known_to(strategy).models.values())


def test_too_few_devices_leave_all_layers_shared_and_it_is_said(caplog):
    strategy = of_devices(SIX[:2])
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        for number in (1, 2):
            play(strategy, number)
    assert "all layers stay shared: too few devices came for two rounds in a row" in caplog.text
    assert strategy.personal_layers == frozenset()


def test_a_round_that_is_undone_leaves_what_was_known():
    strategy = of_devices(SIX)
    play(strategy, 1)
    before = strategy.server
    play(strategy, 2)
    assert strategy.server.personal is not before.personal
    assert strategy.server.undone(before).personal is before.personal


# --- halves --------------------------------------------------------------------------------------


def test_halves_are_a_tenth_of_the_rounds_and_make_up_a_devices_samples():
    assert [rounds_of_halves(rounds) for rounds in (1, 20, 29, 30, 100)] == [2, 2, 2, 3, 10]
    recipe = recipe_of(scenario(), (1, 2, 2), 3, (HALVES,))
    images = np.arange(84, dtype=np.uint8).reshape(21, 1, 2, 2)
    shard = Shard(images, np.arange(21) % 3, np.arange(21), num_classes=3)
    model, steps, taken = initial_state(recipe.architecture, 0), Steps(1, 1.0, 0, None), []
    for number in (1, 2, 3):
        task = RoundTask(number, 4, SIX[4].profile, model)
        run = ClientRun(recipe, task, shard, model.structure, steps)
        Halves().begin(run)
        taken.append(run.shard.batch(np.arange(len(run.shard)), empty=np.empty)[0].ravel().tolist())
    assert [len(one) for one in taken] == [40, 44, 84]
    assert sorted(taken[0] + taken[1]) == taken[2]


def test_a_device_with_a_single_sample_trains_on_it_in_every_round():
    recipe = recipe_of(scenario(), (1, 2, 2), 3, (HALVES,))
    shard = Shard(np.zeros((1, 1, 2, 2), np.uint8), np.zeros(1, np.int64), np.arange(1), num_classes=3)
    task = RoundTask(1, 0, SIX[0].profile, initial_state(recipe.architecture, 0))
    assert train_locally(recipe, task, shard).num_examples == 1


# --- runs ----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "rounds": 3,
    "fleet.num_clients": 4,
    "fleet.classes": [{"name": "any", "share": 1}],
    "data.max_train": 200,
    "data.partition.name": "pathological",
    "data.local_test": 0.2,
    "strategy.name": "shrinkage",
    "simulation.num_workers": 0,
}


def test_a_run_goes_on_to_the_same_end_and_has_local_accuracies(tmp_path):
    """Killed while factors are looked for, and after they were found. Round 3 is on all samples."""
    with snapshots(tmp_path / "run", tmp_path / "killed") as taken:
        run = fedhp.simulate("quickstart", tmp_path / "run", show=False, **SMALL)
    assert run.clients["local_accuracy_personal"].notna().to_numpy().all()
    trained = run.clients.groupby("client")["num_examples"].agg(list)
    assert all(first + second == third for first, second, third in trained)
    begun = {
        max(one.name for one in folder.glob("checkpoint-*")): folder
        for folder in taken
        if any(folder.glob("checkpoint-*"))
    }
    for name in ("checkpoint-000002.safetensors", "checkpoint-000003.safetensors"):
        fedhp.resume(begun[name], show=False)
        assert outcome(begun[name]) == outcome(tmp_path / "run")


@pytest.mark.parametrize("robust", [{"rule": "median"}, {"refuse_opposed": True}])
def test_what_takes_devices_that_differ_for_liars_is_refused(robust):
    (key,) = robust
    with pytest.raises(ScenarioError, match=rf"strategy\.robust\.{key}: .* leave it out"):
        build(Shrinkage, strategy={"name": "shrinkage", "robust": robust})


def test_the_threshold_is_a_share():
    with pytest.raises(ScenarioError, match=r"strategy\.shared_from"):
        scenario(strategy={"name": "shrinkage", "shared_from": 1.5})


class OfSums(Dense):
    """Has models of devices' own, which devices that train together are not sent."""

    def model_of(self, device: Device) -> ModelState:
        return self.state


def test_own_models_of_devices_that_train_together_are_refused():
    with pytest.raises(ScenarioError, match=r"overrides model_of.*needs = 'updates'"):
        strategy_class("test_shrinkage:OfSums")
