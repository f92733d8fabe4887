"""The server's side under Flower: run configuration -> scenario -> a run over the devices of the grid."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhp.errors import FedhpError, RecordError, ScenarioError
from fedhp.federation.device import Device
from fedhp.federation.first_answers import FirstAnswers
from fedhp.federation.flower_version import check_flower
from fedhp.federation.folding import FoldingGrid
from fedhp.latency.target import with_widths
from fedhp.records.kept import Keeper, Kept, begun_in, held, kept_in
from fedhp.records.record import run_folder
from fedhp.run.devices_file import DevicesFile
from fedhp.run.fleet_run import run_fleet
from fedhp.run.measuring import measure_on_devices
from fedhp.run.parts import LateParts
from fedhp.run.reporting import reporting
from fedhp.run.resuming import resumed
from fedhp.run.setup import checked_strategy, prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.threads import torch_threads
from fedhp.tracking.tracker import Trackers

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs a scenario, or goes on with a run that was cut short, or has devices measure files.

    Run configuration: ``scenario`` (name or path), ``overrides`` (dotlist), ``out``; or ``resume``, the
    folder of the record of a run, and ``overrides`` of keys that change no result; or ``measure``, a folder
    of `fedhp.deployment.measuring`.
    """
    logging.getLogger("flwr").addFilter(_one_line)
    check_flower()
    config, overrides = context.run_config, _overrides(context)
    if asked := str(config.get("measure") or ""):
        measure_on_devices(FoldingGrid(grid), Path(asked))
        return
    if earlier := str(config.get("resume") or ""):
        _go_on(grid, Path(earlier).absolute(), overrides)
        return
    scenario = load_scenario(str(config.get("scenario", "quickstart")), overrides)
    with run_folder(scenario.name, str(config.get("out") or "") or None) as folder, held(folder):
        _run(grid, scenario, folder.absolute())  # nobody sees what it would be relative to


def _go_on(grid: Grid, folder: Path, overrides: Sequence[str]) -> None:
    begun_in(folder)  # before a lock makes the folder
    scenario = resumed(folder, overrides)
    with held(folder):
        kept = kept_in(folder)
        if kept.simulated:
            raise RecordError(
                f"{folder} is of a simulation; go on by: fedhp resume {shlex.quote(str(folder))}"
            )
        _run(grid, scenario, folder, kept)


def _run(grid: Grid, scenario: Scenario, folder: Path, kept: Kept | None = None) -> None:
    threads = torch_threads(scenario.simulation.threads_per_worker)
    with threads, reporting(scenario, folder, kept=kept) as trackers:
        chosen = with_widths(scenario, checked_strategy(scenario))
        setup = replace(prepare(chosen.scenario, simulated=False), notes=chosen.notes)

        def devices() -> Sequence[Device]:
            return setup.strategy.devices

        files = DevicesFile(folder, devices), LateParts(folder, setup.dataset, devices)
        keeper = Keeper(folder, setup.scenario, setup.basis, simulated=False)
        run_fleet(FoldingGrid(FirstAnswers(grid)), setup, Trackers([trackers, *files]), keeper, kept)


def _overrides(context: Context) -> list[str]:
    given = str(context.run_config.get("overrides", ""))
    try:
        return shlex.split(given)
    except ValueError as error:
        raise ScenarioError(f"overrides {given!r} cannot be split: {error}") from None


def _one_line(record: logging.LogRecord) -> bool:
    """Lets Flower log what fedhp refuses as its message, without a traceback."""
    refused = record.exc_info[1] if record.exc_info else None
    if isinstance(refused, FedhpError):
        record.msg, record.args, record.exc_info = "%s", (refused,), None
    return True
