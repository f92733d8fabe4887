"""Robust reconciliation against values computed by hand, SciPy's trimmed mean, and liars in a real fleet."""

from statistics import median_low

import numpy as np
import pytest
from factories import (
    GLOBAL,
    LAYOUT,
    conv_layout,
    dense_layout,
    filled_state,
    random_state,
    structure,
    two_convs_layout,
    update,
)
from scipy.stats import trim_mean

import fedhp
from fedhp.aggregation import spread
from fedhp.aggregation.agreement import agreements
from fedhp.aggregation.options import RobustConfig, StrategyConfig
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.robust import RobustReconciliation, middle
from fedhp.bench.robust import accuracies
from fedhp.errors import ScenarioError
from fedhp.model.axes import AxisRef
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records.load import load_state
from fedhp.run.setup import checked_strategy
from fedhp.scenario.loading import load_scenario
from fedhp.training.method import Method
from fedhp.training.update import Update
from strategies import MaskIntersection

MEDIAN = RobustConfig("median")


def three_replies(config: RobustConfig) -> RobustReconciliation:
    """Of in.weight A holds 1 and 2 (units 0 and 1), B 4 (unit 0), C 3 and 6 (units 0 and 1)"""
    two, one = structure(LAYOUT, a=[0, 1]), structure(LAYOUT, a=[0])
    reconciliation = RobustReconciliation(LAYOUT, GLOBAL, config)
    for kept, in_weight, examples in ((two, [1, 2], 1), (one, [4], 1000), (two, [3, 6], 1)):
        state = filled_state(
            LAYOUT, kept, in_weight=in_weight, in_bias=[0] * len(in_weight), out_weight=[5] * len(in_weight)
        )
        reconciliation.add(update(state, LAYOUT.full(), examples))
    return reconciliation


@pytest.mark.parametrize(
    ("uncovered", "expected"),
    [
        ("keep", [3, 4, 30]),  # of 1, 4 and 3; of 2 and 6; what it was
        ("zero", [3, 4, 0]),
        ("residual", [3, 6, 30]),  # of 2, 20 and 6; of 30 three times
        ("zero_filled", [3, 2, 0]),  # of 2, 0 and 6
    ],
)
def test_the_median_over_holders_computed_by_hand(uncovered, expected):
    assert three_replies(MEDIAN).mean(uncovered).weights["in.weight"].ravel().tolist() == expected


def test_a_third_is_cut_off_at_each_end_of_three_holders_and_nothing_of_two():
    mean = three_replies(RobustConfig("trimmed_mean", trim=0.34)).mean()
    assert mean.weights["in.weight"].ravel().tolist() == [3, 4, 30]
    mean = three_replies(RobustConfig("trimmed_mean", trim=0.2)).mean()
    np.testing.assert_allclose(mean.weights["in.weight"].ravel(), [8 / 3, 4, 30], rtol=1e-6)


@pytest.mark.parametrize("clients", [1, 2, 5, 10])
@pytest.mark.parametrize("trim", [0.1, 0.2, 0.4])
def test_where_all_hold_all_it_is_scipys(clients, trim):
    rows = np.random.default_rng(clients).normal(size=(clients, 7, 4)).astype(np.float32)
    nowhere = np.zeros((7, 4), np.float32)
    found = middle(rows, nowhere, RobustConfig("trimmed_mean", trim=trim))
    np.testing.assert_allclose(found, trim_mean(rows.astype(np.float64), trim, axis=0), rtol=1e-6)
    np.testing.assert_allclose(middle(rows, nowhere, MEDIAN), np.median(rows, axis=0), rtol=1e-6)


@pytest.mark.parametrize("layout", [dense_layout(6), conv_layout(), two_convs_layout()])
@pytest.mark.parametrize("num_bytes", [1, 2**24])
def test_different_structures_are_taken_entry_by_entry(layout, num_bytes, monkeypatch):
    """Beside a second implementation: clients' weights in the full model, NaN where they have none."""
    monkeypatch.setattr(spread, "_BYTES", num_bytes)
    state, updates = random_state(layout, layout.full()), random_updates(layout, 5)
    reconciliation = RobustReconciliation(layout, state, MEDIAN)
    for one in updates:
        reconciliation.add(one)
    mean = reconciliation.mean()
    for name, old in state.weights.items():
        rows = in_the_full_model(layout, name, old, updates)
        held = ~np.isnan(rows).all(axis=0)
        expected = np.where(held, np.nanmedian(np.where(held, rows, 0), axis=0), old)
        np.testing.assert_allclose(mean.weights[name], expected, rtol=1e-6, err_msg=name)


def random_updates(layout: Layout, number: int) -> list[Update]:
    """Updates of different structures, each with the first unit of every group."""
    full, stream = layout.full(), np.random.default_rng(0)
    updates = []
    for seed in range(number):
        masks = {g: stream.random(len(m)) < 0.6 for g, m in full.masks.items()}
        masks = {g: mask | (np.arange(len(mask)) == 0) for g, mask in masks.items()}
        updates.append(update(random_state(layout, Structure(masks), seed + 1), full, 10))
    return updates


