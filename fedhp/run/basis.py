"""What a run's result hangs on besides its scenario and versions: whether it is what it was is told by it."""

import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedhp.data.dataset import Dataset
from fedhp.errors import RecordError
from fedhp.model.layout import Layout
from fedhp.records.kept import Kept
from fedhp.scenario.schema import Scenario

DATA, NETWORK = "data", "network"
_CHANGED = {
    DATA: "its data is not what it was begun on: put the files of data.name and data.root back as they were",
    NETWORK: "its network is not the one that it was begun with: put model.target's code back as it was",
}


def basis(scenario: Scenario, dataset: Dataset, layout: Layout) -> dict[str, str]:
    """Returns, by what it is, a number each that changes with it: data, network, and modules of one's own."""
    wiring = repr((sorted(layout.widths.items()), sorted(layout.shapes.items())))
    own = (scenario.model.target, scenario.strategy.name, scenario.train.method, *scenario.train.methods)
    modules = {one.partition(":")[0] for one in own if one and ":" in one}
    return {
        DATA: f"{dataset.fingerprint():08x}",
        NETWORK: f"{zlib.crc32(wiring.encode()):08x}",
        **{f"module '{name}'": found for name in sorted(modules) if (found := _source(name))},
    }


def check_basis(kept: Kept, now: Mapping[str, str]) -> None:
    """Checks that a run goes on on the data and with the network of before.

    Raises:
        RecordError: If not.
    """
    for what, changed in _CHANGED.items():
        if kept.basis.get(what, now[what]) != now[what]:
            raise RecordError(f"{kept.folder} cannot go on: {changed}, or start the run anew")


def changed_modules(kept: Kept, now: Mapping[str, str]) -> Iterable[str]:
    """Returns the modules of one's own whose code is another than it was."""
    return [what for what in now if what not in _CHANGED and kept.basis.get(what) != now[what]]


def _source(name: str) -> str:
    """Returns what tells a module's code apart; nothing where it has no file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return "" if file is None else f"{zlib.crc32(Path(file).read_bytes()):08x}"
