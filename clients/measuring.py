"""Measuring exported files for a server, where the device's owner lets it."""

import json
import tempfile
from pathlib import Path, PurePath

from flwr.app import RecordDict

from fedhp.errors import DeploymentError, ExportError, WireError
from fedhp.exports.apart import measure_apart
from fedhp.exports.measured import Measurement
from fedhp.federation.measuring import SUFFIXES, MeasuringTask, pack_measured, unpack_measuring

from .device import NodeConfig
from .telling import tell


def measured(content: RecordDict, node: NodeConfig) -> RecordDict:
    """Measures the files of a message, in a folder and a process that are gone afterwards.

    Raises:
        DeploymentError: If the owner does not let servers do that.
        WireError: If the message is not as it must be, or a file is of a kind that is not taken.
        ExportError: If nothing could be measured; a file that cannot be is told among the others.
    """
    if node.get("measures") is not True:
        raise DeploymentError(
            "this device was not told that servers may have files measured on it; start it by 'fedhp device "
            "run --measures', or its SuperNode with --node-config 'measures=true'"
        )
    task = unpack_measuring(content)
    if other := [name for name in task.files if PurePath(name).suffix not in SUFFIXES]:
        raise WireError(f"{other[0]}: devices measure files of {', '.join(SUFFIXES)} alone")
    found = _measured(task)
    tell(node, f"fedhp: measured {len(found.files)} of {len(task.files)} files for the server")
    return pack_measured(json.dumps(found.to_dict()))


def _measured(task: MeasuringTask) -> Measurement:
    try:
        with tempfile.TemporaryDirectory(prefix="fedhp-") as place:
            folder = Path(place)
            for name, file in task.files.items():
                (folder / name).write_bytes(file)
            return measure_apart(
                folder,
                list(task.files),
                task.against or None,
                threads=task.threads,
                seconds=task.seconds,
                limit=task.limit,
            )
    except OSError as error:  # such as a disk that is full
        raise ExportError(f"this device has no place for the files: {error}") from error
