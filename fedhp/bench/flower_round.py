"""Plain averaging on Flower's own simulation engine, by a client app that trains in bare PyTorch."""

import time
from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedhp.bench.engine import all_nodes, on_flowers_engine
from fedhp.bench.plain import BareClient, small_state
from fedhp.scenario.arrived import from_json
from fedhp.scenario.schema import Scenario

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains a client from the weights that it is sent."""
    config, received = message.content.config_records["config"], message.content.array_records["arrays"]
    bare = _bare(str(config["scenario"]), float(config["compression"]))  # pyright: ignore[reportArgumentType]
    weights = {name: array.numpy() for name, array in received.items()}
    number = bare.train(weights, int(context.node_config["partition-id"]))
    content = {
        "arrays": ArrayRecord(bare.module.state_dict()),
        "metrics": MetricRecord({"num-examples": number}),
    }
    return Message(RecordDict(content), reply_to=message)


@cache
def _bare(scenario_json: str, compression: float) -> BareClient:
    torch.set_num_threads(1)
    return BareClient(from_json(scenario_json), compression)


def run_flower(scenario: Scenario, compression: float, num_workers: int, rounds: int) -> dict[str, Any]:
    """Measures clients per second under Flower's FedAvg, after a round to warm up.

    Args:
        scenario: Who trains how.
        compression: As in `fedhp.bench.plain.small_state`.
        num_workers: Flower's actors.
        rounds: Rounds that are measured, together.
    """
    number, per_round = scenario.fleet.num_clients, scenario.server.clients_per_round
    said = ConfigRecord({"scenario": scenario.to_json(), "compression": compression})
    weights = small_state(scenario, compression).weights
    seconds: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        all_nodes(grid, number)
        for num_rounds in (1, rounds):
            averaging = FedAvg(
                fraction_train=per_round / number, fraction_evaluate=0.0, min_available_nodes=number
            )
            start = ArrayRecord({name: torch.from_numpy(array) for name, array in weights.items()})
            started = time.perf_counter()
            averaging.start(grid, start, num_rounds=num_rounds, train_config=said)
            seconds.append(time.perf_counter() - started)

    on_flowers_engine(server, app, number, num_workers)
    return {"flower_clients_per_second": rounds * per_round / seconds[1]}
