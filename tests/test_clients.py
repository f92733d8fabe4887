"""The device's side: who it says it is, and that what it trains is acceptable and within its budget."""

import logging
import os
import sys
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
from factories import same_bits
from flwr.app import Context, Message, MessageType, RecordDict
from torch import nn

from clients import client_app
from clients.client_app import app
from clients.device import open_device
from fedhp.costs.this_process import ThisProcess
from fedhp.data import Normalisation, Shard, partition_rows
from fedhp.errors import DataError, ScenarioError
from fedhp.federation import wire
from fedhp.fleet.devices import DeviceProfile, assign_classes
from fedhp.model.building import initial_state
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario
from fedhp.simulation.identity import RUN_ID, acting_as
from fedhp.threads import torch_threads
from fedhp.training.evaluation import evaluate
from fedhp.training.method import ClientRun, Method
from fedhp.training.method_names import PRUNING

NODE = 7
OTHER_NODE = 2**64 - 8


def scenario(**values) -> Scenario:
    small = {"rounds": 2, "data": {"max_train": 400}, "model": {"widths": [16, 8]}, "train.local_epochs": 1}
    return load_scenario("quickstart", values={**small, **values})


def brief(
    chosen: Scenario | None = None, methods: tuple[str, ...] = PRUNING, budgeted: bool = True
) -> wire.Brief:
    return wire.Brief(
        (chosen or scenario()).to_json(), (1, 8, 8), 10, Normalisation((0.3,), (0.4,)), methods, budgeted
    )


def send(content: RecordDict, kind: str, node_config: dict, node: int = NODE) -> Message:
    """Lets the app answer a message from the server."""
    with acting_as(0):
        message = Message(content, node, kind)
    context = Context(RUN_ID, node, node_config, RecordDict(), {})
    with acting_as(node):
        return app(message, context)


def profile_of(node_config: dict, chosen: Scenario | None = None) -> tuple[DeviceProfile, int | None]:
    return wire.unpack_profile(send(wire.pack_query(brief(chosen)), MessageType.QUERY, node_config).content)


@pytest.fixture
def own_data(tmp_path):
    """A device's own 30 samples of the digits' shape."""
    file = tmp_path / "mine.npz"
    stream = np.random.default_rng(0)
    images = stream.integers(0, 17, (30, 8, 8)).astype(np.uint8)
    np.savez(file, x_train=images, y_train=np.arange(30) % 10)
    return str(file)


CORES = len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else os.cpu_count()
COUNTED = "1 core" if CORES == 1 else f"{CORES} cores"


def test_a_simulated_device_does_not_take_the_machines_cores_for_its_own():
    assert profile_of({"partition-id": 0, "fedhp-simulation": True})[0].cores is None


@pytest.mark.skipif(sys.platform != "linux", reason="no affinity to set")
def test_a_device_has_the_cores_that_its_process_may_run_on():
    """Of a process that is kept to one: the first that this one has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert profile_of({"partition-id": 0})[0].cores == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("client", [0, 1, 2, 3, 19])
def test_a_partition_answers_with_its_class_budget_and_samples(client):
    chosen = scenario()
    kind = assign_classes(chosen.fleet)[client]
    samples = len(partition_rows(chosen.data, 20, chosen.seed)[client])
    expected = DeviceProfile(kind.name, kind.memory_bytes, samples, cores=CORES)
    assert profile_of({"partition-id": client}) == (expected, client)


def test_the_first_four_partitions_are_of_the_four_classes():
    """Four classes of equal share are interleaved: one of each among the first four."""
    names = {profile_of({"partition-id": client})[0].device_class for client in range(4)}
    assert names == {"gateway", "phone", "camera", "sensor"}


def test_the_node_configuration_may_name_its_own_budget_and_class():
    profile, client = profile_of({"partition-id": 2, "memory-budget": "96KiB", "name": "thermostat"})
    assert (profile.device_class, profile.memory_bytes, client) == ("thermostat", 96 * 1024, 2)


def test_a_device_with_its_own_data_needs_no_partition(own_data):
    profile, client = profile_of({"data-path": own_data, "memory-budget": 50_000, "name": "mine"})
    spread = np.std(np.load(own_data)["x_train"] / 255) / 0.4  # the server's, in its brief
    assert profile == DeviceProfile(
        "mine", 50_000, 30, own_data=True, spread=pytest.approx(spread), cores=CORES
    )
    assert client is None


def test_own_data_is_normalised_as_the_server_says(own_data):
    """The brief's mean is 0.3 and its deviation 0.4, of bytes as 0 to 1."""
    images = np.load(own_data)["x_train"]
    x, _ = open_device(brief(), {"data-path": own_data}).shard.batch(np.arange(30))
    np.testing.assert_allclose(x[:, 0], (images / 255 - 0.3) / 0.4, atol=1e-6)


