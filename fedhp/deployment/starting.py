"""A run on the devices of a server: sent to its SuperLink, and followed."""

import logging
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from fedhp.deployment import flower
from fedhp.deployment.bundle import make_bundle
from fedhp.deployment.folder import ServerFolder
from fedhp.deployment.listing import devices_seen
from fedhp.deployment.server import is_serving, serving_address
from fedhp.errors import RecordError, TrainingError
from fedhp.federation.run_config import written
from fedhp.records.kept import can_go_on, held, kept_in
from fedhp.records.load import has_finished
from fedhp.records.record import check_room
from fedhp.report.writing import reported
from fedhp.run.resuming import flower_words, resumed
from fedhp.scenario.loading import given_keys, load_scenario

logger = logging.getLogger("fedhp.deployment")

_LOOK_SECONDS = 1.0


def run_on_devices(folder: ServerFolder, scenario: str, overrides: Sequence[str], out: Path | None) -> Path:
    """Runs a scenario on the devices of a server, and shows how it goes.

    Args:
        folder: The server's folder; the server must run.
        scenario: A scenario's name or file.
        overrides: Overrides of its keys.
        out: The record's folder; by default one within the server's folder.

    Returns:
        The record's folder.

    Raises:
        ScenarioError: If the scenario is none.
        DeploymentError: If the server does not run.
        RecordError: If the record's folder holds something.
        TrainingError: If the run does not come to its end.
    """
    address = serving_address(folder)
    if out is not None:
        check_room(out)  # or a record that is there would be taken for this run's
    if not address.insecure:
        overrides = [*overrides, *_fleet(folder, scenario, overrides)]
    name = load_scenario(scenario, overrides).name  # refused here, and not in a log of Flower's
    record = out or folder.runs / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    file = Path(scenario)
    place = str(file.absolute()) if file.suffix in (".yaml", ".yml") else scenario
    config = {"scenario": place, "overrides": shlex.join(overrides), "out": str(record.absolute())}
    return _followed(folder, config, record)


def _fleet(folder: ServerFolder, scenario: str, overrides: Sequence[str]) -> Iterator[str]:
    """Yields what a run is told of its fleet besides, so that no device that is away holds it up."""
    given = given_keys(overrides)
    if "fleet.num_clients" in given:
        return
    number = max(1, len(folder.registered()))
    size = f"fleet.num_clients={number}"
    yield size
    logger.info("%s, as many as are registered; give the key to have it otherwise", size)
    lowered = [entry for entry in _lowered(scenario, number) if entry.partition("=")[0] not in given]
    yield from lowered
    if lowered:
        logger.info("%s, as no more are", " ".join(lowered))
    server = load_scenario(scenario, [*overrides, size, *lowered]).server
    connected = sum(device.state == "connected" for device in devices_seen(folder))
    if not ("server.min_devices" in given or server.min_devices) and connected < number:
        begins = f"server.min_devices={min(number, max(1, connected, server.min_replies))}"
        yield begins
        logger.info("%s, as %d of them are connected; others join as they come", begins, connected)


def _lowered(scenario: str, number: int) -> Iterator[str]:
    """Yields what a scenario, of a larger fleet, asks for that a fleet of so many devices does not have."""
    for key, asked in vars(load_scenario(scenario).server).items():
        if key in ("clients_per_round", "min_replies", "min_devices") and asked > number:
            yield f"server.{key}={number}"


def resume_on_devices(folder: ServerFolder, record: Path, overrides: Sequence[str]) -> Path:
    """Goes on with a run on the devices of a server that was cut short, and shows how it goes.

    Args:
        folder: The server's folder; the server must run.
        record: The folder of the run's record.
        overrides: Overrides of keys that change no result.

    Raises:
        RecordError: If the folder holds no run that can go on, or one of a simulation, or one at which
            another process works.
        ScenarioError: If an override may change results.
        DeploymentError: If the server does not run.
        TrainingError: If the run does not come to its end.
    """
    serving_address(folder)
    if kept_in(record).simulated:
        raise RecordError(f"{record} is of a simulation, which 'fedhp resume {record}' goes on with")
    resumed(record, overrides)
    with held(record):  # refused here, and not in a log of Flower's; the run itself takes it anew
        pass
    return _followed(folder, {"resume": str(record.absolute()), "overrides": shlex.join(overrides)}, record)


