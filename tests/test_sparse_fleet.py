"""Sparse networks in a fleet: on the wire, reconciled by hand, and whole runs."""

import json
from typing import Any

import numpy as np
import pytest
from cut_short import outcome, snapshots
from factories import update
from flwr.app import Array, ArrayRecord, RecordDict

import fedhp
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.sparse import SparseReconciliation
from fedhp.comparison.cells import Comparison, comparison_cells
from fedhp.comparison.settings import common_settings, differences
from fedhp.errors import ScenarioError, WireError
from fedhp.federation import wire
from fedhp.federation.arrays import write_array
from fedhp.federation.folding import fold, unfold
from fedhp.federation.masks import mask_bytes, read_mask, write_mask
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.layout import Layout
from fedhp.model.sparse_network import sparse_layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records.result import RunResult
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from strategies import MaskIntersection

pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")

# A dense layer of 2 x 3 weights, in the order in which they lie, and a bias.
SHAPES = {"fc.weight": (2, 3), "fc.bias": (2,)}
PLAIN = Layout(widths={}, shapes=SHAPES, axes={"fc.weight": (None, None), "fc.bias": (None,)}, floors={})
LAYOUT = sparse_layout(PLAIN, {"fc.weight": (2, 3)})


def held(*kept: int) -> Structure:
    return Structure({"fc.weight": np.isin(np.arange(6), kept)})


def model(weights: dict[int, float], bias: float = 0.0) -> ModelState:
    """A state by the places of its weights and what they are."""
    arrays = {
        "fc.weight": np.array([weights[place] for place in sorted(weights)], np.float32),
        "fc.bias": np.full(2, bias, np.float32),
    }
    return ModelState(arrays, held(*weights))


def reconciled(*clients: tuple[ModelState, Structure, int]) -> SparseReconciliation:
    """Of clients that were sent parts of a model of weights 0, 1 and 2: what each returns, and was sent."""
    found = SparseReconciliation(LAYOUT, model({0: 1.0, 1: 1.0, 2: 1.0}, bias=5.0))
    for state, assigned, examples in clients:
        found.add(update(state, assigned, examples))
    return found


def places(structure: Structure) -> list[int]:
    return structure.kept("fc.weight").tolist()


THREE = (
    # Two have dropped weight 2: one has grown 3, the other 4; a small device was sent weight 0 alone.
    (model({0: 4.0, 1: -2.0, 3: 0.5}, bias=1.0), held(0, 1, 2), 10),
    (model({0: 1.0, 1: -4.0, 4: -6.0}, bias=3.0), held(0, 1, 2), 30),
    (model({0: 8.0}, bias=2.0), held(0), 20),
)


