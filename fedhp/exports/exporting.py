"""A run's network, written for other runtimes and verified there."""

import copy
import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedhp.bounds import Bounds
from fedhp.compression.methods import Step, parsed
from fedhp.errors import DataError, ExportError, FedhpError
from fedhp.exports.blame import layers_with
from fedhp.exports.card import Folder, begun
from fedhp.exports.compressing import compressed_network, folder_name, patterned, scores_of
from fedhp.exports.formats import FORMATS
from fedhp.exports.formats.format import FLOAT32, INT8_DYNAMIC, Format, Runs
from fedhp.exports.loaded import load_trained
from fedhp.exports.network import DeviceNetwork, RawSample, network_inputs, raw_sample
from fedhp.exports.packed import Compression, Patterned
from fedhp.exports.quiet import naming, quiet, writing
from fedhp.exports.result import Exported, ExportedFile
from fedhp.exports.samples import NOT_ITS_DATA, RawData, batches, check_data, raw_data
from fedhp.exports.timing import usual_microseconds
from fedhp.exports.trained import Trained
from fedhp.exports.verifying import verified
from fedhp.files.atomic import replacing
from fedhp.model.inference import to_plain_module
from fedhp.records.load import load_run
from fedhp.records.result import RunResult
from fedhp.threads import torch_threads

_logger = logging.getLogger("fedhp")

_VERIFIED, _CALIBRATION, _COMPRESSION = 1000, 200, 4096
_CALIBRATIONS = Bounds(at_least=1, largest=100_000)
# By how much the accuracy on some held-out samples may differ from that on all, in deviations, and besides.
_DEVIATIONS, _SLACK = 6, 0.01


def export(
    run: str | Path,
    to: str | Sequence[str] = (),
    dtypes: str | Sequence[str] = (FLOAT32,),
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    calibration: int = _CALIBRATION,
    compress: str = "",
    target: Callable[..., nn.Module] | None = None,
    trust_target: bool = False,
    level: float | None = None,
    tell: Callable[[str, ExportedFile | str], None] = lambda what, outcome: None,
) -> Exported:
    """Writes the final network of a run for other runtimes, each file verified in its own.

    Samples go in raw, one at a time, as they stand in the data: bytes, or numbers as float32. Each file is
    run on up to 1,000 held-out samples; one that does not do what the network does is not left behind. An
    int8 file has a float32 one beside it. With ``compress``, files are written from the compressed network,
    and held against that one.

    Args:
        run: The run's record.
        to: Formats, of `FORMATS`, as a list or with commas; without any, all whose packages are installed.
        dtypes: Of `DTYPES`, as a list or with commas.
        out: Where to write; by default ``export`` in the record, with the level, and the methods' names where
            some compress it. May hold files of the same network.
        data: Where the run's data lies now; by default where the run found it.
        calibration: How many training samples give the ranges of int8 activations.
        compress: Methods with commas, such as ``obc:0.5,ternary``; see `fedhp.compression.methods`.
        target: See `fedhp.load_model`.
        trust_target: See `fedhp.load_model`.
        level: See `fedhp.load_model`.
        tell: Is told of each file when it is there, and why there is none.

    Raises:
        RecordError: If the record holds no model.
        DataError: If its data is not there, or other data is.
        MissingExtraError: If a format that was asked for needs packages that are not installed.
        ExportError: If the folder holds something else or cannot be written, the network's scores are not
            finite, or a format, width or method is not known.
    """
    if flaw := _CALIBRATIONS.amiss(calibration):
        raise ExportError(f"calibration {flaw}")
    steps = parsed(compress) if compress else []
    loaded, trained = load_run(run), load_trained(run, target, trust_target, level)
    accuracy = loaded.accuracy_of(level)
    formats = checked_formats(_listed(to))
    dtypes = _dtypes(_listed(dtypes), formats)
    wanted = [(form, dtype) for form in formats for dtype in dtypes if dtype in form.dtypes]
    place = Path(out) if out is not None else Path(run) / folder_name(steps, level)
    at = None if data is None else Path(data)
    number = _COMPRESSION if steps else 0
    files, failures = list[ExportedFile](), dict[str, str]()
    with begun(place), torch_threads(1):
        raw = raw_data(loaded.config.data, loaded.config.seed, at, _VERIFIED, calibration, number)
        work = _prepared(loaded, trained, raw, steps, accuracy)
        folder = Folder(place, loaded, trained, work.network, accuracy, work.compression, work.pattern)
        folder.check()
        for form, dtype in wanted:
            what = f"{form.name} {dtype}"
            try:
                if f"{form.name} {FLOAT32}" in failures:  # which it would be held against
                    raise ExportError(f"{what} is not written without its file in float32, which failed")
                written = work.write(form, dtype, folder.path, files)
                with writing(what):
                    folder.add(written, work.sample(form))
            except FedhpError as error:
                failures[what] = str(error)
                tell(what, str(error))
                continue
            files.append(written)
            tell(what, written)
    return Exported(folder.path, files, failures, work.compression, work.pattern, raw.num_held_out)


