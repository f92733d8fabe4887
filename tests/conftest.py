"""What every test runs under: no telemetry, one torch thread, and a cache folder of the session's own."""

import os
import signal

# Before anything imports Flower or Ray, which read them once.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import golden
import pytest
import torch
from data_files import write_mnist
from recorded_runs import RecordRun, make_plan, make_report, make_state

from fedhp.data import DataConfig, PartitionConfig
from fedhp.records import RunRecord, RunTotals
from fedhp.simulation.identity import acting_as

# Who starts pytest in the background of a script has it ignore Ctrl+C, and every command that it starts too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that writes golden runs."""
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/golden.json instead of checking it"
    )


@pytest.fixture
def holds_golden(request: pytest.FixtureRequest) -> Callable[[str, golden.Golden], None]:
    """Holds a run against the golden one of its name, or makes it that."""
    return golden.write if request.config.getoption("--write-golden") else golden.check


@pytest.fixture(scope="session", autouse=True)
def _session_environment(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDHP_CACHE", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _draws() -> None:
    """Networks that a test makes without a generator of its own are the same in each run."""
    torch.manual_seed(0)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the test a cache of its own, and no folder of data sets."""
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDHP_DATA", raising=False)


@pytest.fixture
def as_the_server() -> Iterator[None]:
    """Has messages come from the server, as Flower's grid has it."""
    with acting_as(0):
        yield


@pytest.fixture
def mnist(tmp_path: Path) -> Callable[..., DataConfig]:
    """60 rows, 6 of each of 10 classes: row r has label r mod 10."""
    pytest.importorskip("flwr_datasets")
    write_mnist(tmp_path)

    def config(name: str, **values: Any) -> DataConfig:
        partition = PartitionConfig(name, **{"min_samples": 1, **values})
        return DataConfig("mnist", str(tmp_path), partition)

    return config


@pytest.fixture
def record_run() -> Iterator[RecordRun]:
    """Records rounds 0 to ``rounds`` - 1 and, with ``finish``, the end; closed after the test."""
    records = []

    def run(folder: Path, rounds: int = 3, finish: bool = True) -> RunRecord:
        record, totals = RunRecord(folder), RunTotals(make_plan())
        records.append(record)
        record.on_start(make_plan())
        for number in range(rounds):
            report = make_report(number)
            totals.add(report)
            record.on_round(report, make_state(report.structure))
        if finish:
            record.on_finish(totals.summary())
        return record

    yield run
    for record in records:
        record.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """A headless browser; skips where there is none."""
    program = browser.find()
    if program is None:
        pytest.skip(f"no browser to show the page in: none of {', '.join(browser.NAMES)} is installed")
    running = browser.Browser(program, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()