def test_a_devices_own_windows_are_read_scaled_and_labelled_as_the_servers_are(tmp_path):
    """Stored (rows, time, channels); each channel has a mean and a deviation, each class a name."""
    file = tmp_path / "windows.npz"
    x = np.random.default_rng(0).normal(size=(20, 16, 3)) * [1, 50, 0.1] + [0, 200, 9]
    np.savez(file, x_train=x, y_train=np.array(["walk", "sit"] * 10))
    means, stds = (0.5, 190.0, 9.0), (2.0, 40.0, 0.2)
    asked = wire.Brief(
        scenario(**{"data.name": "npz", "data.layout": "channels_last"}).to_json(),
        (1, 3, 16),
        3,
        Normalisation(means, stds, axis=1),
        methods=PRUNING,
        budgeted=True,
        label_names=("run", "sit", "walk"),
    )
    device = open_device(asked, {"data-path": str(file)})
    images, labels = device.shard.batch(np.arange(20))
    expected = ((x - means) / stds).transpose(0, 2, 1)
    np.testing.assert_allclose(images[:, 0], expected, atol=1e-5)
    assert labels.tolist() == [2, 1] * 10


def test_a_device_may_name_both_its_own_data_and_its_number(own_data):
    profile, client = profile_of({"data-path": own_data, "partition-id": 3})
    assert (profile.num_examples, client) == (30, 3)


def test_partitions_are_told_apart_by_their_samples():
    one = open_device(brief(), {"partition-id": 0}).shard
    again, other = (open_device(brief(), {"partition-id": n}).shard for n in (0, 1))
    rows = np.arange(5)
    assert np.array_equal(one.batch(rows)[0], again.batch(rows)[0])
    assert not np.array_equal(one.batch(rows)[0], other.batch(rows)[0])


def pictures(shard: Shard) -> list[bytes]:
    images, labels = shard.batch(np.arange(len(shard)))
    return [one.numpy().tobytes() + bytes([label]) for one, label in zip(images, labels, strict=True)]


@pytest.mark.parametrize("own", [False, True])
def test_a_device_holds_out_a_share_of_its_data_the_same_in_every_round(own, own_data):
    node = {"data-path": own_data} if own else {"partition-id": 2}
    whole = open_device(brief(), node)
    chosen = scenario(**{"data.local_test": 0.2})
    device, again = (open_device(brief(chosen), node) for _ in range(2))
    assert whole.held_out is None
    assert device.held_out is not None
    assert again.held_out is not None
    assert len(device.held_out) == int(0.2 * len(whole.shard))
    assert device.profile.num_examples == len(device.shard)
    parts = pictures(device.shard), pictures(device.held_out)
    assert sorted(parts[0] + parts[1]) == sorted(pictures(whole.shard))
    assert parts == (pictures(again.shard), pictures(again.held_out))
    assert device.stream == whole.stream
    other = open_device(brief(scenario(**{"data.local_test": 0.2, "seed": 1})), {"data-path": own_data})
    if own:
        assert other.held_out is not None
        assert pictures(other.held_out) != parts[1]


