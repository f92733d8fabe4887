"""Which node plays which client, and how it did last: a file in the record, for who looks after devices."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedhp.federation.device import Device
from fedhp.files.atomic import replace_text
from fedhp.files.marks import DEVICES
from fedhp.model.state import ModelState
from fedhp.records.plan import RunPlan
from fedhp.records.rows import RoundReport
from fedhp.tracking.tracker import Silent


class DevicesFile(Silent):
    """Keeps the file up to date; a tracker.

    Args:
        folder: The run record.
        devices: Returns the devices that take part now.
    """

    def __init__(self, folder: Path, devices: Callable[[], Sequence[Device]]) -> None:
        self._path, self._devices = folder / DEVICES, devices
        self._failures: dict[int, str] = {}
        self._rows: dict[str, dict[str, Any]] = {}

    def on_start(self, plan: RunPlan) -> None:
        """Writes who is there; where a run goes on, beside who was there before and is away."""
        with suppress(
            OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError
        ):  # none yet
            told = json.loads(self._path.read_text(encoding="utf-8"))
            self._rows = {node: {**row, "client": int(row["client"])} for node, row in told.items()}
        self._write()

    def on_past(self, report: RoundReport) -> None:
        """Keeps who failed last with what."""
        for row in report.failures:
            self._failures[row.client] = f"round {report.round}: {row.failure}"

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Writes who is there, and who failed last with what."""
        self.on_past(report)
        self._write()

    def _write(self) -> None:
        there = {str(device.node_id): self._row(device) for device in self._devices()}
        taken = {row["client"] for row in there.values()}
        away = {node: row for node, row in self._rows.items() if row["client"] not in taken}
        self._rows = {**away, **there}
        replace_text(self._path, json.dumps(self._rows, indent=2))

    def _row(self, device: Device) -> dict[str, Any]:
        return {
            "client": device.client,
            "device_class": device.profile.device_class,
            "memory_bytes": device.profile.memory_bytes,
            "last_failure": self._failures.get(device.client, ""),
        }