def in_the_full_model(layout: Layout, name: str, old: np.ndarray, updates: list[Update]) -> np.ndarray:
    """Clients' weights of a parameter in the full model, NaN where they have none."""
    rows = np.full((len(updates), *old.shape), np.nan, np.float32)
    for row, one in zip(rows, updates, strict=True):
        takes = dict(layout.indices(name, layout.full(), one.state.structure))
        places = [takes.get(axis, np.arange(size)) for axis, size in enumerate(old.shape)]
        row[np.ix_(*places)] = one.state.weights[name]
    return rows


@pytest.mark.parametrize("layout", [dense_layout(6), conv_layout(), two_convs_layout()])
@pytest.mark.parametrize("num_bytes", [1, 2**24])
def test_the_cosine_with_the_median_change_over_what_a_client_holds(layout, num_bytes, monkeypatch):
    """Beside all changes in one row per client."""
    monkeypatch.setattr(spread, "_BYTES", num_bytes)
    state, updates = random_state(layout, layout.full()), random_updates(layout, 5)
    changes = [in_the_full_model(layout, name, old, updates) - old for name, old in state.weights.items()]
    rows = np.concatenate([change.reshape(5, -1) for change in changes], axis=1)
    entries = [entry[~np.isnan(entry)] for entry in rows.T]
    usual = [float(np.median(entry)) if entry.size else 0 for entry in entries]
    for row, cosine in zip(rows, agreements(layout, state, [u.state for u in updates]), strict=True):
        held = ~np.isnan(row)
        one, other = row[held], np.array(usual)[held]
        assert cosine == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), rel=1e-5)


def test_directions_computed_by_hand():
    """Of in.weight alone, changes of (3, 4), (0, 5) and (-3, -4) have the median (0, 4); and one that does
    not move agrees with nobody.
    """
    kept = structure(LAYOUT, a=[0, 1])
    old = GLOBAL.cut(LAYOUT, kept)
    states = [old]
    for change in ((3, 4), (0, 5), (-3, -4)):
        moved = old.weights["in.weight"] + np.array(change, np.float32).reshape(2, 1)
        states.append(ModelState({**old.weights, "in.weight": moved}, kept, old.scores))
    assert agreements(LAYOUT, GLOBAL, states[1:]) == pytest.approx([0.8, 1.0, -0.8])
    assert agreements(LAYOUT, GLOBAL, states[:1]).tolist() == [0]


def test_the_mean_of_nothing_cut_off_is_the_mean_of_equal_clients():
    full = LAYOUT.full()
    plain, trimmed = (
        Reconciliation(LAYOUT, GLOBAL),
        RobustReconciliation(LAYOUT, GLOBAL, RobustConfig("trimmed_mean", trim=0.0)),
    )
    for seed in range(4):
        for one in (plain, trimmed):
            one.add(update(random_state(LAYOUT, full, seed), full, 7))
    for name, weights in plain.mean().weights.items():
        np.testing.assert_allclose(trimmed.mean().weights[name], weights, rtol=1e-6)
    for group, scores in plain.scores().items():
        np.testing.assert_allclose(trimmed.scores()[group], scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rule": "krum"}, "strategy.robust.rule"),
        ({"rule": "trimmed_mean", "trim": 0.5}, r"strategy\.robust\.trim"),
        ({"rule": "median", "trim": 0.1}, "no effect with strategy.robust.rule = median"),
        ({"clip": 0.5}, r"strategy\.robust\.clip"),
    ],
)
def test_what_no_robust_server_can_do_is_refused(values, said):
    with pytest.raises(ScenarioError, match=said):
        StrategyConfig(robust=RobustConfig(**values))


class Own(MaskIntersection):
    needs = "updates"

    def reconciliation(self, model):
        return Reconciliation(self.layout, model)


def test_a_strategy_with_a_reconciliation_of_its_own_has_no_use_for_a_rule():
    own = load_scenario("quickstart", ["strategy.name=test_robust:Own", "strategy.robust.rule=median"])
    with pytest.raises(ScenarioError, match=r"strategy\.robust\.rule: strategy 'test_robust:Own' has no use"):
        checked_strategy(own)


class Lies(Method):
    """Every fifth client sends what it was sent less many times what it has learned."""

    stackable = True
    times = -5

    def end(self, run) -> None:
        if run.task.client % 5 == 0:
            sent = run.task.state.cut(run.recipe.architecture.layout, run.structure).weights
            for name, parameter in run.module.named_parameters():
                old = parameter.new_tensor(sent[name])
                parameter.data.sub_(old).mul_(self.times).add_(old)


def accuracy(**values) -> float:
    run = fedhp.simulate("quickstart", show=False, **{"simulation.num_workers": 0, **values})
    return run.summary["final_accuracy"]


