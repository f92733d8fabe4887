"""The process of a device that trains, on a SuperNode's own interface: what it asks and answers."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import pytest
import uvicorn
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeState, NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from fedhp.data import Normalisation
from fedhp.deployment.client import Client
from fedhp.federation import wire
from fedhp.model.building import initial_state
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.simulation.identity import RUN_ID, acting_as
from fedhp.training.method_names import PRUNING

NODE = 7
CODE = b"which is not looked at"
CODE_HASH = hashlib.sha256(CODE).hexdigest()


@contextmanager
def served(state_factory: NodeStateFactory) -> Iterator[str]:
    """Serves a SuperNode's messages as Flower's command does; yields the address."""
    config = uvicorn.Config(create_app(state_factory=state_factory), port=0, ws="none", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    try:
        yield "{}:{}".format(*server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = True
        thread.join()


def held(
    state: NodeState, content: RecordDict, kind: str, node: dict[str, Any], theirs: str, arrives: bool = True
) -> int:
    """Puts a message into a SuperNode, as it does with the SuperLink's, or its head; returns the task."""
    run = Run.create_empty(RUN_ID)
    run.fab_version, run.fab_hash = theirs, CODE_HASH
    state.set_node_id(NODE)
    state.store_run(run)
    state.store_fab(Fab(CODE_HASH, CODE, {}))
    state.set_run_series_context(run.series_id, Context(RUN_ID, NODE, node, RecordDict(), {}))
    task = state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN_ID, fab_hash=CODE_HASH)
    assert task is not None
    with acting_as(0), no_object_id_recompute():
        message = Message(content, NODE, kind)
        if arrives:
            _insert_message(message, state, state.object_store)
        else:
            message.metadata.__dict__["_message_id"] = message.object_id
            state.object_store.preregister(RUN_ID, get_object_tree(message))
            state.store_message(message)
    return task


@pytest.fixture
def own_data(tmp_path):
    file = tmp_path / "mine.npz"
    images = np.random.default_rng(0).integers(0, 17, (30, 8, 8)).astype(np.uint8)
    np.savez(file, x_train=images, y_train=np.arange(30) % 10)
    return str(file)


SCENARIO = load_scenario("quickstart", ["model.widths=[16,8]", "rounds=1"])
ARCHITECTURE = recipe_of(SCENARIO, (1, 8, 8), 10).architecture


def brief() -> wire.Brief:
    return wire.Brief(SCENARIO.to_json(), (1, 8, 8), 10, Normalisation((0.3,), (0.4,)), PRUNING, True)


def replies(state: NodeState) -> Iterator[Message]:
    """Yields what lies ready for the SuperLink, put together of the objects that came."""
    store = state.object_store
    for message in state.get_messages_legacy(run_ids=[RUN_ID], is_reply=True):
        if message.has_error():
            yield message
        else:
            tree = store.get_object_tree(message.metadata.message_id)
            whole = pull_and_inflate_object_from_tree(tree, store.get, lambda _: None, return_type=Message)
            yield cast(Message, whole)


def test_it_answers_a_query_and_then_trains(own_data):
    factory = NodeStateFactory(ObjectStoreFactory())
    state, node = factory.state(), {"data-path": own_data, "memory-budget": "512KiB"}
    model = initial_state(ARCHITECTURE, 0)
    task = wire.pack_task(wire.pack_state(model), brief(), 1)
    with served(factory) as address, closing(Client(address)) as client:
        assert not client.answer_next()
        for content, kind in ((wire.pack_query(brief()), MessageType.QUERY), (task, MessageType.TRAIN)):
            held(state, content, kind, node, version("fedhp"))
            assert client.answer_next()
            assert not client.answer_next()
    said, trained = replies(state)
    profile, _ = wire.unpack_profile(said.content)
    assert profile.num_examples == 30
    update = wire.unpack_update(trained.content, ARCHITECTURE.layout, 0, model.structure, profile)
    assert update.state.num_parameters() < model.num_parameters()


def test_a_run_of_another_version_is_refused_by_name(own_data):
    factory = NodeStateFactory(ObjectStoreFactory())
    held(factory.state(), wire.pack_query(brief()), MessageType.QUERY, {"data-path": own_data}, "99.0")
    with served(factory) as address, closing(Client(address)) as client:
        assert client.answer_next()
    (said,) = replies(factory.state())
    assert said.error.reason.startswith("DeploymentError: the run is of fedhp 99.0, and this device has ")


@pytest.mark.parametrize("keeps_the_task", [False, True])
def test_a_message_whose_parts_never_come_is_given_up_and_the_next_one_answered(own_data, keeps_the_task):
    """As where a run ends while its messages are on their way: the SuperNode goes on to the next message, and
    keeps the task of the last one or does not, by what it could not get.
    """
    factory = NodeStateFactory(ObjectStoreFactory())
    state, node = factory.state(), {"data-path": own_data, "memory-budget": "512KiB"}
    query = wire.pack_query(brief()), MessageType.QUERY, node, version("fedhp")
    task = held(state, *query, arrives=False)

    def go_on() -> None:
        if not keeps_the_task:
            state.finish_task(task, sub_status=SubStatus.FAILED, details="")
        held(state, *query)

    with served(factory) as address, closing(Client(address)) as client:
        later = threading.Timer(0.5, go_on)
        later.start()
        assert client.answer_next()
        assert not [*replies(state)]
        assert client.answer_next()
        later.join()
    (said,) = replies(state)
    assert wire.unpack_profile(said.content)[0].num_examples == 30
