"""The server's optimisers: by hand, against Flower's own strategies, and across a cut."""

from typing import Any

import numpy as np
import pytest
from factories import conv_layout, dense_layout, random_state, reply, structure, update
from fleets import asked, enlisted
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from small_models import ARCHITECTURES

from fedhp.aggregation.options import ServerOptimizerConfig
from fedhp.aggregation.server_optimizer import cut, step
from fedhp.errors import ScenarioError
from fedhp.model.building import initial_state
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.simulation.identity import acting_as
from strategies import Dense

NAMES = ("fedavgm", "fedadam", "fedyogi")


def steps(config: ServerOptimizerConfig, layout: Layout, before: ModelState, means) -> list[ModelState]:
    states, moments = [before], ()
    for number, mean in enumerate(means, start=1):
        after, moments = step(config, layout, number, states[-1], mean, moments)
        states.append(after)
    return states[1:]


def constant(layout: Layout, value: float, kept: Structure | None = None) -> ModelState:
    kept = kept or layout.full()
    shapes = {name: layout.shape(name, kept.counts) for name in layout.shapes}
    return ModelState({name: np.full(shape, value, np.float32) for name, shape in shapes.items()}, kept)


def values(state: ModelState) -> set[float]:
    return {w for array in state.weights.values() for w in array.ravel().tolist()}


def test_without_an_optimiser_the_mean_is_the_model():
    layout = dense_layout(3)
    mean = constant(layout, 2)
    assert step(ServerOptimizerConfig(), layout, 1, constant(layout, 1), mean, ()) == (mean, ())


def test_momentum_by_hand():
    """From 1 the mean 2 gives a step of 1: to 2. Then the mean 2 gives none, and .5 of the last one: 2.5."""
    layout = dense_layout(3)
    config = ServerOptimizerConfig("fedavgm", learning_rate=1.0, momentum=0.5)
    first, second = steps(config, layout, constant(layout, 1), [constant(layout, 2)] * 2)
    assert values(first) == {2.0}
    assert values(second) == {2.5}


def test_adam_by_hand():
    """Flower's: delta 1, m = .1, v = .01; its rate for round 1 is eta sqrt(1 - .99^2) / (1 - .9^2)."""
    layout = dense_layout(3)
    config = ServerOptimizerConfig("fedadam", learning_rate=0.1, momentum=0.9, beta_2=0.99, tau=0.001)
    (after,) = steps(config, layout, constant(layout, 1), [constant(layout, 2)])
    rate = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    expected = 1 + rate * 0.1 / (np.sqrt(0.01) + 0.001)
    np.testing.assert_allclose(after.weights["in.weight"], expected, rtol=1e-6)


def test_yogi_by_hand():
    """Delta 2: m = .2, v = .04. Then delta 1, which is more than v: v grows by .01, and m = .28."""
    layout = dense_layout(3)
    config = ServerOptimizerConfig("fedyogi", learning_rate=0.1, momentum=0.9, beta_2=0.99, tau=0.001)
    first = 1 + 0.1 * 0.2 / (np.sqrt(0.04) + 0.001)
    second = first + 0.1 * 0.28 / (np.sqrt(0.05) + 0.001)
    got = steps(config, layout, constant(layout, 1), [constant(layout, 3), constant(layout, first + 1)])
    np.testing.assert_allclose(got[0].weights["in.weight"], first, rtol=1e-6)
    np.testing.assert_allclose(got[1].weights["in.weight"], second, rtol=1e-6)


def flowers(config: ServerOptimizerConfig) -> Any:
    if config.name == "fedavgm":
        return FedAvgM(server_learning_rate=config.rate, server_momentum=config.momentum)
    kind = {"fedadam": FedAdam, "fedyogi": FedYogi}[config.name]
    return kind(eta=config.rate, beta_1=config.momentum, beta_2=config.beta_2, tau=config.tau)


def record(weights) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in weights.items()})


def flowers_step(flower, server_round: int, mean: ModelState) -> dict[str, np.ndarray]:
    """Flower's strategy is told of one reply, the mean."""
    content = RecordDict({"arrays": record(mean.weights), "metrics": MetricRecord({"num-examples": 1})})
    with acting_as(0):
        message = Message(content, dst_node_id=0, message_type=MessageType.TRAIN)
        arrays, _ = flower.aggregate_train(server_round, [message])
    return {name: array.numpy().astype(np.float32) for name, array in arrays.items()}


