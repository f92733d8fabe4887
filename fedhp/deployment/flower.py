"""Flower's commands: where they are, what they run in, and how they are asked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedhp.errors import DeploymentError
from fedhp.federation.flower_version import check_flower
from fedhp.files.atomic import replace_text

CONNECTION = "fleet"
_PATIENCE_SECONDS = 120.0  # for a command that asks a server on this machine: on a small one it takes ten
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # seconds at each start where the network does not answer
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # or each run installs all dependencies anew
}


def command(name: str) -> str:
    """Returns the path of one of Flower's commands.

    Raises:
        DeploymentError: If it is not installed beside this Python, or of a version that is refused.
    """
    check_flower()
    place = shutil.which(name, path=_search_path())
    if place is None:
        raise DeploymentError(f"Flower's command '{name}' is not installed beside {sys.executable}")
    return place


def environment(home: Path | None = None, **others: str) -> dict[str, str]:
    """Returns what Flower's commands run in: this environment, without questions to the network.

    Args:
        home: Flower's folder; by default the user's own.
        others: What is set besides.
    """
    # A service knows no activated environment, and Flower looks for its own commands on the path.
    places = {"PATH": _search_path()} | ({} if home is None else {"FLWR_HOME": str(home)})
    return _ENVIRONMENT | dict(os.environ) | places | others


def keep_connection(home: Path, address: str, authority: Path | None) -> None:
    """Tells Flower's commands where the SuperLink is, and by whose word; None is without encryption."""
    home.mkdir(mode=0o700, exist_ok=True)
    trust = "insecure = true" if authority is None else f"root-certificates = {json.dumps(str(authority))}"
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\n{trust}\n'
    )
    replace_text(home / "config.toml", text)


def asked(home: Path, *arguments: str) -> dict[str, Any]:
    """Returns what ``flwr`` answers.

    Raises:
        DeploymentError: If it refuses, or the SuperLink cannot be reached, or does not answer.
    """
    words, asks = [command("flwr"), *arguments, CONNECTION, "--format", "json"], " ".join(arguments[:2])
    try:
        done = subprocess.run(
            words,
            env=environment(home),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeploymentError(
            f"flwr {asks}: no answer within {_PATIENCE_SECONDS:g} s; see what holds the server, or this "
            f"machine, up, and ask again"
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {}
    if not answer.get("success"):
        said = answer.get("error-message") or done.stderr or done.stdout
        last = said.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise DeploymentError(f"flwr {asks}: {last[0]}")
    return answer


def _search_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