@pytest.mark.parametrize("client", [-1, 20, 1000])
def test_a_partition_beyond_the_fleet_is_refused(client):
    with pytest.raises(ScenarioError, match=rf"partition-id is {client}, .* clients 0 to 19"):
        open_device(brief(), {"partition-id": client})


@pytest.mark.parametrize("value", ["first", "1.5", ""])
def test_a_partition_that_is_no_number_is_refused(value):
    with pytest.raises(ScenarioError, match="partition-id"):
        open_device(brief(), {"partition-id": value})


def test_neither_partition_nor_data_is_refused():
    with pytest.raises(ScenarioError, match=r"partition-id or a data-path"):
        open_device(brief(), {"memory-budget": "1MiB"})


@pytest.mark.parametrize("name", ["", "n" * 65, "camera\nround 9", "\x1b[2Jcamera"])
def test_a_name_that_would_forge_lines_of_the_log_is_refused(name):
    with pytest.raises(ScenarioError, match="node configuration: name: expected a name"):
        open_device(brief(), {"partition-id": 0, "name": name})


@pytest.mark.parametrize("budget", ["lots", "0", "-4MiB", "4 parsecs"])
def test_a_budget_that_is_no_size_is_refused(budget):
    with pytest.raises(ScenarioError, match="memory size"):
        open_device(brief(), {"partition-id": 0, "memory-budget": budget})