@pytest.mark.parametrize("settings", [{}, {"learning_rate": 0.3, "momentum": 0.0}, {"momentum": 0.5}])
@pytest.mark.parametrize("name", NAMES)
def test_they_step_as_flowers_own_do_across_a_cut_too(name, settings):
    """Six rounds of random means; after the third, units 0 and 2 of one group and 1 of another are cut.

    Flower's strategy knows of no cuts, so its own memory is cut by hand: each array is compact along the axes
    that the two groups index.
    """
    layout = conv_layout()
    config, flower = ServerOptimizerConfig(name, **settings), flowers(ServerOptimizerConfig(name, **settings))
    kept, moments = layout.full(), ()
    state = random_state(layout, kept, 0)
    flower.current_arrays = record(state.weights) if name == "fedavgm" else dict(state.weights)
    for number in range(1, 7):
        mean = random_state(layout, kept, number)
        state, moments = step(config, layout, number, state, mean, moments)
        theirs = flowers_step(flower, number, mean)
        for parameter, array in state.weights.items():
            np.testing.assert_allclose(array, theirs[parameter], rtol=1e-6, atol=1e-7)
        if number == 3:
            part = structure(layout, c=[1], f=[0, 2, 3, 4])
            state, moments = state.cut(layout, part), cut(moments, layout, kept, part)
            theirs = {parameter: by_hand(parameter, array) for parameter, array in theirs.items()}
            cut_memory(flower)
            kept = part
        flower.current_arrays = record(theirs) if name == "fedavgm" else theirs


def by_hand(name: str, array: np.ndarray) -> np.ndarray:
    """Of an array of `conv_layout`: channel 1 of 3, of 4 places each, and units 0, 2, 3 and 4 of 5."""
    units, places = [0, 2, 3, 4], [4, 5, 6, 7]
    return {
        "c.weight": lambda: array[1:2],
        "c.bias": lambda: array[1:2],
        "f.weight": lambda: array[units][:, places],
        "head.weight": lambda: array[:, units],
    }[name]()


def cut_memory(flower: Any) -> None:
    if isinstance(flower, FedAvgM):
        if flower.momentum_vector is not None:
            pairs = zip(conv_layout().shapes, flower.momentum_vector, strict=True)
            flower.momentum_vector = [by_hand(name, array) for name, array in pairs]
        return
    for memory in ("m_t", "v_t"):
        cut_arrays = {name: by_hand(name, array) for name, array in getattr(flower, memory).items()}
        setattr(flower, memory, cut_arrays)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_remembered_is_cut_with_the_model(name):
    """A cut between two steps gives what cutting all three models beforehand gives."""
    layout = dense_layout(4)
    part = structure(layout, a=[1, 3])
    start, one, two = (random_state(layout, layout.full(), seed) for seed in (1, 2, 3))
    config = ServerOptimizerConfig(name)
    between, moments = step(config, layout, 1, start, one, ())
    moments = cut(moments, layout, layout.full(), part)
    cut_late, _ = step(config, layout, 2, between.cut(layout, part), two.cut(layout, part), moments)
    small = [state.cut(layout, part) for state in (start, one, two)]
    cut_early = steps(config, layout, small[0], small[1:])[-1]
    for weights, expected in zip(cut_late.weights.values(), cut_early.weights.values(), strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_running_statistics_are_no_parameters():
    arch = ARCHITECTURES["resnet20"]
    before = initial_state(arch, 0)
    mean = ModelState({name: w + 1 for name, w in before.weights.items()}, before.structure)
    after, moments = step(ServerOptimizerConfig("fedadam"), arch.layout, 1, before, mean, ())
    assert [set(arrays) for arrays in moments] == [set(arch.layout.trained)] * 2
    for name in arch.layout.shapes:
        taken = np.array_equal(after.weights[name], mean.weights[name])
        assert taken == (name in arch.layout.buffers)


def test_a_setting_of_no_optimiser_is_refused():
    with pytest.raises(ScenarioError, match=r"strategy\.optimizer\.momentum has no effect.*fedavgm"):
        ServerOptimizerConfig(momentum=0.5)


@pytest.mark.usefixtures("as_the_server")
def test_a_strategy_takes_the_step_of_the_servers_optimiser():
    values = {"strategy": {"name": "dense", "optimizer": {"name": "fedavgm", "learning_rate": 0.5}}}
    strategy, plain = enlisted(Dense, (None,), **values), enlisted(Dense, (None,))
    before = strategy.state
    (message,) = asked(strategy)
    state = random_state(strategy.layout, strategy.layout.full(), 1)
    strategy.aggregate_train(1, [reply(message, update(state, None, 10))])
    (message,) = asked(plain)
    plain.aggregate_train(1, [reply(message, update(state, None, 10))])
    for name, got in strategy.state.weights.items():
        half_way = before.weights[name] + 0.5 * (plain.state.weights[name] - before.weights[name])
        np.testing.assert_allclose(got, half_way, rtol=1e-5, atol=1e-6)
