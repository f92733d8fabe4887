"""Exported files measured on the devices of a server."""

import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedhp.deployment import flower
from fedhp.deployment.folder import ServerFolder
from fedhp.deployment.listing import Seen, devices_seen
from fedhp.deployment.starting import ends_before_server, run_words
from fedhp.errors import DeploymentError, ExportError, TrainingError
from fedhp.exports.measured import Measurement
from fedhp.federation.measuring import SUFFIXES, check_amount
from fedhp.run.measuring import Order, read_answers, write_order

logger = logging.getLogger("fedhp.deployment")


@dataclass(frozen=True)
class DeviceMeasured:
    """What a device has measured.

    Attributes:
        device: Its name, or Flower's number of one that came without a key.
        found: What it has measured; None where it has not.
        failure: Why not; empty where it has.
    """

    device: str
    found: Measurement | None
    failure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        found = self.found or Measurement((), {})
        return {"device": self.device, "failure": self.failure, **found.to_dict()}


def measure_on_devices(
    folder: ServerFolder,
    files: Sequence[Path],
    against: Path | None,
    devices: Sequence[str],
    *,
    threads: int,
    seconds: float,
    limit: float,
) -> list[DeviceMeasured]:
    """Measures files on devices, which are sent them, all at the same time.

    Args:
        folder: The server's folder; the server must run.
        files: Of the formats that devices take.
        against: The file that all are held against.
        devices: Names of devices; all that are connected where there are none.
        threads: With how many threads each file runs.
        seconds: How long each is timed, at least.
        limit: After how many seconds a device gives up.

    Raises:
        ExportError: If a file is none that devices take.
        WireError: If the files are too many or too large.
        DeploymentError: If the server does not run, or there are no such devices.
        TrainingError: If the run that asks them does not come to its end.
    """
    names = _checked(list(dict.fromkeys([*([against] if against else []), *files])))
    chosen, away = _chosen(devices_seen(folder), devices)
    with tempfile.TemporaryDirectory(prefix="measuring-", dir=folder.root) as place:
        staged = Path(place).absolute()
        for name, file in names.items():
            shutil.copyfile(file, staged / name)
        held = next(iter(names)) if against else ""
        write_order(staged, Order(list(names), held, threads, seconds, limit, [one.node for one in chosen]))
        _run(folder, staged)
        answers = read_answers(staged)
    if answers is None:
        raise TrainingError(f"no device was asked: {folder.root}/superlink.log says what happened")
    return [*(_told(one, answers[one.node], names) for one in chosen), *away]


def _checked(files: Sequence[Path]) -> dict[str, Path]:
    """Returns files by the names under which they are sent."""
    for file in files:
        if file.suffix not in SUFFIXES:
            raise ExportError(f"{file}: devices measure files of {', '.join(SUFFIXES)} alone")
        if not file.is_file():
            raise ExportError(f"there is no file {file}")
    check_amount(len(files), sum(file.stat().st_size for file in files))
    return {f"{number}{file.suffix}": file for number, file in enumerate(files)}


def _chosen(seen: Sequence[Seen], names: Sequence[str]) -> tuple[list[Seen], list[DeviceMeasured]]:
    """Returns the devices to ask, and those that were named and cannot be."""
    by_name = {_name(one): one for one in seen}
    if unknown := [name for name in names if name not in by_name]:
        raise DeploymentError(f"there is no device '{unknown[0]}'; 'fedhp serve devices' lists them")
    wanted = [by_name[name] for name in dict.fromkeys(names)] or list(by_name.values())
    there = [one for one in wanted if one.state == "connected"]
    if not there:
        raise DeploymentError("none of these devices is connected; 'fedhp serve devices' lists them")
    missing = [one for one in wanted if names and one not in there]
    return there, [DeviceMeasured(_name(one), None, "it is not connected") for one in missing]


def _run(folder: ServerFolder, staged: Path) -> None:
    words = run_words(folder, {"measure": str(staged)})
    surroundings, none = flower.environment(folder.flower_home.absolute()), subprocess.DEVNULL
    with subprocess.Popen(words, env=surroundings, stdout=none, stderr=none) as stream:
        try:
            if not ends_before_server(stream, folder):
                again = f"'fedhp serve start {folder.root}' starts it again"
                raise TrainingError(f"the server has ended: {again}")
        except KeyboardInterrupt:
            logger.warning("only this command ends: devices that were asked measure to their end")
            raise
        finally:
            stream.terminate()  # which has ended, or else shows nothing any more


def _told(device: Seen, answer: Measurement | str, names: dict[str, Path]) -> DeviceMeasured:
    """Returns what a device answered, of the files as they are called here."""
    if isinstance(answer, str):
        return DeviceMeasured(_name(device), None, _as_called(answer, names))
    files = tuple(replace(one, file=str(names[one.file])) for one in answer.files)
    failures = {str(names[name]): _as_called(why, names) for name, why in answer.failures.items()}
    return DeviceMeasured(_name(device), Measurement(files, failures))


def _as_called(text: str, names: dict[str, Path]) -> str:
    sent = "|".join(map(re.escape, names))
    return re.sub(rf"(?<![\w.])({sent})(?!\w)", lambda found: str(names[found[1]]), text)


def _name(device: Seen) -> str:
    return device.name or str(device.node)
