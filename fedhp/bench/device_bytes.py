"""Bytes between a device and its server, counted at the socket, beside those of compact parameters."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk

from fedhp.bench.loopback import device, serving, write_samples
from fedhp.bench.relay import CountingRelay
from fedhp.deployment.bundle import make_bundle
from fedhp.records.load import load_run

_WAIT_SECONDS = 60.0
_UNITS = 784 + 300 + 100
_WAYS = {"down": "params_received", "up": "params_sent"}


def run_device_bytes(rounds: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Counts what passes between a device and its server in a run of the MLP 784-300-100-10, whole.

    Args:
        rounds: How many rounds.
        say: Told what happens.

    Returns:
        One row per way, in bytes: ``compact``, four of each parameter and one bit of each unit, of all
        rounds; ``payload`` as the record has it; ``counted`` while the run lasted, of which ``polling`` is
        what passes in as long a time without one, ``app`` the app's bundle, which comes once with each run,
        and ``messages`` the rest, TLS, HTTP and the questions who it is included; and ``over``, by how much
        that is more than what is compact, as a share.

    Raises:
        FedhpError: If the system is not Linux, or the run does not come to its end.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        data, record = write_samples(place, 1, 600, 28, 10), place / "record"
        server = stack.enter_context(serving(place, 1))
        relay = stack.enter_context(closing(CountingRelay(server.port)))
        alone = stack.enter_context(device(server, 0, relay.port, budget="64MiB"))
        alone.wait_for("connected to")
        say(f"a device waits for {_WAIT_SECONDS:g} s")
        time.sleep(5)
        waiting = _counted(relay, lambda: time.sleep(_WAIT_SECONDS))
        say("it trains")
        words = ["quickstart", "data.name=npz", f"data.root={data}", "model.widths=[300,100]"]
        words += ["train.local_epochs=1", "prune.target_compression=1", f"rounds={rounds}"]
        training = _counted(relay, lambda: server.run(record, *words, "--out", str(record)))
        bundle = len(build_fab_from_disk(make_bundle(place / "app")))
        rows = list(load_run(record).clients.to_dict("records"))
    return {"rows": [_row(way, rows, _UNITS, training, waiting, bundle) for way in _WAYS]}


def _counted(relay: CountingRelay, act: Callable[[], object]) -> dict[str, float]:
    """Returns what passes each way while something is done, and for how long."""
    before, began = dict(relay.counted), time.monotonic()
    act()
    passed: dict[str, float] = {way: relay.counted[way] - before.get(way, 0) for way in _WAYS}
    return {**passed, "seconds": time.monotonic() - began}


def _row(
    way: str,
    rows: list[dict[str, Any]],
    units: int,
    run: Mapping[str, float],
    waiting: Mapping[str, float],
    bundle: int,
) -> dict[str, Any]:
    compact = sum(4 * row[_WAYS[way]] + -(-units // 8) for row in rows)
    polling = waiting[way] * run["seconds"] / waiting["seconds"]
    app = bundle if way == "down" else 0
    messages = run[way] - polling - app
    return {
        "way": way,
        "compact": int(compact),
        "payload": int(sum(row[f"bytes_{way}"] for row in rows)),
        "counted": int(run[way]),
        "polling": int(polling),
        "app": app,
        "messages": int(messages),
        "over": messages / compact - 1,
    }
