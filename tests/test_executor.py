"""A device's client process that dies, and processes that leave something behind."""

import contextlib
import inspect
import logging
import os
import re
import sys
import time
from pathlib import Path

import pytest
from flwr.superlink.grid.http_grid import HttpGrid

from fedhp.deployment import device, executor, supervisor
from fedhp.deployment.device import Heard
from fedhp.deployment.executor import Executor
from fedhp.errors import DeploymentError

PYTHON = (sys.executable, "-S", "-c")


@pytest.fixture(autouse=True)
def looking(monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "_LOOK_SECONDS", 0.01)
    caplog.set_level(logging.WARNING, "fedhp")


@pytest.fixture
def output():
    with contextlib.closing(supervisor.Output()) as pipe:
        yield pipe


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """Client processes that say when they start, to which port, and do as each is told in turn; then wait."""
    log = tmp_path / "starts"
    log.touch()

    def told(*what: str) -> Path:
        script = (
            f"import sys, time; log = open({str(log)!r}, 'r+'); number = len(log.readlines()); "
            f"print(sys.argv[1], file=log, flush=True); "
            f"exec(({what!r} + ('time.sleep(60)',) * 99)[number])"
        )
        monkeypatch.setattr(executor, "_CLIENT", (*PYTHON, script))
        return log

    monkeypatch.setattr(executor, "_WAITS", (0.01, 0.02))
    return told


def looked(one: Executor, log: Path, starts: int) -> bool:
    """Looks until so many processes have started, or it gives up; says whether it has hope."""
    hope, deadline = True, time.monotonic() + 20
    while hope and len(log.read_text().splitlines()) < starts:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        hope = one.look()
    return hope


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_client_that_dies_over_a_message_starts_again(clients, output, caplog):
    log = clients("sys.exit(3)", "import os; os.kill(os.getpid(), 9)")
    with contextlib.closing(Executor(os.environ, output)) as one:
        one.begin(9001)
        assert one.look()
        assert not log.read_text()
        one.wake()
        assert looked(one, log, 3)
        one.wake()  # the next message: it is there
        assert one.look()
    assert log.read_text().split() == ["127.0.0.1:9001"] * 3
    assert said(caplog) == [
        "the process that trains ended with exit status 3 before it answered; it starts again in 0.01 s",
        "the process that trains was ended by SIGKILL before it answered; it starts again in 0.02 s",
    ]


def test_a_client_that_always_dies_is_given_up_until_the_supernode_is_another(clients, output, caplog):
    log = clients(*["sys.exit(1)"] * 3)
    with contextlib.closing(Executor(os.environ, output)) as one:
        one.begin(9001)
        one.wake()
        assert not looked(one, log, 4)
        assert said(caplog)[-1] == "the process that trains ended with exit status 1; the message is given up"
        one.begin(9002)
        assert one.look()
        one.wake()
        assert looked(one, log, 4)
    assert log.read_text().split() == ["127.0.0.1:9001"] * 3 + ["127.0.0.1:9002"]


def test_memory_that_ran_out_as_a_client_starts_may_be_there_later(clients, output, monkeypatch, caplog):
    log = clients()
    honest, failures = executor.started, [OSError("Cannot allocate memory")]
    monkeypatch.setattr(
        executor, "started", lambda *told: honest(*told) if not failures else throw(failures.pop())
    )
    with contextlib.closing(Executor(os.environ, output)) as one:
        one.wake()
        assert looked(one, log, 1)
    assert ["Cannot allocate memory before it answered" in text for text in said(caplog)] == [True]


def throw(error: Exception):
    raise error


@pytest.mark.parametrize(
    "line",
    [
        "INFO :      Sent successfully",
        "INFO :      Run ID 7 is not in `RUNNING` status. Ignoring reply message 1.",
        "INFO :      Run ID 7 is not in `RUNNING` status. Ignoring message 1.",
    ],
)
def test_a_client_is_put_to_rest_once_its_message_is_gone(line, clients, output, monkeypatch):
    monkeypatch.setattr(executor, "_IDLE_SECONDS", 0.0)
    log = clients()
    with contextlib.closing(Executor(os.environ, output)) as one:
        heard = Heard("here:1", None, one)
        heard("INFO :      Receiving: train message (ID: 1)")
        assert looked(one, log, 1)
        process = one._process
        assert process is not None
        heard(line)
        assert one.look()
        assert process.poll() is not None
        assert one.look()  # nobody waits for it: it stays away
        assert one._process is None


