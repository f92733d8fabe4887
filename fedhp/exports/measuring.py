"""How fast and how large files are in their runtimes, run in turns."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.bounds import Bounds, one_line
from fedhp.errors import ExportError, FedhpError
from fedhp.exports.energy import EnergyCounter
from fedhp.exports.formats import FORMATS
from fedhp.exports.formats.format import Format, Opened
from fedhp.exports.inputs import random_sample
from fedhp.exports.loading_memory import memory_of
from fedhp.exports.measured import Measured, Measurement, Ratios
from fedhp.exports.quiet import quiet
from fedhp.exports.timing import timed_calls
from fedhp.threads import has_torch, torch_threads

_TURNS, _WARM_UP = 20, 20
_SECONDS = Bounds(above=0, at_most=600)
_LEAST, _MOST = 3, 1000  # calls of a turn


def measure(
    files: Sequence[str | Path],
    against: str | Path | None = None,
    *,
    threads: int = 1,
    seconds: float = 1.0,
) -> Measurement:
    """Measures files in their runtimes: time with one sample at a time, memory, size.

    Files are run in turns, some calls of each, so that whatever else the machine does hits all alike. A
    turn begins with two calls that are not timed, and a ratio of times is that of a turn.

    Args:
        files: Of the formats that `fedhp.export` writes, whoever wrote them; no record is needed. Of an
            export's folder, or of a record that has one, all files of these formats.
        against: The file that all are held against.
        threads: With how many threads each runs.
        seconds: How long each is timed, at least.

    Raises:
        ExportError: If the file that others are held against cannot be measured, or the time is no number.
    """
    if flaw := _SECONDS.amiss(seconds):
        raise ExportError(f"seconds {flaw}")
    given = [name for one in files for name in _in_folder(str(one))]
    names = list(dict.fromkeys(given if against is None else [str(against), *given]))
    opened, failures = list[_Timed](), dict[str, str]()
    with _own_threads(names, threads):
        for name in names:
            try:
                opened.append(_opened(name, threads))
            except FedhpError as error:
                failures[name] = str(error)
        if against is not None and str(against) in failures:
            raise ExportError(failures[str(against)])
        _take_turns(opened, seconds / _TURNS)
    found = [one.measured(threads) for one in opened]
    if against is not None:  # which is the first
        found = [
            replace(one, against=_ratios(timed, one, opened[0], found[0]))
            for timed, one in zip(opened, found, strict=True)
        ]
    return Measurement(tuple(found), failures)


@dataclass(eq=False)
class _Timed:
    """A file in its runtime, and what its calls took."""

    name: str
    form: Format
    opened: Opened
    sample: NDArray[Any]
    turns: list[list[float]] = field(default_factory=list)  # microseconds
    microjoules: float | None = 0.0

    def turn(self, seconds: float, energy: EnergyCounter) -> None:
        """Runs it for about so long."""
        runs, sample = self.opened.runs, self.sample
        runs(sample)
        runs(sample)
        before = energy.read()
        taken = timed_calls(runs, [sample], seconds, _LEAST, _MOST)
        took = energy.between(before, energy.read())
        self.microjoules = None if took is None or self.microjoules is None else self.microjoules + took
        self.turns.append(taken)

    def measured(self, threads: int) -> Measured:
        """Returns what was found, and measures its memory."""
        taken, path = np.concatenate(self.turns), Path(self.name)
        median, p95 = np.quantile(taken, (0.5, 0.95)).tolist()
        return Measured(
            self.name,
            self.form.name,
            self.opened.shape,
            self.opened.dtype,
            threads,
            round(median, 2),
            round(p95, 2),
            len(taken),
            path.stat().st_size,
            memory_of(path, self.form.name, threads),
            None if self.microjoules is None else round(self.microjoules / len(taken), 2),
        )


def _in_folder(name: str) -> list[str]:
    """Returns a folder's files that can be measured, or of its folder ``export``; of a file, itself."""
    if not Path(name).is_dir():
        return [name]
    suffixes = {one.suffix for one in FORMATS.values()}
    for folder in (Path(name), Path(name) / "export"):
        if found := sorted(str(one) for one in folder.glob("*") if one.suffix in suffixes):
            return found
    return [name]


def _opened(name: str, threads: int) -> _Timed:
    path = Path(name)
    if path.is_dir():
        raise ExportError(
            f"the folder {name} holds no file that can be measured, nor does one named export in it; give an "
            "export's folder or files"
        )
    form = next((one for one in FORMATS.values() if one.suffix == path.suffix), None)
    if form is None:
        known = ", ".join(one.suffix for one in FORMATS.values())
        raise ExportError(f"{name} is of no format that can be measured: its name must end in one of {known}")
    if not path.is_file():
        raise ExportError(f"there is no file {name}")
    try:
        with quiet():
            import_module(form.runtime)
    except Exception as error:  # broken ones raise any kind
        said = one_line(str(error), 300)
        raise ExportError(f"{name}: its runtime is not there ({said}): pip install {form.runs_by}") from error
    try:
        with quiet():
            opened = form.loaded(path, threads)
            sample = random_sample(opened)
            for _ in range(_WARM_UP):
                opened.runs(sample)
    except Exception as error:  # each runtime raises classes of its own
        said = one_line(" ".join(str(error).split()), 300) or type(error).__name__
        raise ExportError(f"{name} cannot be run by {form.runtime.partition('.')[0]}: {said}") from error
    return _Timed(name, form, opened, sample)


def _own_threads(names: Sequence[str], threads: int) -> AbstractContextManager[None]:
    """Sets those of PyTorch, which computes with as many as its process has; others are told by file."""
    is_asked = any(Path(name).suffix == FORMATS["torch"].suffix for name in names)
    return torch_threads(threads) if is_asked and has_torch() else nullcontext()


def _take_turns(opened: Sequence[_Timed], seconds: float) -> None:
    energy = EnergyCounter()
    for _ in range(_TURNS):
        for one in opened:
            one.turn(seconds, energy)


def _ratios(one: _Timed, measured: Measured, dense: _Timed, beside: Measured) -> Ratios:
    turns = [np.median(a) / np.median(b) for a, b in zip(one.turns, dense.turns, strict=True)]
    lower, middle, upper = (round(float(q), 4) for q in np.quantile(turns, (0.25, 0.5, 0.75)))
    memory, other = measured.memory_bytes, beside.memory_bytes
    share = None if memory is None or not other else round(memory / other, 4)
    return Ratios(middle, (lower, upper), round(measured.num_bytes / beside.num_bytes, 4), share)
