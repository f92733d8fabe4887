"""The server's side under Flower: run configuration -> scenario -> a run over the devices of the grid."""

import logging
import shlex

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhp.errors import FedhpError, ScenarioError
from fedhp.records.record import run_folder
from fedhp.run.fleet_run import run_fleet
from fedhp.run.reporting import reporting
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.threads import torch_threads

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs a scenario. Run configuration: ``scenario`` (name or path), ``overrides`` (dotlist), ``out``."""
    logging.getLogger("flwr").addFilter(_one_line)
    scenario, out = _scenario(context), str(context.run_config.get("out") or "")
    threads = torch_threads(scenario.simulation.threads_per_worker)
    with (
        run_folder(scenario.name, out or None) as folder,
        threads,
        reporting(scenario, folder.absolute()) as trackers,  # nobody sees what it would be relative to
    ):
        run_fleet(grid, prepare(scenario, simulated=False), trackers)


def _scenario(context: Context) -> Scenario:
    config = context.run_config
    try:
        overrides = shlex.split(str(config.get("overrides", "")))
    except ValueError as error:
        raise ScenarioError(f"overrides {config['overrides']!r} cannot be split: {error}") from None
    return load_scenario(str(config.get("scenario", "quickstart")), overrides)


def _one_line(record: logging.LogRecord) -> bool:
    """Lets Flower log what fedhp refuses as its message, without a traceback."""
    refused = record.exc_info[1] if record.exc_info else None
    if isinstance(refused, FedhpError):
        record.msg, record.args, record.exc_info = "%s", (refused,), None
    return True
