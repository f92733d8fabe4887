"""Networks of an architecture, not trained, timed in a runtime: what they take does not depend on weights."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fedhp.data.dataset import Dataset
from fedhp.exports.formats import FORMATS
from fedhp.exports.formats.format import Format, Opened
from fedhp.exports.inputs import random_sample
from fedhp.exports.network import DeviceNetwork, raw_sample
from fedhp.exports.quiet import naming, quiet
from fedhp.exports.timing import timed_calls
from fedhp.exports.trained import Trained
from fedhp.latency.work import Counts
from fedhp.model.architecture import Architecture
from fedhp.model.building import initial_state
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.seeds import generator
from fedhp.threads import torch_threads

_TURNS, _SECONDS = 20, 0.02  # of each network
_LEAST, _MOST = 3, 1000  # calls of a turn

Tell = Callable[[int, int], None]


def silent(done: int, of: int) -> None:
    """Says nothing."""


@dataclass(frozen=True, eq=False)
class Stopwatch:
    """Times networks of an architecture in a runtime, one sample at a time, on one thread.

    Attributes:
        arch: The network.
        dataset: What it is trained on, which says how samples are normalised.
        runtime: A name of `FORMATS`.
    """

    arch: Architecture
    dataset: Dataset
    runtime: str

    @property
    def form(self) -> Format:
        """The format that the runtime runs."""
        return FORMATS[self.runtime]

    def check(self) -> None:
        """Imports what the runtime needs.

        Raises:
            MissingExtraError: If that is not installed.
        """
        self.form.ready()

    def times(self, counts: Sequence[Counts], tell: Tell = silent) -> list[float]:
        """Returns the median time of a sample of each, in microseconds.

        They are run in turns, some calls of each, so that what else the machine does hits all alike.

        Args:
            counts: The units that each keeps.
            tell: Called as networks are written: how many, and of how many.

        Raises:
            MissingExtraError: If the runtime is not installed.
            ExportError: If the format cannot take such a network.
        """
        self.check()
        with tempfile.TemporaryDirectory() as folder, torch_threads(1):
            opened = []
            for number, one in enumerate(counts):
                tell(number, len(counts))
                opened.append(self._opened(one, Path(folder) / f"{number}{self.form.suffix}"))
            tell(len(counts), len(counts))
            return _timed(opened)

    def _opened(self, counts: Counts, path: Path) -> Opened:
        normalisation, kind = self.dataset.normalisation, self.dataset.train_images.dtype
        sample = raw_sample(self.arch.input_shape, normalisation, kind, self.form.channels_last)
        state = self._initial.cut(self.arch.layout, some_units(self.arch.layout.widths, counts))
        network = DeviceNetwork(Trained(path, self.arch, state, "", (), asdict(normalisation)), sample)
        with naming(self.runtime), quiet():
            self.form.write(network, np.zeros((1, *sample.shape), sample.dtype), path)
            return self.form.loaded(path)

    @cached_property
    def _initial(self) -> ModelState:
        return initial_state(self.arch, 0)


def some_units(widths: Counts, counts: Counts) -> Structure:
    """Returns a structure of so many units of each group, spread as pruning leaves them."""
    stream, masks = generator(0, "units to be timed"), {}
    for group, width in widths.items():
        masks[group] = np.zeros(width, bool)
        masks[group][stream.permutation(width)[: counts[group]]] = True
    return Structure(masks)


def _timed(opened: Sequence[Opened]) -> list[float]:
    samples = [random_sample(one) for one in opened]
    turns: list[list[float]] = [[] for _ in opened]
    for _ in range(_TURNS):
        for one, sample, medians in zip(opened, samples, turns, strict=True):
            one.runs(sample)
            one.runs(sample)
            medians.append(float(np.median(timed_calls(one.runs, [sample], _SECONDS, _LEAST, _MOST))))
    return [float(np.median(medians)) for medians in turns]
