"""A small run to record and to show: its plan, its states, and its rounds."""

from collections.abc import Callable

import numpy as np

from fedhp.fleet.devices import DeviceClassConfig, FleetConfig
from fedhp.model.axes import AxisRef
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records import RunPlan, RunRecord
from fedhp.records.rows import ClientReport, RoundReport
from fedhp.scenario.schema import Scenario
from fedhp.training.statistics import Statistics

LAYOUT = Layout(
    widths={"hidden": 10},
    shapes={"a.weight": (10, 3), "a.bias": (10,), "b.weight": (2, 10), "b.bias": (2,)},
    axes={
        "a.weight": (AxisRef("hidden"), None),
        "a.bias": (AxisRef("hidden"),),
        "b.weight": (None, AxisRef("hidden")),
        "b.bias": (None,),
    },
    floors={"hidden": 1},
)


# 10 units: 10 * 3 weights and 10 biases, then 2 * 10 weights and 2 biases.
PARAMS_FULL = 62


# Units 1, 4 and 9: bits 01001000 01000000, in hexadecimal 48 and 40.
KEPT = Structure({"hidden": np.isin(np.arange(10), [1, 4, 9])})


CLIENT_COLUMNS = [
    "round",
    "client",
    "device_class",
    "status",
    "failure",
    "num_examples",
    "memory_budget_bytes",
    "memory_predicted_bytes",
    "memory_measured_bytes",
    "memory_mean_bytes",
    "batch_size_first",
    "batch_size_last",
    "params_received",
    "params_sent",
    "units_pruned",
    "bytes_down",
    "bytes_up",
    "update_norm",
    "update_share",
    "statistics_share",
    "num_examples_said",
    "train_loss",
    "accuracy",
    "gradient_norm",
    "num_local_test",
    "local_accuracy_global",
    "local_accuracy_personal",
    "num_shortages",
    "memory_left_bytes",
    "seconds",
    "clock",
]


SUMMARY_KEYS = [
    "status",
    "cause",
    "scenario",
    "seed",
    "rounds",
    "final_accuracy",
    "best_accuracy",
    "local_accuracy_global",
    "local_accuracy_personal",
    "params_full",
    "params_final",
    "compression",
    "training_bytes_full",
    "training_bytes_final",
    "budget_violations",
    "failures",
    "bytes_up",
    "bytes_down",
    "seconds",
    "client_rounds_per_second",
    "versions",
]


def make_plan() -> RunPlan:
    classes = [DeviceClassConfig("big", 1, "4KiB"), DeviceClassConfig("small", 1, "1KiB")]
    fleet = FleetConfig(num_clients=4, classes=classes)
    return RunPlan(
        scenario=Scenario(name="tiny", seed=7, rounds=2, fleet=fleet),
        layout=LAYOUT,
        devices={"big": 2, "small": 2},
        budgets={"big": 4096, "small": 1024},
        params_full=PARAMS_FULL,
        training_bytes_full=5000,
        input_shape=(3,),
        num_classes=2,
        partition={0: [30, 20], 2: [0, 50]},
        owners={2: "ann"},
    )


def make_state(structure: Structure) -> ModelState:
    shapes = {name: LAYOUT.shape(name, structure.counts) for name in LAYOUT.shapes}
    # A transposed array, as a slice may leave it, must be stored by value and not by memory order.
    return ModelState(
        {
            name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape[::-1]).T
            for name, shape in shapes.items()
        },
        structure,
    )


def ok_row(round: int, client: int, name: str, budget: int, measured: int) -> ClientReport:
    return ClientReport(
        round=round,
        client=client,
        device_class=name,
        status="ok",
        failure="",
        num_examples=50,
        memory_budget_bytes=budget,
        params_received=62,
        bytes_down=248,
        bytes_up=100,
        params_sent=20,
        units_pruned=7,
        statistics=Statistics(
            memory_predicted_bytes=measured - 8,
            memory_measured_bytes=measured,
            memory_mean_bytes=measured - 16,
            batch_size_first=4,
            batch_size_last=8,
            train_loss=0.5,
            accuracy=0.25 if client else 0.75,
            gradient_norm=2.0,
            num_local_test=1 if client else 3,
            local_accuracy_global=0.0 if client else 1 / 3,
            local_accuracy_personal=1.0 if client else 2 / 3,
            seconds=0.1,
        ),
    )


def failed_row(round: int, client: int) -> ClientReport:
    failure = "train: out of memory\n\x1b[31mboom"
    return ClientReport(round, client, "small", "failed", failure, 50, 1024, 20, 80)


def make_report(round: int) -> RoundReport:
    """Round 0 has no clients; in round 1 client 2 exceeds its budget; in round 2 all fail."""
    structure = KEPT if round else LAYOUT.full()
    params = LAYOUT.num_parameters(structure.counts)
    rows = {
        0: (),
        1: (ok_row(1, 0, "big", 4096, 2048), ok_row(1, 2, "small", 1024, 1025), failed_row(1, 3)),
        2: (failed_row(2, 1), failed_row(2, 3)),
    }[round]
    return RoundReport(
        round=round,
        accuracy=(0.1, 0.8, 0.7)[round],
        loss=1.0,
        structure=structure,
        params=params,
        compression=PARAMS_FULL / params,
        training_bytes=5000 - 1000 * round,
        clients=rows,
        seconds=0.5,
        evaluation_seconds=0.125,
        votes={"hidden": np.array([np.nan, *[0.6666] * 9])} if round == 1 else {},
    )


RecordRun = Callable[..., RunRecord]
