"""What every test runs under: no telemetry, one torch thread, and a cache folder of the session's own."""

import os
import signal

# Before anything imports Flower or Ray, which read them once.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from collections.abc import Callable, Iterator

import browser
import golden
import pytest
import torch

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


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """A headless browser; skips where there is none."""
    program = browser.find()
    if program is None:
        pytest.skip(f"no browser to show the page in: none of {', '.join(browser.NAMES)} is installed")
    running = browser.Browser(program, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()