def test_the_mean_is_over_those_that_hold_a_weight():
    """(10 x 4 + 30 x 1 + 20 x 8) / 60; (10 x -2 + 30 x -4) / 40; 2 is nobody's any more, and stays."""
    mean = reconciled(*THREE).mean().weights
    np.testing.assert_allclose(mean["fc.weight"], [230 / 60, -3.5, 1.0, 0.5, -6.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(mean["fc.bias"], [140 / 60] * 2, rtol=1e-6)


def test_clients_vote_on_what_they_could_have_held():
    """The small device was sent 0 alone, and says nothing of 1; who grew a weight is for it, and alone so."""
    found = reconciled(*THREE)
    assert found.shares()["fc.weight"].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    assert found.keepers["fc.weight"].tolist() == [3, 2, 0, 1, 1, 0]
    assert found.votes() == {}


def test_the_union_is_cut_to_as_many_as_there_were_by_magnitude():
    """Somebody holds 0, 1, 3 and 4, of means 3.8, -3.5, 0.5 and -6: the smallest goes."""
    assert places(reconciled(*THREE).agreed(1e-9, {})) == [0, 1, 4]


def test_too_few_that_pass_are_made_up_by_the_largest_that_any_holds():
    """Of the four that drop 1 or keep it, the examples for it are 40 of 50: with a quorum of 1 it fails.

    0 and 3 pass. Of 1, of mean 2, and 4, of mean -1.5, none passes; 1 is the larger, and nobody holds 2.
    """
    clients = (
        (model({0: 1.0, 1: 2.0, 3: 0.1}), held(0, 1, 2), 40),
        (model({0: 1.0, 3: 0.1, 4: -1.5}), held(0, 1, 4), 10),
        (model({0: 1.0}), held(4), 5),
    )
    found = reconciled(*clients)
    np.testing.assert_allclose(found.shares()["fc.weight"], [1, 0.8, 0, 1, 10 / 15, 0])
    assert places(found.agreed(1.0, {})) == [0, 1, 3]
    assert places(found.agreed(0.7, {})) == [0, 1, 3]
    assert places(found.elected(2, {})) == [0, 1, 3]  # 0 and 3 have two votes and more, 1 is the best of one
    assert places(found.elected(3, {})) == [0, 1, 4]  # 0 has three; 1 and 4 are the largest of the others


def test_a_weight_that_nobody_was_sent_stays_as_it_was():
    """Small devices alone have taken part: 1 and 2 are neither judged nor moved."""
    found = reconciled((model({0: 8.0}), held(0), 20), (model({5: 0.1}), held(0), 20))
    assert found.shares()["fc.weight"].tolist() == [0.5, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert places(found.agreed(1.0, {})) == [1, 2, 5]
    assert places(found.agreed(0.5, {})) == [0, 1, 2]
    np.testing.assert_allclose(found.mean().weights["fc.weight"], [8, 1, 1, 0, 0, 0.1], rtol=1e-6)


@pytest.mark.parametrize(("width", "number", "num_bytes"), [(800, 24, 96), (800, 25, 100), (801, 25, 100)])
def test_places_travel_where_they_are_shorter_than_bits(width, number, num_bytes):
    """100 bytes hold 800 bits: 24 places of four bytes are fewer, 25 are not; of 101 bytes they are."""
    mask = np.zeros(width, bool)
    mask[np.random.default_rng(0).permutation(width)[:number]] = True
    written = write_mask(mask, by_place=True)
    assert len(written.data) - 128 == num_bytes  # NumPy's header
    assert len(written.data) == mask_bytes(width, number, by_place=True)
    np.testing.assert_array_equal(read_mask("structure.w", written, width, by_place=True), mask)


def test_units_travel_as_bits_however_few():
    mask = np.zeros(800, bool)
    written = write_mask(mask, by_place=False)
    assert written.dtype == "uint8"
    assert len(written.data) == mask_bytes(800, 0, by_place=False)


@pytest.mark.parametrize(
    ("forged", "match"),
    [
        (np.array([3, 3], np.int32), "strictly increasing"),
        (np.array([4, 3], np.int32), "strictly increasing"),
        (np.array([3, 800], np.int32), "places from 0 to 799"),
        (np.array([-1, 3], np.int32), "places from 0 to 799"),
        (np.arange(25, dtype=np.int32), "or fewer of places, got 25"),
        (np.arange(4, dtype=np.int32).reshape(2, 2), "expected uint8"),
        (np.arange(4, dtype=np.int64), "expected uint8"),
    ],
)
def test_places_that_are_none_are_refused(forged, match):
    with pytest.raises(WireError, match=f"structure.w.*{match}"):
        read_mask("structure.w", write_array(forged), 800, by_place=True)


def test_places_travel_folded_with_other_arrays():
    """As they do under Flower: of what is folded, the data alone says of which type it is."""
    mask = np.isin(np.arange(800), [3, 700])
    content = RecordDict({"model": ArrayRecord({"structure.w": write_mask(mask, by_place=True)})})
    came = unfold(fold(content)).array_records["model"]["structure.w"]
    np.testing.assert_array_equal(read_mask("structure.w", came, 800, by_place=True), mask)


def test_places_are_as_many_as_they_say():
    written = write_array(np.array([1, 2], np.int32))
    longer = Array(written.dtype, written.shape, written.stype, written.data + b"\0\0\0\5")
    with pytest.raises(WireError, match=r"structure\.w"):
        read_mask("structure.w", longer, 800, by_place=True)


PROFILE = DeviceProfile("phone", None, num_examples=50)


def taken(content):
    return wire.unpack_update(content, LAYOUT, 3, held(0, 1, 2), PROFILE)


def test_an_update_may_hold_other_weights_of_the_same_number():
    sent = update(model({0: 1.0, 3: -2.5, 5: 0.0}, bias=7.0), held(0, 1, 2), client=3)
    content = wire.pack_update(sent)
    assert sorted(content.array_records["model"]) == ["fc.bias", "fc.weight", "structure.fc.weight"]
    got = taken(content)
    assert places(got.state.structure) == [0, 3, 5]
    assert got.state.weights["fc.weight"].tolist() == [1.0, -2.5, 0.0]
    assert wire.update_bytes(content) == wire.state_bytes(LAYOUT, sent.state.structure)


@pytest.mark.parametrize("kept", [(0, 1), (0, 1, 2, 3)])
def test_another_number_of_weights_is_refused(kept):
    content = wire.pack_update(update(model(dict.fromkeys(kept, 1.0)), held(0, 1, 2), client=3))
    with pytest.raises(
        WireError, match=rf"structure\.fc\.weight: {len(kept)} weights, expected 3 as assigned"
    ):
        taken(content)


def test_values_that_are_none_are_refused():
    content = wire.pack_update(update(model({0: 1.0, 1: np.nan, 2: 0.0}), client=3))
    with pytest.raises(WireError, match=r"fc\.weight: holds NaN"):
        taken(content)


def test_a_score_of_weights_is_refused():
    content = wire.pack_update(update(model({0: 1.0, 1: 2.0, 2: 0.0}), client=3))
    arrays = dict(content.array_records["model"])
    content["model"] = ArrayRecord({**arrays, "score.fc.weight": write_array(np.ones(3, np.float32))})
    with pytest.raises(WireError, match=r"unknown \['score\.fc\.weight'\]"):
        taken(content)


class Own(MaskIntersection):
    needs = "updates"

    def reconciliation(self, model):
        return Reconciliation(self.layout, model)


SMALL: dict[str, Any] = {
    "train.method": "rigl",
    "prune.target_compression": 5,
    "model.widths": [40, 20],
    "data.max_train": 300,
    "rounds": 3,
    "fleet": {"num_clients": 6},
    "server.clients_per_round": 3,
    "simulation.num_workers": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("sparse") / "run"
    return fedhp.simulate("quickstart", folder, show=False, **SMALL)


def structures_of(run: RunResult) -> list[dict[str, np.ndarray]]:
    rows = [json.loads(text) for text in run.rounds["structure"]]
    return [
        {group: np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)) for group, bits in row.items()}
        for row in rows
    ]


def test_every_layer_keeps_the_number_of_its_weights_and_moves_some(run):
    first, *_, last = structures_of(run)
    assert {group: mask.sum() for group, mask in first.items()} == {g: m.sum() for g, m in last.items()}
    changes = run.rounds["structure_change"].tolist()
    assert [change > 0 for change in changes[1:]] == [True, True, False]  # until train.sparse.end
    assert run.rounds["compression"].round(2).unique().tolist() == [5.0]


def test_messages_carry_the_weights_that_are_kept_and_their_bits(run):
    """Of full devices: 4 bytes a parameter, a bit for each that there could be, a header of each array."""
    rows = run.clients[run.clients["params_received"] == run.clients["params_received"].max()]
    widths = {"fc1.weight": 64 * 40, "fc2.weight": 40 * 20, "head.weight": 20 * 10}
    bits = sum(width // 8 for width in widths.values())
    expected = 4 * rows["params_received"] + bits + 9 * 128
    assert (rows["bytes_down"] == expected).all()
    assert (rows["bytes_up"] == expected).all()
    assert run.summary["budget_violations"] == 0


def test_the_file_holds_the_dense_network_with_zeros(run):
    module = fedhp.load_model(run.folder)
    last = structures_of(run)[-1]
    for name, mask in last.items():
        weight = module.get_parameter(name).detach().numpy().ravel()
        assert not weight[mask[: len(weight)] == 0].any()
        assert np.count_nonzero(weight) > 0.9 * mask.sum()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_no_bit(run, tmp_path, num_workers):
    values = {**SMALL, "simulation.num_workers": num_workers}
    other = fedhp.simulate("quickstart", tmp_path / "run", show=False, **values)
    assert (other.folder / "model.safetensors").read_bytes() == (
        run.folder / "model.safetensors"
    ).read_bytes()
    assert other.rounds["loss"].tolist() == run.rounds["loss"].tolist()


@pytest.mark.parametrize("optimizer", ["none", "fedadam"])
def test_a_run_that_was_cut_short_goes_on_to_the_same_bits(tmp_path, optimizer):
    with snapshots(tmp_path / "run", tmp_path) as taken:
        fedhp.simulate(
            "quickstart", tmp_path / "run", show=False, **SMALL, **{"strategy.optimizer.name": optimizer}
        )
    folder = next(one for one in taken if (one / "checkpoint-000002.safetensors").is_file())
    fedhp.resume(folder)
    assert outcome(folder) == outcome(tmp_path / "run")


@pytest.mark.parametrize("strategy", ["holders_mean", "feddst", "zero_filled"])
@pytest.mark.parametrize("method", ["set", "static"])
def test_other_strategies_and_methods_hold_the_number_too(tmp_path, strategy, method):
    values = {**SMALL, "train.method": method, "strategy.name": strategy, "rounds": 2}
    run = fedhp.simulate("quickstart", tmp_path / "run", show=False, **values)
    first, *_, last = structures_of(run)
    assert {group: mask.sum() for group, mask in first.items()} == {g: m.sum() for g, m in last.items()}
    assert (run.clients["status"] == "ok").all()
    assert (run.rounds["structure_change"].iloc[1] > 0) == (method == "set")


@pytest.mark.parametrize("values", [{"model.norm": "batch"}, {"strategy.robust.clip": 2.0}])
def test_running_statistics_and_clipped_updates_are_of_all_weights(tmp_path, values):
    fleet = {"num_clients": 6, "classes": [{"name": "any"}]}
    net = {"model.name": "resnet20", "model.widths": [4, 4, 8], "fleet": fleet}
    run = fedhp.simulate(
        "quickstart", tmp_path / "run", show=False, **{**SMALL, **net, "rounds": 1, **values}
    )
    assert (run.clients["status"] == "ok").all()


def test_methods_are_compared_each_with_the_options_that_it_has_a_use_for(tmp_path):
    """The scenario's criterion is DynHP's, and an option given for all is left behind by the others."""
    over = {"train.method": ["dynhp", "rigl", "static"]}
    given = [
        "prune.start=0.1",
        "rounds=1",
        "data.max_train=2000",
        "fleet.num_clients=5",
        "server.clients_per_round=2",
    ]
    cells = comparison_cells(Comparison("fashion_mnist_fleet", ["feddst"], (0,), over, given))
    chosen = [cell.scenario for cell in cells]
    assert {one.train.method: (one.prune.criterion, one.prune.start) for one in chosen} == {
        "dynhp": ("magnitude", 0.1),
        "rigl": ("taylor", 0.05),
        "static": ("taylor", 0.05),
    }
    first, *others = [common_settings(one, list(over)) for one in chosen]
    assert [differences(first, one) for one in others] == [[], []]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"strategy.name": "dense"}, "train.method = rigl has no effect with strategy 'dense'"),
        ({"strategy.robust.rule": "median"}, r"strategy\.robust\.rule = median has no effect"),
        ({"strategy.name": "test_sparse_fleet:Own"}, "reconciliation of its own"),
        ({"prune.target_compression": 60}, r"fc\d\.weight would have none|cannot be reached"),
    ],
)
def test_what_cannot_be_is_refused_before_training(values, match):
    with pytest.raises(ScenarioError, match=match):
        prepare(load_scenario("quickstart", values={**SMALL, **values}))