def test_missing_own_data_is_refused_by_path(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz"):
        open_device(brief(), {"data-path": str(tmp_path / "none.npz")})


def test_own_data_of_another_shape_is_refused(tmp_path):
    file = tmp_path / "large.npz"
    np.savez(file, x_train=np.zeros((4, 28, 28), np.uint8), y_train=np.zeros(4, np.int64))
    with pytest.raises(DataError, match=r"\(1, 28, 28\).*\(1, 8, 8\)"):
        open_device(brief(), {"data-path": str(file)})


def test_own_labels_beyond_the_classes_are_refused(tmp_path):
    file = tmp_path / "odd.npz"
    np.savez(file, x_train=np.zeros((2, 8, 8), np.uint8), y_train=np.array([0, 10]))
    with pytest.raises(DataError, match=r"y_train"):
        open_device(brief(), {"data-path": str(file)})


def train(node_config: dict, chosen: Scenario | None = None, node: int = NODE, **flags):
    """Sends the full model and unpacks the answer as the server would."""
    said = brief(chosen, **flags)
    chosen = chosen or scenario()
    arch = recipe_of(chosen, (1, 8, 8), 10).architecture
    state = initial_state(arch, 0)
    reply = send(wire.pack_task(wire.pack_state(state), said, 2), MessageType.TRAIN, node_config, node)
    profile = open_device(said, node_config).profile
    return wire.unpack_update(reply.content, arch.layout, 0, state.structure, profile), state


def test_a_real_device_logs_one_line_a_round_and_a_simulated_one_none(caplog):
    """The full model of 16 and 8 units and 64 inputs; SuperNodes may be told how many parts there are."""
    mote = {"partition-id": 0, "num-partitions": 20, "memory-budget": "200KiB", "name": "mote"}
    with caplog.at_level(logging.INFO, "flwr"):
        update, _ = train(mote)
        train({**mote, "fedhp-simulation": True})
    (said,) = [text for text in caplog.messages if text.startswith("fedhp round")]
    counts, statistics = update.state.structure.counts, update.statistics
    assert said.startswith(f"fedhp round 2: mote, budget 200.0 KiB, {COUNTED}; units inputs 64 to ")
    assert f"fc1 16 to {counts['fc1']}, fc2 8 to {counts['fc2']}, " in said
    assert f"{update.state.num_parameters()} parameters; memory " in said
    assert f"batch {statistics.batch_size_first} to {statistics.batch_size_last}; " in said
    assert said.endswith(f"accuracy {100 * statistics.accuracy:.1f}% of {update.num_examples} samples")


def test_training_answers_an_update_that_the_server_accepts():
    """Round 2 of 2 ends the schedule: the model of 16 and 8 units is cut to a sixth of its parameters."""
    update, state = train({"partition-id": 0})
    samples = len(partition_rows(scenario().data, 20, 0)[0])
    assert update.num_examples == samples
    assert state.num_parameters() / update.state.num_parameters() >= 6
    assert update.statistics.memory_predicted_bytes <= 256 * 1024
    assert update.statistics.train_loss > 0


def test_training_keeps_within_the_nodes_own_smaller_budget():
    """Of the scenario's 256 KiB the node has only 18 KiB: it takes a smaller batch from the start."""
    roomy, _ = train({"partition-id": 0})
    tight, _ = train({"partition-id": 0, "memory-budget": "18KiB"})
    assert roomy.statistics.memory_predicted_bytes > 18 * 1024
    assert tight.statistics.memory_predicted_bytes <= 18 * 1024
    assert tight.statistics.memory_measured_bytes <= 18 * 1024
    assert tight.statistics.batch_size_first < roomy.statistics.batch_size_first


def refusal(content: RecordDict, kind: str, node_config: dict) -> str:
    """Returns the reason of the error reply that a message is answered with."""
    reply = send(content, kind, node_config)
    assert reply.has_error()
    return reply.error.reason


def test_a_model_beyond_the_nodes_budget_is_refused_with_what_it_takes():
    state = initial_state(recipe_of(scenario(), (1, 8, 8), 10).architecture, 0)
    task = wire.pack_task(wire.pack_state(state), brief(), 1)
    node = {"partition-id": 0, "memory-budget": "4KiB"}
    assert "BudgetError" in (reason := refusal(task, MessageType.TRAIN, node))
    assert "the budget is 4,096 bytes" in reason


def with_left(monkeypatch, left: int | None) -> None:
    monkeypatch.setattr(ThisProcess, "left", lambda memory: left)


def test_a_device_tells_what_memory_it_had_left_and_a_simulated_one_does_not(monkeypatch, caplog):
    """Half of it is 18 KiB: a step of the full model's wanted batch takes more."""
    with_left(monkeypatch, 36 * 1024)
    with caplog.at_level(logging.INFO, "flwr"):
        tight, _ = train({"partition-id": 0})
    assert tight.statistics.num_shortages
    assert tight.statistics.memory_left_bytes == 36 * 1024
    assert tight.statistics.memory_predicted_bytes <= 18 * 1024
    assert f", memory short {tight.statistics.num_shortages} times, 36.0 KiB left at least; " in caplog.text
    for node in ({"partition-id": 0, "memory-reserve": "off"}, {"partition-id": 0, "fedhp-simulation": True}):
        alone, _ = train(node)
        assert (alone.statistics.num_shortages, alone.statistics.memory_left_bytes) == (None, None)


def test_a_device_whose_memory_is_gone_declines_and_says_so(monkeypatch):
    with_left(monkeypatch, 1024)
    state = initial_state(recipe_of(scenario(), (1, 8, 8), 10).architecture, 0)
    task = wire.pack_task(wire.pack_state(state), brief(), 1)
    reason = refusal(task, MessageType.TRAIN, {"partition-id": 0})
    said = "client: BudgetError: memory is short on this device, 1.0 KiB left with a reserve of 16.0 MiB"
    assert reason.startswith(said)
    monkeypatch.setattr(client_app, "open_device", Mock(side_effect=MemoryError("no more")))
    assert refusal(task, MessageType.TRAIN, {"partition-id": 0}) == "client: MemoryError: no more"


def test_a_device_that_cannot_see_its_memory_says_so_once(monkeypatch, caplog):
    with_left(monkeypatch, None)
    unseen, _ = train({"partition-id": 0})
    train({"partition-id": 0})
    assert unseen.statistics.num_shortages == 0
    assert caplog.text.count("does not say what memory is left") == 1


@pytest.mark.parametrize("reserve", ["lots", "0", "on"])
def test_a_reserve_that_is_no_size_is_refused(reserve):
    with pytest.raises(ScenarioError, match="node configuration: memory-reserve"):
        open_device(brief(), {"partition-id": 0, "memory-reserve": reserve})


def test_training_on_own_data_counts_its_samples(own_data):
    update, _ = train({"data-path": own_data})
    assert update.num_examples == 30


def test_a_device_answers_how_good_the_models_are_on_its_own_held_out_samples(own_data):
    chosen = scenario(**{"data.local_test": 0.5})
    update, state = train({"data-path": own_data}, chosen)
    device = open_device(brief(chosen), {"data-path": own_data})
    held_out = device.held_out
    assert held_out is not None
    assert (device.profile.num_examples, device.profile.num_local_test) == (15, 15)
    arch = recipe_of(chosen, (1, 8, 8), 10).architecture
    received, _ = evaluate(arch, state, held_out)
    personal, _ = evaluate(arch, update.state, held_out)
    statistics = update.statistics
    assert (update.num_examples, statistics.num_local_test) == (15, 15)
    assert (statistics.local_accuracy_global, statistics.local_accuracy_personal) == (received, personal)


def test_a_device_without_a_number_trains_alike_whatever_its_node_id_and_otherwise_by_another_name(own_data):
    one, again = (train({"data-path": own_data}, node=node)[0] for node in (NODE, OTHER_NODE))
    assert same_bits(one.state, again.state)
    other, _ = train({"data-path": own_data, "name": "other", "memory-budget": "1GiB"})
    assert not same_bits(one.state, other.state)


def test_a_dense_yardstick_prunes_nothing_and_knows_no_budget():
    update, state = train({"partition-id": 0, "memory-budget": "4KiB"}, methods=(), budgeted=False)
    assert update.state.structure == state.structure


def test_the_same_task_gives_the_same_update_and_another_client_another():
    one, again, other = (train({"partition-id": client})[0] for client in (0, 0, 1))
    assert one.state.structure == again.state.structure
    assert all(np.array_equal(one.state.weights[n], again.state.weights[n]) for n in one.state.weights)
    assert one.statistics.train_loss != other.statistics.train_loss


@pytest.mark.parametrize(
    ("content", "field"),
    [(RecordDict(), "no config record 'task'"), (wire.pack_query(brief()), "server-round")],
)
def test_a_task_that_is_not_as_it_must_be_is_answered_with_what_is_wrong(content, field):
    assert field in refusal(content, MessageType.TRAIN, {"partition-id": 0})


def test_a_brief_whose_scenario_is_no_json_is_answered_with_what_is_wrong():
    broken = wire.pack_query(wire.Brief("{", (1, 8, 8), 10, Normalisation((0.3,), (0.4,)), PRUNING, True))
    assert "no JSON" in refusal(broken, MessageType.QUERY, {"partition-id": 0})


def test_a_device_that_cannot_describe_itself_answers_why():
    assert "clients 0 to 19" in refusal(wire.pack_query(brief()), MessageType.QUERY, {"partition-id": 20})


def planted(input_shape, num_classes):
    """What a server would like a device to call."""
    CALLED.append(input_shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, num_classes))