def _listed(names: str | Sequence[str]) -> list[str]:
    parts = names.split(",") if isinstance(names, str) else names
    return [name.strip() for name in parts if name.strip()]


def checked_formats(names: Sequence[str]) -> list[Format]:
    """Returns formats by their names, or without any those whose packages are installed.

    Raises:
        MissingExtraError: If what one needs is not installed.
        ExportError: If there is no such format, or what it needs is installed and broken.
    """
    if unknown := [name for name in names if name not in FORMATS]:
        raise ExportError(f"there is no format '{unknown[0]}'; choose of {', '.join(FORMATS)}")
    if names:
        chosen = [FORMATS[name] for name in dict.fromkeys(names)]
        for form in chosen:
            form.ready()
        return chosen
    found = []
    for form in FORMATS.values():
        with suppress(FedhpError):
            form.ready()
            found.append(form)
    return found


def _dtypes(names: Sequence[str], formats: Sequence[Format]) -> list[str]:
    """Returns the widths, float32 first: what others are measured against."""
    known = [name for form in FORMATS.values() for name in form.dtypes]
    if unknown := [name for name in names if name not in known]:
        raise ExportError(f"there is no width '{unknown[0]}'; choose of {', '.join(dict.fromkeys(known))}")
    if lacking := [name for name in names if not any(name in form.dtypes for form in formats)]:
        chosen = ", ".join(form.name for form in formats)
        others = ", ".join(form.name for form in FORMATS.values() if lacking[0] in form.dtypes)
        raise ExportError(f"'{lacking[0]}' is no width of {chosen}; choose of {others} by --to")
    return list(dict.fromkeys((FLOAT32, *names)))


def _file_name(form: Format, dtype: str) -> str:
    return f"model{'' if dtype == FLOAT32 else '-' + dtype.replace('_', '-')}{form.suffix}"


