"""Which of the scenario's samples the devices hold, as far as the server can know: ``partition.parquet``."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fedhp.data.dataset import Dataset
from fedhp.data.partition import label_counts
from fedhp.federation.device import Device
from fedhp.model.state import ModelState
from fedhp.records.plan import RunPlan
from fedhp.records.record import partition_columns, writing
from fedhp.records.result import read_table
from fedhp.records.rows import PARTITION, RoundReport
from fedhp.scenario.schema import Scenario
from fedhp.tracking.tracker import Silent


def players(devices: Iterable[Device]) -> set[int]:
    """Returns the clients that play a part of the scenario's data; what others hold, they alone know."""
    return {device.client for device in devices if not device.profile.own_data}


def parts_of(scenario: Scenario, clients: Iterable[int]) -> dict[int, Sequence[int]]:
    """Returns the samples per label of clients that play a part of the scenario's data set, by number."""
    wanted = sorted(clients)
    counts = label_counts(scenario.data, scenario.fleet.num_clients, scenario.seed) if wanted else []
    return {client: counts[client].tolist() for client in wanted}


def owners_of(scenario: Scenario, dataset: Dataset, clients: Iterable[int]) -> dict[int, str]:
    """Returns whose samples in the data set each of the clients has, where each has an owner's."""
    if scenario.data.partition.name != "natural":
        return {}
    names = dataset.owner_names
    return {client: names[client] for client in clients}


class LateParts(Silent):
    """Adds to a record's ``partition.parquet`` the parts of devices that join while a run goes on; a tracker.

    Args:
        folder: The run record.
        dataset: The scenario's.
        devices: Returns the devices that take part now.
    """

    def __init__(self, folder: Path, dataset: Dataset, devices: Callable[[], Sequence[Device]]) -> None:
        self._path, self._dataset, self._devices = folder / "partition.parquet", dataset, devices

    def on_start(self, plan: RunPlan) -> None:
        """Looks at what the file holds: where a run goes on, it is of the devices before."""
        self._plan = plan
        self._known = set(read_table(self._path, PARTITION)["client"]) if self._path.is_file() else set()
        self._add()

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Adds whoever has joined."""
        self._add()

    def _add(self) -> None:
        there = players(self._devices())
        if there <= self._known:
            return
        from fedhp.records import parquet

        self._known |= there
        scenario = self._plan.scenario
        parts = parts_of(scenario, self._known)
        plan = replace(self._plan, partition=parts, owners=owners_of(scenario, self._dataset, parts))
        with writing(self._path.parent):
            parquet.write_table(self._path, PARTITION, partition_columns(plan))
