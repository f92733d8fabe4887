"""The process of a device that trains: it asks the SuperNode for messages, and stays between them.

It stands for Flower's ``flower-superexec`` and the ``flwr-clientapp`` that it starts for every message, which
hold 95 and 115 MiB; and it runs the client app that is installed here, whatever code the server sends along.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version

import httpx
from flwr.app import Context, Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, message_to_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedhp.errors import DeploymentError
from fedhp.references import CLIENT_APP, resolve

_ASK_SECONDS = 0.25  # before it asks again; twice as long each time, up to the next
_MOST_SECONDS = 1.0
_HEARTBEAT_SECONDS = 20.0  # Flower takes a task that was silent for a minute for lost
_log = logging.getLogger("flwr")


class _GivenUpError(Exception):
    """The SuperNode has given up a message of which parts are missing."""


class _Headers:
    """The task that a question is about; of the same Flower as the SuperNode, its version goes unsaid."""

    def __init__(self) -> None:
        self.token = ""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Adds it, as Flower's interceptor does, whose room brings 18 MiB."""
        if self.token:
            context.request.headers[TASK_TOKEN_HEADER] = self.token
        return call_next(context)


class Client:
    """Answers the messages that a SuperNode holds for its client app.

    Args:
        address: The SuperNode's, on the loopback.
    """

    def __init__(self, address: str) -> None:
        self._headers = _Headers()
        self._node = RuntimeHttpClient.from_server_address(address, True, None, [self._headers])
        self._tasks = RuntimeHttpClient.from_server_address(address, True, None, [])
        self._acquiring, self._next_token = threading.Lock(), ""

    def answer_next(self) -> bool:
        """Answers the next message, if there is one; says whether there was."""
        if not self._has_another():
            return False
        self._headers.token, self._next_token = self._next_token, ""
        with self._heartbeats():
            try:
                self._answer(self._node.PullTaskInput(PullTaskInputRequest()))
            except _GivenUpError:
                _log.info("a message was given up: its run has ended, or the server was started again")
        return True

    def _has_another(self) -> bool:
        """Says whether a message waits that nobody answers, and takes it."""
        with self._acquiring:
            if not self._next_token:
                asked = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
                self._next_token = self._tasks.AcquireTask(asked).token
            return bool(self._next_token)

    def close(self) -> None:
        """Lets the SuperNode go."""
        self._node.close()
        self._tasks.close()

    def _answer(self, given: PullTaskInputResponse) -> None:
        context = context_from_proto(given.context)
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = context.node_id
        message = self._pulled(context)
        failure = ""
        try:
            _check_version(given.run.fab_version)
            reply = resolve(CLIENT_APP)(message, context)
        except Exception as error:
            _log.exception("the client app failed")
            failure = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, failure), reply_to=message)
        self._push(reply, context)
        status = SubStatus.FAILED if failure else SubStatus.COMPLETED
        output = PushTaskOutputRequest(context=context_to_proto(context), sub_status=status, details=failure)
        self._node.PushTaskOutput(output)

    def _pulled(self, context: Context) -> Message:
        found = self._node.PullMessages(PullAppMessagesRequest())
        tree, own = found.message_object_trees[0], (Node(node_id=context.node_id), context.run_id)
        pull = make_pull_object_fn_protobuf(self._node.PullObject, *own)

        def pull_while_wanted(object_id: str) -> bytes:
            try:
                return pull(object_id)
            except (httpx.HTTPStatusError, ObjectPullError):  # the task or its message is no more
                raise _GivenUpError from None
            except ObjectUnavailableError:
                # Yet, or for ever, and Flower asks again for two hours. A SuperNode that could not get a
                # message of a run that has ended keeps its task; but it goes on to the next message.
                if self._has_another():
                    raise _GivenUpError from None
                raise

        message = pull_and_inflate_object_from_tree(
            tree,
            pull_while_wanted,
            make_confirm_message_received_fn_protobuf(self._node.ConfirmMessageReceived, *own),
            return_type=Message,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id  # which travels beside it
        return message

    def _push(self, reply: Message, context: Context) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        head = message_to_proto(remove_content_from_message(reply))
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            heads = PushAppMessagesRequest(messages_list=[head], message_object_trees=[tree])
            wanted = self._node.PushMessages(heads)
            node = Node(node_id=context.node_id)
            push = make_push_object_fn_protobuf(
                self._node.PushObject, node, run_id=context.run_id, session_id=wanted.session_id
            )
            push_objects(objects, push, object_ids_to_push=set(wanted.objects_to_push))

    @contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Meanwhile, tells the SuperNode that the task is being done."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_HEARTBEAT_SECONDS):
                with suppress(httpx.HTTPError):  # the answer will show whether it is still wanted
                    self._node.SendTaskHeartbeat(SendTaskHeartbeatRequest())

        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            yield
        finally:
            over.set()
            beating.join()


def _check_version(theirs: str) -> None:
    """Refuses a run of another version: what is installed here would read its messages otherwise.

    Raises:
        DeploymentError: If it is another.
    """
    own = version("fedhp")
    if theirs != own:
        raise DeploymentError(f"the run is of fedhp {theirs}, and this device has {own}; install the same")


def main() -> None:
    """Answers messages as long as the process that started this one lives, and the SuperNode with it."""
    parent, seconds = os.getppid(), _ASK_SECONDS
    with closing(Client(sys.argv[1])) as client, suppress(httpx.TransportError):  # the SuperNode is gone
        while os.getppid() == parent:
            if client.answer_next():
                seconds = _ASK_SECONDS
            else:
                time.sleep(seconds)
                seconds = min(2 * seconds, _MOST_SECONDS)


if __name__ == "__main__":
    main()
