"""Files measured on devices: what a run is told of them by way of a folder, and leaves there."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedhp.bounds import one_line
from fedhp.errors import FedhpError, WireError
from fedhp.exports.formats import FORMATS
from fedhp.exports.measured import Measurement
from fedhp.exports.reading import read_measurement
from fedhp.federation.measuring import MEASURE, MeasuringTask, pack_measuring, unpack_measured
from fedhp.federation.questions import BEYOND_SECONDS, Questions, content_of
from fedhp.files.atomic import replace_text

_ASKED, _ANSWERED = "asked.json", "answered.json"
_WAY_SECONDS = 30.0  # for a message to be fetched, and for an answer to come, beside the measuring itself


@dataclass(frozen=True)
class Order:
    """What is to be measured, and where.

    Attributes:
        files: Names in the folder.
        against: The one that all are held against; empty for none.
        threads: With how many each runs.
        seconds: How long each is timed, at least.
        limit: After how many seconds a device gives up.
        nodes: Flower's numbers of the devices.
    """

    files: list[str]
    against: str
    threads: int
    seconds: float
    limit: float
    nodes: list[int]


def write_order(folder: Path, order: Order) -> None:
    """Lays an order into a folder, in which its files lie."""
    replace_text(folder / _ASKED, json.dumps(vars(order)))


def read_answers(folder: Path) -> Mapping[int, Measurement | str] | None:
    """Returns what each device has measured, or why it has not; None where the run wrote nothing."""
    try:
        told = json.loads((folder / _ANSWERED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return {node: one if isinstance(one, str) else read_measurement(json.dumps(one)) for node, one in told}


def measure_on_devices(grid: Grid, folder: Path) -> None:
    """Has devices measure what a folder says, and writes there what they have answered.

    Args:
        grid: Where the devices are.
        folder: With an order, and its files.
    """
    order = Order(**json.loads((folder / _ASKED).read_text(encoding="utf-8")))
    files = {name: (folder / name).read_bytes() for name in order.files}
    task = MeasuringTask(files, order.against, order.threads, order.seconds, order.limit)
    answers = asked(grid, task, order.nodes)
    told = [(node, one if isinstance(one, str) else one.to_dict()) for node, one in answers.items()]
    replace_text(folder / _ANSWERED, json.dumps(told))


def asked(grid: Grid, task: MeasuringTask, nodes: Iterable[int]) -> dict[int, Measurement | str]:
    """Returns what each device has measured, or why it has not in a line."""
    content, seconds = pack_measuring(task), task.limit + _WAY_SECONDS
    messages = [Message(content, node, MEASURE, ttl=seconds + BEYOND_SECONDS) for node in nodes]
    silent = f"no answer within {seconds:g} s"
    answers: dict[int, Measurement | str] = {one.metadata.dst_node_id: silent for one in messages}
    replies = grid.send_and_receive(messages, timeout=seconds)
    questions = Questions(one.metadata for one in messages)
    for reply in replies:
        node = questions.first_from(reply)
        if node is not None:
            answers[node] = _answer(reply, task)
    return answers


def _answer(reply: Message, task: MeasuringTask) -> Measurement | str:
    try:
        found = read_measurement(unpack_measured(content_of(reply)))
        _check_asked(found, task)
    except WireError as error:
        return one_line(f"reply: {error}")
    except FedhpError as error:
        return one_line(re.sub(r"^client: \w+: ", "", str(error)))
    return found


def _check_asked(found: Measurement, task: MeasuringTask) -> None:
    """Refuses an answer to something else than what was asked.

    Raises:
        WireError: If so.
    """
    names = [*(one.file for one in found.files), *found.failures]
    if sorted(names) != sorted(task.files):
        raise WireError("it tells of other files than were sent")
    for one in found.files:
        suffix = PurePath(one.file).suffix
        sent: dict[str, Any] = {
            "format": next(form.name for form in FORMATS.values() if form.suffix == suffix),
            "num_bytes": len(task.files[one.file]),
            "threads": task.threads,
        }
        if other := [key for key, value in sent.items() if getattr(one, key) != value]:
            raise WireError(f"{one.file}: {other[0]} is not that of the file that was sent")
        if (one.against is None) == bool(task.against):
            raise WireError(f"{one.file}: is held against no file, or against one that was not named")