def test_a_fifth_of_liars_ruins_the_mean_and_not_the_trimmed_mean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lies, trimmed = {"train.methods": ["test_robust:Lies"]}, {"strategy.robust.rule": "trimmed_mean"}
    honest = accuracy(**trimmed, rounds=25)
    assert honest > 0.9
    assert accuracy(**trimmed, **lies, rounds=25) > honest - 0.03
    assert accuracy(**lies, rounds=25) < 0.5


class Flips(Lies):
    """Every fifth client sends what it was sent less what it has learned: the right size, the wrong way."""

    times = -1


def test_who_goes_the_other_way_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flips = {"train.methods": ["test_robust:Flips"], "strategy.robust.refuse_opposed": True}
    little = {"rounds": 10, "simulation.num_workers": 0}
    rows = fedhp.simulate("quickstart", show=False, **flips, **little).clients
    for number in range(2, 7):
        failed = rows[(rows["round"] == number) & (rows["status"] == "failed")]
        assert failed["client"].tolist() == [0, 5, 10, 15]
        refusal = r"reply: the change of its weights points against the others' \(cosine -0\.\d\d with"
        assert failed["failure"].str.match(refusal).all()
        assert failed["update_share"].isna().all()


# Ten devices, two of which have room for a part alone of a network with two batch normalisations, so that it
# is asked for its running statistics in every round; and nothing that is refused.
NORMALISED = {
    "model.target": "test_running_statistics:network",
    "rounds": 10,
    "data.partition.name": "iid",
    "fleet.num_clients": 10,
    "fleet.classes": [
        {"name": "large", "memory": "1MiB", "share": 4},
        {"name": "small", "memory": "28KiB", "share": 1},
    ],
    "train.local_epochs": 1,
    "prune.target_compression": 1,
    "simulation.num_workers": 0,
    "server.max_times_median": 0,
    "server.roll_back": False,
}


def test_liars_about_weights_and_running_statistics_ruin_the_mean_and_not_the_trimmed_mean():
    """Two of ten multiply by 1000, in updates and in the statistics that are taken of the new model."""
    rule = {"strategy.robust": {"rule": "trimmed_mean", "trim": 0.3}}  # two of the eight that hold all
    plain, trimmed = (load_scenario("quickstart", values={**NORMALISED, **one}) for one in ({}, rule))
    honest = accuracies(plain, None)[-1]
    assert honest > 0.85
    assert accuracies(plain, 1000.0)[-1] < 0.3
    assert accuracies(trimmed, 1000.0)[-1] > honest - 0.03


def test_a_change_beyond_the_others_is_scaled_down_and_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clipped = {"rounds": 2, "strategy.robust.clip": 1.0, "train.methods": ["test_robust:Lies"]}
    run = fedhp.simulate("quickstart", show=False, **clipped, **{"simulation.num_workers": 0})
    rows = run.clients[run.clients["round"] == 2]
    shares = rows.set_index("client")["update_share"]
    assert (shares[::5] < 1).all()
    assert (shares.drop(index=shares.index[::5]) == 1).all()


def test_in_a_simulation_too_no_client_counts_for_more_than_the_cap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capped = {"rounds": 1, "strategy.robust.cap": 1.5, "simulation.num_workers": 0}
    rows = fedhp.simulate("quickstart", show=False, **capped).clients
    said = rows["num_examples_said"].fillna(rows["num_examples"])
    most = int(1.5 * median_low(said))
    assert said.max() > most
    assert (rows["num_examples"] == said.clip(upper=most)).all()
    assert (rows["num_examples_said"].notna() == (said > most)).all()


def test_workers_change_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"rounds": 2, "strategy.robust": {"rule": "trimmed_mean", "clip": 2.0}}
    runs = [
        fedhp.simulate("quickstart", show=False, **values, **{"simulation.num_workers": number})
        for number in (0, 2)
    ]
    one, other = (load_state(run.folder)[0] for run in runs)
    assert one.structure == other.structure
    for name, weights in one.weights.items():
        np.testing.assert_array_equal(other.weights[name], weights)


def test_a_weight_without_axes_has_a_median_too():
    layout = Layout({"a": 2}, {"slope": (), "w": (2,)}, {"slope": (), "w": (AxisRef("a"),)}, {"a": 1})
    full = layout.full()
    state = ModelState({"slope": np.float32([0])[0:1].reshape(()), "w": np.zeros(2, np.float32)}, full)
    reconciliation = RobustReconciliation(layout, state, MEDIAN)
    for value in (1.0, 2.0, 100.0):
        weights = {"slope": np.array(value, np.float32), "w": np.full(2, value, np.float32)}
        reconciliation.add(update(ModelState(weights, full), full, 1))
    mean = reconciliation.mean().weights
    assert (mean["slope"].shape, float(mean["slope"])) == ((), 2.0)
    assert mean["w"].tolist() == [2, 2]