def resume_under_flower(record: Path, federation: str, overrides: Sequence[str]) -> None:
    """Goes on with a run over devices, by Flower's command from the app's folder, and shows how it goes.

    Args:
        record: The folder of the run's record.
        federation: Flower's name of the federation.
        overrides: Overrides of keys that change no result.

    Raises:
        RecordError: If the run cannot go on, or is of a simulation.
        ScenarioError: If an override may change results.
        DeploymentError: If Flower's command is not installed here.
        TrainingError: If the run does not come to its end.
    """
    if kept_in(record).simulated:
        raise RecordError(f"{record} is of a simulation, which goes on without --federation")
    resumed(record, overrides)
    flwr, *words = flower_words(record, federation, overrides)
    subprocess.run([flower.command(flwr), *words], env=flower.environment(), check=False)
    if not has_finished(record):  # Flower's command succeeds in any case
        raise TrainingError("the run has not finished; the log of the SuperLink says what happened")


def run_words(folder: ServerFolder, config: Mapping[str, str]) -> list[str]:
    """Returns the command that sends a run to a server, and shows it as it goes on."""
    bundle = make_bundle(folder.root / "app")
    words = [flower.command("flwr"), "run", str(bundle.absolute()), flower.CONNECTION, "--stream"]
    return [*words, "--run-config", written(config)]


def _followed(folder: ServerFolder, config: Mapping[str, str], record: Path) -> Path:
    folder.keep_last_run(record)
    words = run_words(folder, config)
    home = f"FLWR_HOME={shlex.quote(str(folder.flower_home))}"
    logger.info("%s %s", home, shlex.join(words))
    with reported(record):  # not by the ServerApp: Flower's bundle leaves out the templates of pages
        with subprocess.Popen(words, env=flower.environment(folder.flower_home.absolute())) as stream:
            try:
                served = ends_before_server(stream, folder)
            except KeyboardInterrupt:
                for line in _going_on(f"{home} {shlex.quote(words[0])}", record):
                    logger.warning("%s", line)
                raise
            finally:
                stream.terminate()  # which has ended, or else shows nothing any more
        if not has_finished(record):  # Flower's command succeeds in any case
            raise TrainingError("; ".join(_what_to_do(folder, record, served)))
    return record


def _going_on(flwr: str, record: Path) -> Iterator[str]:
    """Yields what is said where only this command ends, as Flower's own does: a run outlives a link to it."""
    yield "only this command ends: a run that was sent to the server goes on there, and"
    yield f"  {flwr} list {flower.CONNECTION}  tells its ID"
    yield f"  {flwr} log ID {flower.CONNECTION}  shows it again"
    yield f"  {flwr} stop ID {flower.CONNECTION}  stops it"
    yield f"  fedhp report {shlex.quote(str(record))}  reports on it, once it is over"


def ends_before_server(stream: "subprocess.Popen[bytes]", folder: ServerFolder) -> bool:
    """Waits for a run's end as its stream tells it; returns whether that came, or the end of the server."""
    while True:
        try:
            stream.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if is_serving(folder):
                continue
            return False
        return True


def _what_to_do(folder: ServerFolder, record: Path, served: bool) -> Iterator[str]:
    """Yields what is said of a run that has not finished."""
    if served:
        yield f"the run has not finished: {folder.root}/superlink.log says what happened"
    else:
        yield f"the server has ended, and the run with it: 'fedhp serve start {folder.root}' starts it again"
    if can_go_on(record):
        yield f"'fedhp serve run {folder.root} --resume {record}' goes on with the run"
