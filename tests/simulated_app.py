"""The client app of the simulation's tests: apart from them, so that workers import little."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


class ShardError(ValueError):
    """A client's own exception, which says at which stage it arose."""

    stage = "data"


@app.train()
def train(message: Message, context: Context) -> Message:
    """Does as the message says if it names this node; else answers what the client sees."""
    order = message.content["order"]
    assert isinstance(order, ConfigRecord)
    if context.node_id in order["nodes"]:
        if order["do"] == "sleep":
            time.sleep(order["seconds"])
        elif order["do"] == "die":
            os._exit(1)
        elif order["do"] == "die packing":
            return Message(RecordDict({"seen": DiesPacked()}), reply_to=message)
        elif order["do"] == "exit":
            sys.exit("enough")
        elif order["do"] == "raise":
            context.state["spoilt"] = MetricRecord({"yes": 1})
            raise ShardError("labels are missing")
        elif order["do"] == "garbage":
            return 42  # type: ignore[return-value]
        elif order["do"] == "stranger":
            return Message(RecordDict(), dst_node_id=0, message_type="train")
        elif order["do"] == "count":
            before = context.state.metric_records.get("visits", {"n": 0})["n"]
            context.state["visits"] = MetricRecord({"n": before + 1})
        elif order["do"] == "forget":
            context.state.clear()
    return Message(RecordDict({"seen": _what_is_seen(context)}), reply_to=message)


@dataclass(frozen=True)
class Together:
    """What nodes answer together: their partition ids."""

    partitions: list[int]
    payload_bytes: int = 0


class DiesPacked(ConfigRecord):
    """What lets a worker die as its answer is packed, when all is done."""

    def __reduce__(self) -> NoReturn:
        time.sleep(0.05)  # as where there is much to pack
        os._exit(1)


def together(content: RecordDict, nodes: Sequence[Mapping[str, Any]], seconds: float) -> Together:
    """Does as the message says if it names one of the nodes."""
    order = content["order"]
    assert isinstance(order, ConfigRecord)
    partitions = [node["partition-id"] for node in nodes]
    if any(partition + 1 in order["nodes"] for partition in partitions):
        if order["do"] == "sleep":
            time.sleep(order["seconds"])
        elif order["do"] == "die":
            os._exit(1)
        elif order["do"] == "raise":
            raise ShardError("labels are missing")
    return Together(partitions)


NO_APP = 7

averaged = ClientApp()


@averaged.train()
def train_average(message: Message, context: Context) -> Message:
    """Returns the node's id as its weights, as stock strategies want them."""
    weights = ArrayRecord({"w": Array(np.array([context.node_id], dtype=np.float64))})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": weights, "metrics": metrics}), reply_to=message)


def _what_is_seen(context: Context) -> MetricRecord:
    visits = context.state.metric_records.get("visits", {"n": 0})["n"]
    return MetricRecord(
        {
            "node": context.node_id,
            "partition": context.node_config["partition-id"],
            "partitions": context.node_config["num-partitions"],
            "run": context.run_id,
            "visits": visits,
            "spoilt": int("spoilt" in context.state),
            "threads": int(os.environ.get("OMP_NUM_THREADS", 0)),
            "gpus-are-hidden": int(os.environ.get("CUDA_VISIBLE_DEVICES") == ""),
        }
    )