CALLED: list[tuple[int, ...]] = []


TOLD: list[str] = []


class Told(Method):
    shrinks = True

    def begin(self, run: ClientRun) -> None:
        TOLD.append("begin")


def test_a_device_imports_only_the_network_that_its_owner_names():
    target = f"{__name__}:planted"
    chosen = scenario(**{"model.target": target, "model.widths": []})
    state = initial_state(recipe_of(chosen, (1, 8, 8), 10).architecture, 0)
    contents = {
        MessageType.QUERY: wire.pack_query(brief(chosen)),
        MessageType.TRAIN: wire.pack_task(wire.pack_state(state), brief(chosen), 1),
    }
    CALLED.clear()
    for kind, content in contents.items():
        told = ({}, {"model-target": "another:one"}, {"num-partitions": 20})
        for node in ({"partition-id": 0, **one} for one in told):
            assert "which this device was not told that it may import; start its SuperNode with" in refusal(
                content, kind, node
            )
    assert CALLED == []
    reply = send(contents[MessageType.TRAIN], MessageType.TRAIN, {"partition-id": 0, "model-target": target})
    assert reply.has_content()
    assert CALLED


@pytest.mark.parametrize(
    ("said", "methods"),
    [
        ({"train.methods": [f"{__name__}:Told"]}, PRUNING),
        ({"train.method": f"{__name__}:Told"}, PRUNING),
        ({}, (f"{__name__}:Told",)),
    ],
)
def test_a_device_imports_only_the_methods_that_its_owner_names(said, methods):
    """Whether the scenario or the strategy asks for them."""
    method = f"{__name__}:Told"
    chosen = scenario(**said)
    asked = brief(chosen, methods=methods)
    state = initial_state(recipe_of(chosen, (1, 8, 8), 10, ()).architecture, 0)
    content = wire.pack_task(wire.pack_state(state), asked, 1)
    TOLD.clear()
    for node in ({}, {"methods": "another:One"}, {"model-target": method}):
        assert "which this device was not told that it may import; start its SuperNode with" in refusal(
            content, MessageType.TRAIN, {"partition-id": 0, **node}
        )
    assert TOLD == []
    told = {"partition-id": 0, "methods": f"another:One, {method}"}
    assert send(content, MessageType.TRAIN, told).has_content()
    assert TOLD == ["begin"]