@dataclass(frozen=True, eq=False)
class _Work:
    """What is exported, and what it is verified on."""

    trained: Trained
    raw: RawData
    network: nn.Module
    compression: Compression | None
    pattern: Patterned | None

    def sample(self, form: Format) -> RawSample:
        """Returns what a file of this format takes."""
        trained = self.trained
        kind = self.raw.held_out.dtype
        return raw_sample(trained.arch.input_shape, trained.normalisation, kind, form.channels_last)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """The network's own scores of the held-out samples, as a device has these, whatever the format."""
        kind = self.sample(next(iter(FORMATS.values()))).dtype
        return scores_of(self.network, network_inputs(self.trained, self.raw.held_out.astype(kind)))

    def write(self, form: Format, dtype: str, folder: Path, before: Sequence[ExportedFile]) -> ExportedFile:
        """Writes a file and verifies it.

        Raises:
            ExportError: If the format cannot take the network, or does not do what it does.
        """
        sample, path = self.sample(form), folder / _file_name(form, dtype)
        network = DeviceNetwork(self.trained, sample, copy.deepcopy(self.network))
        held_out = batches(self.raw.held_out, sample)
        with writing(f"{form.name} {dtype}"), replacing(path) as unfinished:
            left_float = self._converted(form, dtype, network, sample, unfinished)
            runs = _opened(form, unfinished)
            wanted = self.scores
            with naming(f"the runtime of {form.name}"):
                agreement = verified(runs, held_out, self.raw.labels, wanted, dtype)
            if self.compression is not None:
                agreement = replace(agreement, accuracy_before=self.compression.accuracy_before)
            content, microseconds = unfinished.read_bytes(), usual_microseconds(runs, held_out)
        written = ExportedFile(
            path.name,
            form.name,
            dtype,
            len(content),
            hashlib.sha256(content).hexdigest(),
            microseconds,
            agreement,
            left_float,
            {package: importlib.metadata.version(package) for package in form.packages},
        )
        return replace(written, remarks=_remarks(written, before))

    def _converted(
        self, form: Format, dtype: str, network: nn.Module, sample: RawSample, path: Path
    ) -> list[str]:
        example = batches(self.raw.held_out[:1], sample)[0]
        try:
            with quiet(), naming(f"{form.name} {dtype}"):
                if dtype == FLOAT32:
                    form.write(network, example, path)
                    return []
                calibration = batches(self.raw.training, sample)
                return form.write_int8(network, calibration, path, dynamic=dtype == INT8_DYNAMIC)
        except ExportError as error:
            if layers := layers_with(network, example, str(error)):
                raise ExportError(f"{error}; it is in {', '.join(layers)}") from error
            raise


def _prepared(
    run: RunResult, trained: Trained, raw: RawData, steps: Sequence[Step], accuracy: float | None
) -> _Work:
    """Returns what is written: the network as it was trained, or compressed.

    Raises:
        DataError: If the data is another than the run had.
        ExportError: If the network's scores are not finite, or it cannot be compressed.
    """
    check_data(raw, trained.arch.input_shape, trained.arch.num_classes)
    network = to_plain_module(trained.arch, trained.state).eval()
    scores = scores_of(network, network_inputs(trained, raw.held_out))
    if not np.isfinite(scores).all():
        raise ExportError("the network's scores of held-out samples are not finite: it cannot be exported")
    # Of a run that was cut short, the figure may be of the model before.
    if run.summary["status"] == "finished":
        _check_accuracy(accuracy, float((scores.argmax(1) == raw.labels).mean()), len(raw.labels))
    if steps:
        return _Work(trained, raw, *compressed_network(trained, network, raw, steps), None)
    return _Work(trained, raw, network, None, patterned(trained, network, raw, run.config.prune))


def _check_accuracy(told: float | None, found: float, number: int) -> None:
    """Refuses data on which the network is far from what its run had on it: that has changed."""
    if told is not None and abs(found - told) > _SLACK + _DEVIATIONS * (told * (1 - told) / number) ** 0.5:
        raise DataError(
            f"the network gets {found:.1%} of {number:,} held-out samples right, and in its run it had "
            f"{told:.1%}: {NOT_ITS_DATA}"
        )


def _opened(form: Format, path: Path) -> Runs:
    with quiet(), naming(f"the runtime of {form.name}"):
        return form.opened(path)


def _remarks(written: ExportedFile, before: Sequence[ExportedFile]) -> list[str]:
    """Says where a narrower file is no gain over the one in float32."""
    remarks = []
    if written.left_float:
        remarks.append(f"left in float32: {', '.join(written.left_float)}")
    for one in before:
        if one.format == written.format and one.dtype == FLOAT32:
            if written.num_bytes >= one.num_bytes:
                remarks.append(f"no smaller than {one.name}")
            if written.microseconds > one.microseconds:
                remarks.append(f"slower than {one.name}")
    return remarks
