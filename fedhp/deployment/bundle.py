"""The Flower app as it is installed here, in a folder that ``flwr run`` takes."""

import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

_CORE = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "clients",
    "strategies",
    "scenarios",
)  # within fedhp where it is installed, beside it in a checkout
_NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
# Each device is sent it for each run: without what starts runs, or is made of many.
_APART = {"bench", "comparison", "deployment", "draft", "studies", "sweep", "twins"}

# Without dependencies, which Flower might be told to install: what devices have is their owners' choice.
_PROJECT = """\
[project]
name = "fedhp"
version = "{version}"
description = "Federated dynamic hard pruning under a memory budget"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedhp"
fab-include = ["fedhp/**"]

[tool.flwr.app.components]
serverapp = "fedhp.strategies.server_app:app"
clientapp = "fedhp.clients.client_app:app"

[tool.flwr.app.config]
scenario = "quickstart"
overrides = ""
out = ""
resume = ""
measure = ""
"""


def make_bundle(place: Path) -> Path:
    """Makes the app's folder anew, so that server and devices run the code that is installed here.

    Args:
        place: The folder; what an earlier bundle left in it is removed.

    Returns:
        The folder.
    """
    shutil.rmtree(place, ignore_errors=True)
    for source, name in _sources():
        shutil.copytree(source, place / "fedhp" / name, ignore=_left_out, dirs_exist_ok=True)
    text = _PROJECT.format(version=importlib.metadata.version("fedhp"))
    (place / "pyproject.toml").write_text(text, encoding="utf-8")
    return place


def _left_out(folder: str, names: list[str]) -> set[str]:
    return _NOT_CODE(folder, names) | (_APART if Path(folder) == _CORE else set())


def _sources() -> Iterator[tuple[Path, str]]:
    yield _CORE, ""
    for name in _PACKAGES:
        if not (_CORE / name).is_dir():
            yield _CORE.parent / name, name
