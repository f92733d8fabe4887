"""What a worker of a nursery does: takes chunks off its line, and answers them one after the other."""

import os
import pickle
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple, NoReturn

from fedhp.errors import FedhpError
from fedhp.simulation.lines import Line
from fedhp.simulation.tasks import Job
from fedhp.simulation.worker import Worker


class Order(NamedTuple):
    """A chunk as it goes to a worker.

    ``contents`` names what its jobs count on; of these, the worker has not had ``fresh`` yet, and nobody will
    ask for those that are ``gone``.
    """

    jobs: list[Job]
    seconds: float
    contents: Sequence[int]
    fresh: dict[int, bytes]
    gone: Sequence[int]


def serve(line: Line) -> NoReturn:
    """Answers what comes over a line, and ends with it. Runs in a process of its own."""
    try:
        orders: SimpleQueue[bytearray] = SimpleQueue()
        said: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=_listen, args=(line, orders), daemon=True).start()
        threading.Thread(target=_speak, args=(line, said), daemon=True).start()
        _answer_all(orders, said)
    finally:
        os._exit(1)  # nothing of the process that it was born of is to run


def _listen(line: Line, orders: "SimpleQueue[bytearray]") -> None:
    """Takes in what comes while another chunk is answered; who sends it never waits."""
    try:
        while True:
            orders.put(line.receive())
    except OSError:
        os._exit(0)  # nobody is there any more, whatever is being done


def _speak(line: Line, said: "SimpleQueue[bytes]") -> None:
    """Sends answers while the next chunk is answered: the server reads when it has the time."""
    try:
        while True:
            line.send(said.get())
    except OSError:
        os._exit(0)


def _answer_all(orders: "SimpleQueue[bytearray]", said: "SimpleQueue[bytes]") -> NoReturn:
    worker = Worker(*pickle.loads(orders.get()))
    said.put(pickle.dumps(_failure_of(worker.load)))
    contents: dict[int, bytes] = {}
    while True:
        order: Order = pickle.loads(orders.get())
        contents |= order.fresh
        for key in order.gone:
            del contents[key]
        # Anew for each chunk, whatever the clients of another did to theirs.
        payloads = [pickle.loads(contents[key]) for key in order.contents]
        try:
            report, answers = worker.answer(order.jobs, order.seconds, *payloads)
            pieces = pickle.dumps(report), pickle.dumps(answers, protocol=5)
        except Exception as error:
            pieces = pickle.dumps(f"{type(error).__name__}: {error}"), b""
        for piece in pieces:
            said.put(piece)


def _failure_of(load: Callable[[], None]) -> Exception | None:
    """Returns what goes wrong, as it can be sent."""
    try:
        load()
    except Exception as error:
        try:
            return pickle.loads(pickle.dumps(error))
        except Exception:
            kind = FedhpError if isinstance(error, FedhpError) else RuntimeError
            return kind(f"{type(error).__name__}: {error}")
    return None
