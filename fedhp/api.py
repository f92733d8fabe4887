"""fedhp from Python: the same as the command line, with the results as pandas frames."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhp.errors import RecordError, ScenarioError
from fedhp.exports.loaded import load_model as load_model
from fedhp.latency.target import with_widths
from fedhp.records.kept import Keeper, Kept, begun_in, held, kept_in
from fedhp.records.load import load_run as load_run
from fedhp.records.record import run_folder
from fedhp.records.result import RunResult
from fedhp.references import CLIENT_APP, COHORT_APP
from fedhp.run.central import CENTRAL_KEYS, FLEET_KEYS, train_central
from fedhp.run.fleet_run import run_fleet
from fedhp.run.prepared import Setup
from fedhp.run.reporting import reporting
from fedhp.run.resuming import flower_command, resumed
from fedhp.run.setup import checked_strategy, prepare, strategy_class
from fedhp.scenario.loading import given_keys, load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.simulation.grid import SimulatedGrid
from fedhp.simulation.nursery import begun_early
from fedhp.simulation.opening import open_grid, runs_in_processes
from fedhp.simulation.turn import TURN
from fedhp.threads import torch_threads
from fedhp.tracking.tracker import Trackers

_logger = logging.getLogger("fedhp")
_notes = logging.getLogger("fedhp.notes")


def simulate(
    scenario: str | Path | Scenario,
    out: str | Path | None = None,
    *,
    show: bool = True,
    notes: Sequence[str] = (),
    **overrides: Any,
) -> RunResult:
    """Runs a scenario on simulated devices and returns its record.

    Example:
        >>> run = fedhp.simulate("quickstart", rounds=5, **{"train.learning_rate": 0.1})
        >>> run.clients.groupby("device_class").accuracy.mean()

    Args:
        scenario: The name of a scenario that ships, the path of a YAML file, or a scenario.
        out: The folder of the record; by default ``runs/<scenario>-<time>``.
        show: Whether the run is shown in the terminal.
        notes: What is known of the run already, in lines for its event log.
        overrides: Scenario values by nested or dotted key.

    Raises:
        FedhpError: If the scenario, data, devices or folder are not as they must be.
    """
    scenario = _scenario("run", scenario, out, overrides)
    with run_folder(scenario.name, out) as folder, held(folder):
        with _begun(scenario, folder, show, notes=notes) as run:
            run_fleet(*run)
        return load_run(folder)


def resume(
    folder: str | Path, *, show: bool = True, overrides: Sequence[str] = (), **values: Any
) -> RunResult:
    """Goes on with a simulation, or a training on one device, that was cut short, and returns its record.

    It ends as it would have had it never been cut short, to the last bit, but for what measures time.

    Example:
        >>> run = fedhp.resume("runs/quickstart-20260131-141500", simulation={"num_workers": 4})

    Args:
        folder: The folder of its record.
        show: Whether the run is shown in the terminal.
        overrides: Scenario values as on the command line, of keys that change no result: see `FREE_KEYS`.
        values: The same by nested or dotted key.

    Raises:
        RecordError: If there is nothing to go on with or from, another process is at work there, or the run
            is of devices that are not simulated.
        ScenarioError: If an override may change results.
    """
    folder = Path(folder).absolute()
    begun_in(folder)  # before a lock makes the folder
    scenario = resumed(folder, overrides, values)
    with held(folder):
        kept = kept_in(folder)
        if not kept.simulated:
            raise RecordError(f"{folder} is of a federation of devices; go on by: {flower_command(folder)}")
        if kept.alone:
            with TURN:
                train_central(scenario, folder, show=show, kept=kept)
            return load_run(folder)
        with _begun(scenario, folder, show, kept) as run:
            run_fleet(*run)
        return load_run(folder)


@contextmanager
def _begun(
    scenario: Scenario, folder: Path, show: bool, kept: Kept | None = None, notes: Sequence[str] = ()
) -> Iterator[tuple[SimulatedGrid, Setup, Trackers, Keeper, Kept | None]]:
    """Opens what `run_fleet` takes."""
    simulation, clients = scenario.simulation, scenario.fleet.num_clients
    timeout = scenario.server.timeout_seconds
    early = begun_early(COHORT_APP, simulation.threads_per_worker, runs_in_processes(simulation))
    with early, torch_threads(simulation.threads_per_worker):
        setup = _prepared(scenario, show, notes)
        size, note = setup.message_bytes, _notes.warning
        grids = open_grid(simulation, CLIENT_APP, clients, timeout, note, size, COHORT_APP)
        with grids as grid, reporting(setup.scenario, folder, show, kept) as trackers:
            yield grid, setup, trackers, Keeper(folder, setup.scenario, setup.basis, simulated=True), kept


def _prepared(scenario: Scenario, show: bool, notes: Sequence[str]) -> Setup:
    """Makes every check, before any process starts."""
    kind = checked_strategy(scenario)  # before anything is said, let alone done
    if show:
        _logger.info("preparing '%s' for %d clients", scenario.data.name, scenario.fleet.num_clients)
    chosen = with_widths(scenario, kind)
    setup = prepare(chosen.scenario)
    if scenario.simulation.num_workers:
        _logger.info("starting the workers")
    return replace(setup, notes=(*notes, *chosen.notes))


def train(scenario: str | Path | Scenario, out: str | Path | None = None, **overrides: Any) -> RunResult:
    """Trains a scenario's model on one device, without a fleet, and returns its record.

    It is the loop of a fleet's client, over ``train.epochs`` passes and within ``memory.budget``; the
    record's rounds are epochs.

    Example:
        >>> run = fedhp.train("fashion_mnist", **{"prune.target_compression": 5})
        >>> run.rounds.plot("round", "accuracy")

    Args:
        scenario: The name of a scenario that ships, the path of a YAML file, or a scenario.
        out: The folder of the record; by default ``runs/<scenario>-<time>``.
        overrides: Scenario values by nested or dotted key.

    Raises:
        FedhpError: If the scenario, data, budget or folder are not as they must be.
    """
    scenario = _scenario("train", scenario, out, overrides)
    with TURN, run_folder(scenario.name, out) as folder, held(folder):
        chosen = with_widths(scenario, None)
        train_central(chosen.scenario, folder, notes=chosen.notes)
        return load_run(folder)


def warn_unused(command: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> None:
    """Warns of what the user set that this command, ``run`` or ``train``, has no use for."""
    unused = {"run": CENTRAL_KEYS, "train": FLEET_KEYS}[command]
    given = given_keys(overrides, values)
    keys = [key for key in given if any(f"{key}.".startswith(f"{prefix}.") for prefix in unused)]
    if keys:
        _logger.warning("'fedhp %s' has no use for %s, and ignores it", command, ", ".join(sorted(keys)))


def warn_unpruned(
    scenario: Scenario, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> None:
    """Warns of what the user set of pruning for a strategy that prunes nothing."""
    name, given = scenario.strategy.name, given_keys(overrides, values)
    kind = strategy_class(name)
    keys = sorted(key for key in given if key.startswith("prune.") and not kind.heeds(key))
    if keys:
        _logger.warning("strategy '%s' prunes nothing: it ignores %s", name, ", ".join(keys))


def _scenario(
    command: str, scenario: str | Path | Scenario, out: str | Path | None, overrides: Mapping[str, Any]
) -> Scenario:
    """Returns the scenario that is meant, before a folder is made.

    Raises:
        ScenarioError: If it is not as it must be, or the folder reads like an override.
    """
    if isinstance(out, str) and re.match(r"[\w.]+=", out):
        raise ScenarioError(
            f"out, the folder of the record, reads like an override: '{out}'. From Python overrides are "
            f"given by name, such as rounds=3 or **{{'train.learning_rate': 0.1}}; a folder of such a name "
            f"as './{out}'"
        )
    if not isinstance(scenario, Scenario):
        warn_unused(command, values=overrides)
        loaded = load_scenario(scenario, values=overrides)
        if command == "run":
            warn_unpruned(loaded, values=overrides)
        return loaded
    if overrides:
        raise TypeError("give overrides with a scenario's name or path, not with a Scenario")
    return scenario
