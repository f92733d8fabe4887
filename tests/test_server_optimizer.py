"""The server's optimisers, by hand."""

import numpy as np
import pytest
from factories import dense_layout, random_state, reply, structure, update
from fleets import asked, enlisted
from small_models import ARCHITECTURES

from fedhp.aggregation.options import ServerOptimizerConfig
from fedhp.errors import ScenarioError
from fedhp.federation.server_optimizer import ServerOptimizer
from fedhp.model.architecture import initial_state
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from strategies import Dense

pytestmark = pytest.mark.usefixtures("as_the_server")


def test_a_setting_of_no_optimiser_is_refused():
    with pytest.raises(ScenarioError, match=r"strategy\.optimizer\.momentum has no effect.*fedavgm"):
        ServerOptimizerConfig(momentum=0.5)


def server_step(config: ServerOptimizerConfig, layout, before, means) -> list[ModelState]:
    optimizer = ServerOptimizer(config, layout)
    states = [before]
    for number, mean in enumerate(means, start=1):
        states.append(optimizer.step(number, states[-1], mean))
    return states[1:]


def constant(layout, value: float, kept: Structure | None = None) -> ModelState:
    kept = kept or layout.full()
    shapes = {name: layout.shape(name, kept.counts) for name in layout.shapes}
    return ModelState({name: np.full(shape, value, np.float32) for name, shape in shapes.items()}, kept)


def test_momentum_on_the_server_by_hand():
    """From 1 the mean 2 gives a step of 1: to 2. Then the mean 2 gives none, and .5 of the last one: 2.5."""
    layout = dense_layout(3)
    config = ServerOptimizerConfig("fedavgm", learning_rate=1.0, momentum=0.5)
    first, second = server_step(config, layout, constant(layout, 1), [constant(layout, 2)] * 2)
    assert {w for array in first.weights.values() for w in array.ravel().tolist()} == {2.0}
    assert {w for array in second.weights.values() for w in array.ravel().tolist()} == {2.5}


def test_adam_on_the_server_by_hand():
    """Flower's: delta 1, m = .1, v = .01; its rate for round 1 is eta sqrt(1 - .99^2) / (1 - .9^2)."""
    layout = dense_layout(3)
    config = ServerOptimizerConfig("fedadam", learning_rate=0.1, momentum=0.9, beta_2=0.99, tau=0.001)
    (after,) = server_step(config, layout, constant(layout, 1), [constant(layout, 2)])
    rate = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    expected = 1 + rate * 0.1 / (np.sqrt(0.01) + 0.001)
    np.testing.assert_allclose(after.weights["in.weight"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_what_a_server_optimiser_remembers_is_cut_with_the_model(name):
    """A cut between two steps gives what cutting all three models beforehand gives."""
    layout = dense_layout(4)
    part = structure(layout, a=[1, 3])
    start, one, two = (random_state(layout, layout.full(), seed) for seed in (1, 2, 3))
    config = ServerOptimizerConfig(name)
    optimizer = ServerOptimizer(config, layout)
    between = optimizer.step(1, start, one).cut(layout, part)
    optimizer.cut(layout.full(), part)
    cut_late = optimizer.step(2, between, two.cut(layout, part))
    small = [state.cut(layout, part) for state in (start, one, two)]
    cut_early = server_step(config, layout, small[0], small[1:])[-1]
    for weights, expected in zip(cut_late.weights.values(), cut_early.weights.values(), strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_running_statistics_are_no_parameters_to_a_server_optimiser():
    arch = ARCHITECTURES["resnet20"]
    before = initial_state(arch, 0)
    mean = ModelState({name: w + 1 for name, w in before.weights.items()}, before.structure)
    after = ServerOptimizer(ServerOptimizerConfig("fedadam"), arch.layout).step(1, before, mean)
    for name in arch.layout.shapes:
        taken = np.array_equal(after.weights[name], mean.weights[name])
        assert taken == (name in arch.layout.buffers)


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