@pytest.mark.parametrize(
    "what",
    [
        "send message 1: 500 Internal Server Error",
        "receive message 1: 500 Internal Server Error",
        "create task for run ID 7. The message will not be processed.",
    ],
)
def test_a_message_that_the_server_would_wait_for_is_given_up(what, clients, output):
    """Flower 1.41's SuperNode tries once: the server's database was busy, and its answer an error."""
    clients()
    with contextlib.closing(Executor(os.environ, output)) as one:
        heard = Heard("here:1", None, one)
        heard("INFO :      Receiving: train message (ID: 1)")
        assert one.look()
        heard(f"ERROR :     Failed to {what}")
        assert not one.look()
        heard("INFO :      Receiving: train message (ID: 2)")  # in one breath: the server would never hear
        assert not one.look()
        one.begin(9002)
        heard("INFO :      Receiving: train message (ID: 3)")
        assert one.look()


def test_a_client_that_dies_while_its_answer_goes_up_is_given_up_at_once(clients, output, caplog):
    """Flower 1.41's SuperNode waits for the rest of that answer for ever; a new client finds no task."""
    log = clients("time.sleep(60)", "sys.exit(1)", "time.sleep(60)")
    with contextlib.closing(Executor(os.environ, output)) as one:
        heard = Heard("here:1", None, one)
        for line in ("Receiving: train", "Sending: train"):
            heard(f"INFO :      {line} message (ID: 1)")
        heard("INFO :      Sent successfully")
        assert looked(one, log, 1)
        one.close()
        heard("INFO :      Receiving: train message (ID: 2)")  # the one before is no longer on its way
        assert looked(one, log, 3)
        heard("INFO :      Sending: train message (ID: 2)")
        assert one._process is not None
        one._process.kill()
        one._process.wait()
        assert not one.look()
    assert said(caplog)[-1] == "the process that trains was ended by SIGKILL; the message is given up"


SUPERNODE = "print('INFO :      Receiving: query message (ID: 1)', flush=True); import time; time.sleep(60)"


def test_a_supernode_whose_message_is_given_up_starts_anew(clients, output, caplog):
    """Flower waits for an answer for ever; only a SuperNode that goes tells the server that none comes."""
    log, ports = clients(*["sys.exit(1)"] * 3), iter((9001, 9002))
    with contextlib.closing(Executor(os.environ, output)) as one:
        heard = Heard("here:1", None, one)

        def begin() -> list[str]:
            one.begin(next(ports))
            return [*PYTHON, SUPERNODE]

        def look() -> bool:
            if len(log.read_text().splitlines()) == 4:
                raise KeyboardInterrupt
            return one.look()

        with pytest.raises(KeyboardInterrupt):
            supervisor.keep_going(begin, os.environ, heard, output, (0.01,), look, 0.25)
    assert log.read_text().split() == ["127.0.0.1:9001"] * 3 + ["127.0.0.1:9002"]
    assert said(caplog)[-1].endswith("was ended by SIGTERM; it starts again in 0.25 s")


def test_a_device_is_away_for_longer_than_two_looks_of_the_server():
    """Whether a node is away is seen only as the server looks: between two, it would be there again."""
    looks = re.search(r"time\.sleep\((\d+)\)", inspect.getsource(HttpGrid.send_and_receive))
    assert looks is not None
    assert 2 * int(looks[1]) < device._AWAY_SECONDS


def test_what_keeps_a_listener_from_its_work_may_pass(output, caplog):
    starts = []

    def hear(line: str) -> None:
        starts.append(line)
        if len(starts) == 3:
            raise KeyboardInterrupt
        raise (OSError("No space left on device"), DeploymentError("it does not answer"))[len(starts) - 1]

    with pytest.raises(KeyboardInterrupt):
        supervisor.keep_going(lambda: [*PYTHON, "print('up')"], os.environ, hear, output, (0.01,))
    assert [text.partition(" cannot go on: ")[2] for text in said(caplog)] == [
        "No space left on device; it starts again in 0.01 s",
        "it does not answer; it starts again in 0.01 s",
    ]


def test_the_last_words_of_a_process_need_no_newline(output):
    script = r"import sys; sys.stdout.buffer.write(b'first\nkilled by \xc3')"
    with supervisor.running([*PYTHON, script], os.environ, output) as process:
        assert [line for lines in output.said(process) for line in lines] == ["first", "killed by \ufffd"]


@pytest.mark.parametrize("leader", ["time.sleep(60)", "pass"])
def test_nothing_outlives_a_process_that_is_ended(leader, output):
    """A child that takes no notice of SIGTERM, of a leader that is ended and of one that ended by itself."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"
    script = (
        f"import subprocess, sys, time; one = subprocess.Popen([sys.executable, '-uSc', {child!r}], "
        f"stdout=subprocess.PIPE); one.stdout.readline(); print(one.pid, flush=True); {leader}"
    )
    with supervisor.running([*PYTHON, script], os.environ, output) as process:
        (pid,) = next(filter(None, output.said(process)))
        if leader == "pass":
            process.wait()
    deadline = time.monotonic() + 10
    while is_alive(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Says whether a process is there and no zombie that nobody has buried yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