@pytest.mark.parametrize(("said", "threads"), [({}, 1), ({"threads": 3}, 3), ({"fedhp-simulation": True}, 2)])
def test_a_device_computes_with_its_own_threads_and_one_unless_told(said, threads, monkeypatch):
    """From before its data is opened. Workers of the simulation, here one of two threads, have set theirs."""
    seen = []
    monkeypatch.setattr(
        "clients.client_app.open_device", lambda *_: seen.append(torch.get_num_threads()) or 1 / 0
    )
    with torch_threads(2), pytest.raises(ZeroDivisionError):
        send(wire.pack_query(brief()), MessageType.TRAIN, {"partition-id": 0, **said})
    assert seen == [threads]


@pytest.mark.parametrize("threads", [0, -1, 257, 10**30, "2", 1.5, True])
def test_a_number_of_threads_that_is_none_is_refused(threads):
    answer = send(wire.pack_query(brief()), MessageType.QUERY, {"partition-id": 0, "threads": threads})
    assert answer.error.reason.startswith(
        "client: ScenarioError: node configuration: threads must be a whole number from 1 to 256, got "
    )
    assert len(answer.error.reason) < 150


@pytest.mark.parametrize("node", [{"partition-id": 0}, {}], ids=["an answer", "an error"])
def test_an_answer_is_valid_while_its_question_is_whatever_the_devices_clock_says(node):
    """Asked for ten minutes, two days ago by the device's clock, which is wrong."""
    with acting_as(0):
        message = Message(wire.pack_query(brief()), NODE, MessageType.QUERY, ttl=600.0)
    message.metadata.created_at -= 2 * 86400
    with acting_as(NODE):
        answer = app(message, Context(RUN_ID, NODE, node, RecordDict(), {}))
    assert answer.has_error() is (not node)
    assert (answer.metadata.created_at, answer.metadata.ttl) == (message.metadata.created_at, 600.0)
