"""FedTiny: what is chosen, what moves and what is refused, by hand; and whole runs."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cut_short import outcome, snapshots
from factories import update
from fleets import device
from flwr.app import ArrayRecord, RecordDict
from small_models import random_shard
from torch import nn

import fedhp
from fedhp.aggregation.fedtiny import candidates, least, moved
from fedhp.aggregation.sparse import SparseReconciliation
from fedhp.costs.memory import growth
from fedhp.data import client_shard
from fedhp.errors import ScenarioError, WireError
from fedhp.federation import wire
from fedhp.federation.arrays import write_array
from fedhp.federation.folding import fold, unfold
from fedhp.federation.growing import pack_gradients, unpack_gradients
from fedhp.federation.judging import pack_judgement, unpack_judgement
from fedhp.federation.selection import Selection
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.building import to_module
from fedhp.model.layout import Layout
from fedhp.model.sparse_network import sparse_layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.pruning.moving import Moves
from fedhp.records.result import RunResult
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.seeds import generator
from fedhp.training import judging
from fedhp.training.places import Steepest
from fedhp.training.trainer import train_locally
from fedhp.training.update import Gradients, Judgement, RoundTask

pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")


def network(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A single normalised layer, whose statistics depend on nothing but samples and weights."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(int(np.prod(input_shape)), 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, num_classes),
    )


SMALL: dict[str, Any] = {
    "strategy.name": "fedtiny",
    "strategy.fedtiny": {"candidates": 3, "every": 1, "end": 1.0},
    "model.target": "test_fedtiny:network",
    "prune.target_compression": 4,
    "data.max_train": 300,
    "data.partition.name": "shards",
    "rounds": 3,
    "fleet": {"num_clients": 5, "classes": [{"name": "any"}]},
    "server.clients_per_round": 3,
    "simulation.num_workers": 0,
}
LAYERS = ("1.weight", "4.weight")


# What the server decides


def test_the_smallest_go_and_the_steepest_come():
    """Of 3.0, -0.1, 0.2 and -2.0 two go, 1 and 4; of the others 5 and 2 have the largest gradients."""
    mask = np.array([True, True, False, False, True, False, True])
    weights = np.array([3.0, -0.1, 0.0, 0.0, 0.2, 0.0, -2.0], np.float32)
    gradients = np.array([9.0, 9.0, -1.5, 0.5, 9.0, 4.0, 9.0])
    assert np.flatnonzero(moved(mask, weights, gradients, 2)).tolist() == [0, 2, 5, 6]
    assert np.flatnonzero(moved(mask, weights, gradients, 1)).tolist() == [0, 4, 5, 6]


def test_no_more_go_than_there_are_places_with_gradients():
    mask, weights = np.array([True, True, False, False]), np.array([1.0, 2.0, 0, 0], np.float32)
    assert moved(mask, weights, np.array([0.0, 0, 0, 0]), 2).tolist() == mask.tolist()
    assert moved(mask, weights, np.array([0.0, 0, 0, -3]), 2).tolist() == [False, True, False, True]


FLAT = Layout(widths={}, shapes={"fc.weight": (2, 3)}, axes={"fc.weight": (None, None)}, floors={})
SPARSE = sparse_layout(FLAT, {"fc.weight": (2, 3)})
HELD = Structure({"fc.weight": np.isin(np.arange(6), [0, 1, 2])})


def told(**values: float) -> dict[str, Gradients]:
    places = np.array([int(name[1:]) for name in values], np.int32)
    return {"fc.weight": Gradients(places, np.array([*values.values()], np.float32))}


def test_gradients_count_by_examples_with_their_sign():
    """By 3: 10 x 5 - 30 x 2 = -10; by 4: 30 x 1 = 30; by 5: 10 x 2 = 20. Weight 1, of mean 0.1, goes."""
    state = ModelState({"fc.weight": np.ones(3, np.float32)}, HELD)
    found = SparseReconciliation(SPARSE, state)
    after = replace(state, weights={"fc.weight": np.array([2.0, 0.1, -3.0], np.float32)})
    found.add(replace(update(after, HELD, 10), gradients=told(_3=5.0, _5=2.0)))
    found.add(replace(update(after, HELD, 30), gradients=told(_3=-2.0, _4=1.0)))
    assert found.moved({"fc.weight": 1}).kept("fc.weight").tolist() == [0, 2, 4]
    assert found.moved({"fc.weight": 2}).kept("fc.weight").tolist() == [2, 4, 5]
    assert found.moved({}) == HELD


def test_the_least_weighted_loss_is_chosen_and_who_is_far_off_does_not_count():
    """Means of 10, 30 and 20 samples: (10 x 1 + 30 x 3 + 20 x 2) / 60 = 2.33 and (3 + 60 / 60 + 2) = 2.17."""
    losses = [[1.0, 3.0], [3.0, 2.0], [2.0, 2.0]]
    assert least(losses, [10, 30, 20], factor=0) == 1
    assert least(losses, [30, 10, 20], factor=0) == 0  # 1.67 and 2.5
    assert least([*losses, [2.0, 1e9]], [10, 30, 20, 20], factor=0) == 0
    assert least([*losses, [2.0, 1e9]], [10, 30, 20, 20], factor=100) == 1


def test_layers_take_turns_from_the_last_and_fewer_weights_move_each_time():
    """Six layers in five blocks, the last two together; of 100 held, 0.4 / 2 x (1 + cos(pi x 0.25)) = 34."""
    names = [f"{place}.weight" for place in range(6)]
    layout = sparse_layout(
        Layout({}, dict.fromkeys(names, (20, 10)), dict.fromkeys(names, (None, None)), {}),
        dict.fromkeys(names, (20, 10)),
    )
    counts, moves = dict.fromkeys(names, 100), Moves(every=2, drop=0.4, end=0.8)
    assert moves.after(layout, counts, 4, rounds=20) == {names[3]: 34}
    assert [list(moves.after(layout, counts, number, 40)) for number in range(1, 13)] == [
        *([], names[4:], [], names[3:4], [], names[2:3]),
        *([], names[1:2], [], names[:1], [], names[4:]),
    ]
    assert moves.after(layout, counts, 16, rounds=20) == {}  # at the end
    assert moves.after(layout, dict.fromkeys(names, 190), 4, rounds=20) == {names[3]: 10}  # all that it lacks
    assert Moves(every=0, drop=0.4, end=0.8).after(layout, counts, 4, rounds=20) == {}


def test_candidates_are_the_largest_initial_weights_at_the_target_each():
    arch = prepare(load_scenario("quickstart", values=SMALL)).recipe.architecture
    whole = arch.initial(0)
    found = candidates(arch, 4, 3, seed=0)
    assert len({one.structure.digest for one in found}) == 3
    full, statistics = 64 * 24 + 24 + 2 * 24 + 24 * 10 + 10, 2 * 24
    for one in found:
        assert full / 4 - 3 < one.num_parameters() - statistics <= full / 4
        for layer in LAYERS:
            kept = one.structure.masks[layer]
            assert np.abs(whole[layer][kept]).min() >= np.abs(whole[layer][~kept]).max()
            np.testing.assert_array_equal(one.weights[layer], whole[layer][kept])
    assert arch.start is not None
    assert found[0].structure.counts == arch.start(0).counts  # of the usual densities


# What devices say


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_largest_gradients_are_found_with_their_sign_wherever_blocks_end(blocks):
    gradient = torch.tensor([5.0, -0.5, 3.0, 0.0, -4.0, 9.0, 0.0, 2.0, -7.0])
    taken, search = [5, 8], Steepest(4)
    for start in range(0, 9, 9 // blocks):
        end = start + 9 // blocks
        own = torch.tensor([place - start for place in taken if start <= place < end], dtype=torch.int32)
        search.offer(gradient[start:end].clone(), own, start)
    search.end()
    assert search.gradients().places.tolist() == [0, 2, 4, 7]
    assert search.gradients().values.tolist() == [5.0, 3.0, -4.0, 2.0]


def test_gradients_that_are_0_are_not_told():
    search = Steepest(3)
    search.offer(torch.tensor([0.0, -1.0, 0.0, 8.0]), torch.tensor([3], dtype=torch.int32), 0)
    assert search.gradients().places.tolist() == [1]
    assert search.gradients().values.tolist() == [-1.0]


def test_a_client_tells_the_gradients_of_its_last_full_batch_as_autograd_has_them():
    """At a rate of 0, all steps see the assigned model: of the dense network with zeros, in training mode."""
    still = {"train.learning_rate": 1e-30, "train.batch_size": 20, "train.clip_norm": 0, "train.momentum": 0}
    still["train.local_epochs"] = 2
    recipe = prepare(load_scenario("quickstart", values={**SMALL, **still})).recipe
    arch, shard = recipe.architecture, random_shard((1, 8, 8), 10, 50)
    state = candidates(arch, 4, 1, 0)[0]
    task = RoundTask(1, 3, DeviceProfile("phone", None, 50), state)
    sent = train_locally(recipe, task, shard).gradients
    wanted = recipe.moves.after(arch.layout, state.structure.counts, 1, 3)
    assert list(sent) == list(wanted) == ["4.weight"]

    stream = generator(recipe.seed, "batches", 1, 3)
    _, order = stream.permutation(50), stream.permutation(50)
    dense = dense_of(arch, state).train()
    samples, labels = shard.batch(order[20:40])
    nn.functional.cross_entropy(dense(samples), labels).backward()
    gradient = dense[4].weight.grad.flatten().numpy()
    free = np.flatnonzero(~state.structure.masks["4.weight"])
    expected = np.sort(free[np.argsort(-np.abs(gradient[free]))[: wanted["4.weight"]]])
    np.testing.assert_array_equal(sent["4.weight"].places, expected)
    np.testing.assert_allclose(sent["4.weight"].values, gradient[expected], rtol=1e-3, atol=1e-6)


def test_what_finding_them_takes_is_predicted():
    """Of 2,000 held weights 600 are found at most, in 4 bytes and 4 for the gradient; nothing is placed."""
    layout = sparse_layout(Layout({}, {"w": (100, 100)}, {"w": (None, None)}, {}), {"w": (100, 100)})
    looking, found, placing = growth(layout, {"w": 2000}, 0.3, tells=True)
    assert (looking, found, placing) == (4 + 600 * 20 + 600 * 8, 600 * 8, 0)


# On the wire


def test_gradients_travel_folded_too():
    content = pack_gradients(told(_3=5.0, _5=-2.0))
    for came in (content, unfold(fold(content))):
        (found,) = unpack_gradients(came, HELD, {"fc.weight": 2}).values()
        assert found.places.tolist() == [3, 5]
        assert found.values.tolist() == [5.0, -2.0]
    assert pack_gradients({}) == RecordDict({})


@pytest.mark.parametrize(
    ("sent", "asked", "match"),
    [
        (told(_3=1.0, _4=1.0), {"fc.weight": 1}, "expected 1 places at most"),
        (told(_4=1.0, _3=1.0), {"fc.weight": 2}, "strictly increasing"),
        (told(_3=1.0, _6=1.0), {"fc.weight": 2}, "places from 0 to 5"),
        (told(_2=1.0), {"fc.weight": 2}, "weights that were sent"),
        (told(_3=np.nan), {"fc.weight": 2}, "holds NaN"),
        (told(_3=1e9), {"fc.weight": 2}, "absurdly large"),
        (told(_3=1.0), {}, r"unknown \['gradient.fc.weight'"),
        ({}, {"fc.weight": 2}, r"missing \['gradient.fc.weight'"),
    ],
)
def test_gradients_that_are_none_are_refused(sent, asked, match):
    with pytest.raises(WireError, match=match):
        unpack_gradients(pack_gradients(sent), HELD, asked)


@pytest.mark.parametrize(("loss", "match"), [(np.nan, "loss: expected"), (-1.0, "loss: expected")])
def test_a_loss_that_is_none_is_refused(loss, match):
    assert unpack_judgement(pack_judgement(Judgement(2.5, 7))) == Judgement(2.5, 7)
    with pytest.raises(WireError, match=match):
        unpack_judgement(pack_judgement(Judgement(loss, 7)))
    content = pack_judgement(Judgement(1.0, 7))
    content["loss"] = ArrayRecord({"loss": write_array(np.zeros(2))})
    with pytest.raises(WireError, match="loss: expected float64"):
        unpack_judgement(content)


# Whole runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("fedtiny") / "run"
    return fedhp.simulate("quickstart", folder, show=False, **SMALL)


def structures_of(run: RunResult) -> list[Structure]:
    widths = {"1.weight": 64 * 24, "4.weight": 240}
    rows = [json.loads(text) for text in run.rounds["structure"]]
    return [
        Structure.from_bits(
            {group: np.frombuffer(bytes.fromhex(bits), np.uint8) for group, bits in row.items()}, widths
        )
        for row in rows
    ]


def test_the_chosen_is_the_best_on_the_pooled_samples_by_their_statistics(tmp_path, monkeypatch):
    """By hand: one pass over the samples of the first round's devices makes each candidate's statistics."""
    own = {"server.max_times_median": 0, "rounds": 1, "strategy.fedtiny.every": 0}
    chosen = load_scenario("quickstart", values={**SMALL, **own})
    arch, taken, choose = prepare(chosen).recipe.architecture, [], Selection.chosen
    monkeypatch.setattr(Selection, "chosen", lambda *both: taken.append(choose(*both)) or taken[-1])
    ended = fedhp.simulate(chosen, tmp_path / "run", show=False)
    clients = sorted(ended.clients["client"])
    shards = [client_shard(chosen.data, 5, chosen.seed, client) for client in clients]
    pooled = [shard.batch(np.arange(len(shard))) for shard in shards]
    samples, labels = torch.cat([one for one, _ in pooled]), torch.cat([one for _, one in pooled])
    losses, means = [], []
    for state in candidates(arch, 4, 3, chosen.seed):
        dense = dense_of(arch, state)
        dense[2].momentum = 1.0
        with torch.no_grad():
            dense.train()(samples)
            seen = dense[1](dense[0](samples))
            dense[2].running_var = seen.var(0, unbiased=False)
            means.append(dense[2].running_mean.numpy())
            losses.append(float(nn.functional.cross_entropy(dense.eval()(samples), labels)))
    best = candidates(arch, 4, 3, chosen.seed)[int(np.argmin(losses))]
    assert structures_of(ended)[-1] == best.structure
    assert len({*losses}) == 3
    np.testing.assert_allclose(taken[0].weights["2.running_mean"], means[int(np.argmin(losses))], atol=1e-5)
    assert int(np.argmin(losses)) > 0  # not the one that there would be without a choice


def test_who_fails_is_asked_no_more_and_does_not_count(tmp_path, monkeypatch):
    """Client 0 of three is gone from its first loss on: it was sent a model twice, and the choice is made."""
    judged = judging.judge

    def failing(recipe, task, shard):
        if task.client == 0:
            raise RuntimeError("gone")
        return judged(recipe, task, shard)

    monkeypatch.setattr(judging, "judge", failing)
    ended = fedhp.simulate("quickstart", tmp_path / "run", show=False, **{**SMALL, "rounds": 1})
    down = dict(zip(ended.clients["client"], ended.clients["bytes_down"], strict=True))
    layout = prepare(load_scenario("quickstart", values=SMALL)).strategy.layout
    others = [wire.state_bytes(layout, one.structure) for one in candidates_of_run()[1:]]
    assert down[1] == down[2] == down[0] + 2 * sum(others)
    assert ended.clients["status"].unique().tolist() == ["ok"]


def dense_of(arch: Any, state: ModelState) -> Any:
    shapes = arch.plain.layout.shapes
    weights = {name: array.reshape(shapes[name]) for name, array in state.over(arch.layout).weights.items()}
    return to_module(arch.plain, ModelState(weights, arch.plain.layout.full()))


def test_a_loss_is_that_of_all_of_a_devices_samples():
    recipe = recipe_of(load_scenario("quickstart", values=SMALL), (1, 8, 8), 10, ("static", "top_gradients"))
    state, shard = candidates(recipe.architecture, 4, 1, 0)[0], random_shard((1, 8, 8), 10, 50)
    judged = judging.judge(recipe, RoundTask(1, 3, DeviceProfile("phone", None, 50), state), shard)
    dense = dense_of(recipe.architecture, state).eval()
    samples, labels = shard.batch(np.arange(50))
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(dense(samples), labels))
    assert judged.loss == pytest.approx(expected, rel=1e-5)
    memory = recipe.memory_model(shard.raw_itemsize)
    assert 0 < judged.memory_measured_bytes <= memory.training_bytes(state.structure.counts, 32)


def test_weights_move_in_the_layer_whose_turn_it_is_and_their_number_stays(run):
    _, first, second, third = structures_of(run)
    before = [first, second]
    for was, now in zip(before, [second, third], strict=True):
        assert was.counts == now.counts
    # After round 2 the first layer; after round 3 none, as that is the end.
    changed = [layer for layer in LAYERS if (first.masks[layer] != second.masks[layer]).any()]
    assert changed == ["1.weight"]
    assert second == third
    number = int(0.3 / 2 * (1 + np.cos(np.pi * 2 / 3)) * first.counts["1.weight"])
    assert (first.masks["1.weight"] & ~second.masks["1.weight"]).sum() == number
    assert run.rounds["params"].max() <= (64 * 24 + 24 + 2 * 24 + 24 * 10 + 10) / 4


def test_every_byte_and_the_memory_are_in_the_record(run):
    """Down: six candidates more in round 1; up: three times statistics and losses, and then gradients."""
    first, second, third = (run.clients[run.clients["round"] == number] for number in (1, 2, 3))
    assert (run.clients["status"] == "ok").all()
    layout = prepare(load_scenario("quickstart", values=SMALL)).strategy.layout
    size = wire.state_bytes(layout, structures_of(run)[3])
    assert third["bytes_down"].tolist() == third["bytes_up"].tolist() == [size] * 3
    statistics, loss = 2 * (128 + 4 * 24), 128 + 8
    # A round after which weights move ends with the statistics of the new model.
    assert second["bytes_down"].tolist() == [2 * size] * 3
    number = int(0.3 / 2 * (1 + np.cos(np.pi * 2 / 3)) * structures_of(run)[1].counts["1.weight"])
    most = size + statistics + 2 * 128 + 8 * number
    assert second["bytes_up"].max() <= most
    assert second["bytes_up"].min() > most - 8 * number
    chosen = [candidate.structure for candidate in candidates_of_run()]
    down = 2 * sum(wire.state_bytes(layout, one) for one in chosen)
    assert first["bytes_down"].tolist() == [2 * size + down] * 3
    assert first["bytes_up"].min() > size + 4 * statistics + 3 * loss + 2 * 128
    assert run.summary["budget_violations"] == 0
    assert (run.clients["memory_measured_bytes"] <= run.clients["memory_predicted_bytes"]).all()


def candidates_of_run() -> list[ModelState]:
    arch = prepare(load_scenario("quickstart", values=SMALL)).recipe.architecture
    return candidates(arch, 4, 3, 0)


def test_the_number_of_workers_changes_no_bit(run, tmp_path):
    values = {**SMALL, "simulation.num_workers": 2}
    other = fedhp.simulate("quickstart", tmp_path / "run", show=False, **values)
    weights = [(one.folder / "model.safetensors").read_bytes() for one in (run, other)]
    assert weights[0] == weights[1]
    assert other.rounds["loss"].tolist() == run.rounds["loss"].tolist()
    assert other.clients["bytes_up"].tolist() == run.clients["bytes_up"].tolist()


def test_a_run_that_was_cut_short_goes_on_to_the_same_bits(run, tmp_path):
    """Before the choice, and after weights have moved."""
    with snapshots(tmp_path / "run", tmp_path) as taken:
        fedhp.simulate("quickstart", tmp_path / "run", show=False, **SMALL)
    for number in (1, 3):
        name = f"checkpoint-{number:06d}.safetensors"
        folder = next(one for one in taken if (one / name).is_file())
        fedhp.resume(folder)
        assert outcome(folder) == outcome(tmp_path / "run")


def test_who_cannot_hold_the_network_is_left_out():
    strategy = prepare(load_scenario("quickstart", values=SMALL)).strategy
    least = max(strategy.memory.training_bytes(one.structure.counts, 2) for one in candidates_of_run())
    strategy.enlist([device(0, least - 1), device(1, least), device(2)])
    assert [one.client for one in strategy.devices] == [1, 2]


MLP = {**SMALL, "model": {"target": "", "name": "mlp", "widths": [40, 20]}}


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({**SMALL, "prune.target_compression": 1}, r"set prune\.target_compression above 1"),
        ({**SMALL, "prune.target_compression": 500}, "cannot be reached"),
        ({**SMALL, "train.method": "rigl"}, "train.method = rigl has no effect with strategy 'fedtiny'"),
        ({**SMALL, "strategy.name": "feddst"}, r"strategy\.fedtiny: strategy 'feddst' has no use for it"),
        ({**SMALL, "strategy.quorum": 0.5}, r"strategy\.quorum: strategy 'fedtiny' has no use"),
        ({**SMALL, "strategy.robust.rule": "median"}, r"strategy\.robust\.rule = median has no effect"),
        (SMALL | {"strategy.fedtiny": {"drop": 0.0}}, r"strategy\.fedtiny\.drop must be above 0"),
        (MLP, r"strategy\.fedtiny\.candidates = 3: devices choose by running statistics"),
    ],
)
def test_what_cannot_be_is_refused_before_training(values, match):
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", values=values))


def test_without_batch_normalisation_there_is_no_choice():
    values = {**MLP, "strategy.fedtiny": {"every": 1}}
    strategy: Any = prepare(load_scenario("quickstart", values=values)).strategy
    assert len(strategy._candidates) == 1
