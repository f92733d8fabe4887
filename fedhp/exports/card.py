"""What an export's folder says of itself: ``export.json`` for programs, ``model_card.md`` for people."""

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from fedhp.errors import ExportError
from fedhp.exports.formats import FORMATS
from fedhp.exports.formats.format import FLOAT32
from fedhp.exports.network import RawSample
from fedhp.exports.packed import Compression, Patterned
from fedhp.exports.result import ExportedFile
from fedhp.exports.trained import Trained
from fedhp.files.atomic import replace_text
from fedhp.files.locks import locked, of
from fedhp.model.state import ModelState
from fedhp.records.result import RunResult
from fedhp.sizes import format_size

CARD, FACTS, LABELS = "model_card.md", "export.json", "labels.txt"

_KEYS = {"network", "files"}
_ELSEWHERE = "choose another folder by --out"


class Folder:
    """The folder of an export: of one network, whatever the formats.

    Args:
        path: The folder.
        run: The record.
        trained: Its network.
        network: What is written of it.
        accuracy: The trained one's on the run's held-out samples, if it is known.
        compression: How that came from the trained one; None where it is the same.
        pattern: What it takes by the pattern that it was trained to have, if any.
    """

    def __init__(
        self,
        path: Path,
        run: RunResult,
        trained: Trained,
        network: nn.Module,
        accuracy: float | None,
        compression: Compression | None,
        pattern: Patterned | None = None,
    ) -> None:
        self.path = path
        self._labels = trained.label_names
        self._network = _described(run, trained, network, accuracy, compression, pattern)
        self._files: dict[str, dict[str, Any]] = {}

    def check(self) -> None:
        """Takes what the folder has of this network already.

        Raises:
            ExportError: If it holds anything else, or what it says of its files is damaged.
        """
        known = _earlier(self.path)
        if known is None:
            return
        if known["network"].get("sha256") != self._network["sha256"]:
            raise ExportError(f"{self.path} holds the export of another network; {_ELSEWHERE}")
        try:
            self._files = {one["name"]: one for one in known["files"] if (self.path / one["name"]).is_file()}
            _card(self._network, self._sorted)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise ExportError(
                f"{self.path / FACTS} is damaged: it holds what no export writes; remove {self.path}, or "
                f"{_ELSEWHERE}"
            ) from None

    @property
    def _sorted(self) -> list[dict[str, Any]]:
        return sorted(self._files.values(), key=lambda one: (one["format"], one["dtype"]))

    def add(self, file: ExportedFile, sample: RawSample) -> None:
        """Tells of a file that was written, in place of an earlier one of its name.

        One that nothing can be told of is not left behind.
        """
        try:
            self._tell(file, sample)
        except BaseException:
            (self.path / file.name).unlink(missing_ok=True)
            raise

    def _tell(self, file: ExportedFile, sample: RawSample) -> None:
        taken = {"shape": [1, *sample.shape], "axes": ["batch", *sample.axes], "dtype": sample.dtype}
        given = {"shape": [1, self._network["classes"]], "axes": ["batch", "classes"], "dtype": "float32"}
        if names := FORMATS[file.format].names:
            taken, given = ({"name": name, **one} for name, one in zip(names, (taken, given), strict=True))
        self._files[file.name] = {**file.to_dict(), "input": taken, "output": given}
        files = self._sorted
        facts = {"network": self._network, "files": files}
        replace_text(self.path / FACTS, json.dumps(facts, indent=2) + "\n")
        replace_text(self.path / CARD, _card(self._network, files))
        if self._labels:
            replace_text(self.path / LABELS, "".join(f"{name}\n" for name in self._labels))


@contextmanager
def begun(folder: Path) -> Iterator[None]:
    """Has an export's folder be there, for this process alone, before anything that takes time.

    Where nothing is written into a folder that is new, none is left.

    Raises:
        ExportError: If it holds anything else than an export, nothing can be written there, or another
            process is at it.
    """
    _earlier(folder)
    with ExitStack() as held:
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if is_new:
                held.callback(_remove_empty, folder)
            held.enter_context(locked(of(folder), wait=False))
        except BlockingIOError:
            wait = f"another export is writing to {folder}; wait for its end"
            raise ExportError(f"{wait}, or {_ELSEWHERE}") from None
        except OSError as error:
            raise ExportError(f"{folder} cannot be written: {error.strerror}; {_ELSEWHERE}") from None
        if not os.access(folder, os.W_OK):
            raise ExportError(f"nothing can be written to {folder}; {_ELSEWHERE}")
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it is not empty
        folder.rmdir()


def _earlier(folder: Path) -> Mapping[str, Any] | None:
    """Returns what a folder's `FACTS` say of an export before; None where there is nothing.

    Raises:
        ExportError: If it holds anything else, or is no folder.
    """
    if not folder.exists() or (folder.is_dir() and all(map(_is_unfinished, folder.iterdir()))):
        return None
    known = _facts(folder)
    if known is None:
        raise ExportError(f"{folder} holds something else than an export; {_ELSEWHERE}")
    return known


def _is_unfinished(path: Path) -> bool:
    """Says whether a file is one of an export that was killed as it wrote it."""
    return path.name.startswith((".model", f".{FACTS}", ".lock"))


def _facts(folder: Path) -> Mapping[str, Any] | None:
    """Returns what `FACTS` says; None where a folder is no export, or its facts are damaged."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        known = set(facts) == _KEYS and all({"name", "format", "dtype"} <= set(one) for one in facts["files"])
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return facts if known and isinstance(facts["network"], dict) else None


def _described(
    run: RunResult,
    trained: Trained,
    network: nn.Module,
    accuracy: float | None,
    compression: Compression | None,
    pattern: Patterned | None,
) -> dict[str, Any]:
    state = trained.state
    return {
        "scenario": run.config.name,
        "seed": run.config.seed,
        "model": run.config.model.said,
        "status": run.summary["status"],
        "accuracy": accuracy,
        "parameters": sum(int(weights.size) for weights in state.weights.values()),
        "parameters_of_the_full_model": run.summary["params_full"],
        "units": {
            group: [count, len(state.structure.masks[group])]
            for group, count in state.structure.counts.items()
        },
        "structure": state.structure.digest,
        "classes": trained.arch.num_classes,
        "labels": list(trained.label_names),
        "sha256": _digest(state, None if compression is None else network),
        "compression": None if compression is None else {**compression.to_dict(), "said": compression.said},
        "pattern": None if pattern is None else pattern.to_dict(),
        "fedhp": importlib.metadata.version("fedhp"),
    }


def _digest(state: ModelState, compressed: nn.Module | None = None) -> str:
    """Returns what tells a network from all others: the trained one, or what was made of it."""
    digest = hashlib.sha256()
    for name in sorted(state.weights):
        digest.update(name.encode() + state.weights[name].tobytes())
    if compressed is not None:
        for name, value in compressed.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
    return hashlib.sha256(digest.digest() + state.structure.digest.encode()).hexdigest()


def holds(folder: Path, state: ModelState, form: str) -> bool:
    """Says whether an export's folder has a network as it was trained, in float32, as that was written.

    Args:
        folder: The folder, which need not be there.
        state: The network.
        form: The name of the file's format.
    """
    facts = _facts(folder)
    if facts is None or facts["network"].get("sha256") != _digest(state):
        return False
    for one in facts["files"]:
        if (one["format"], one["dtype"]) == (form, FLOAT32):
            with suppress(OSError, TypeError, ValueError):  # it is gone, or its name is none
                content = (folder / one["name"]).read_bytes()
                return hashlib.sha256(content).hexdigest() == one.get("sha256")
    return False


def _card(network: Mapping[str, Any], files: list[dict[str, Any]]) -> str:
    units = ", ".join(f"{group} {kept} of {of}" for group, (kept, of) in network["units"].items())
    accuracy = "unknown" if network["accuracy"] is None else f"{100 * network['accuracy']:.2f} %"
    compression = network["compression"]
    lines = [
        f"# {_plain(network['scenario'])}: {network['model']}",
        "",
        f"A network that fedhp {network['fedhp']} trained and pruned: scenario `{network['scenario']}`, seed "
        f"{network['seed']}, {network['status']}.",
        "",
        f"- {network['parameters']:,} parameters, of {network['parameters_of_the_full_model'] or 0:,}; units "
        f"kept: {units}",
        f"- accuracy on held-out samples: {accuracy}" + (", before it was compressed" if compression else ""),
        *(f"- {packed['said']}" for packed in (compression, network["pattern"]) if packed),
        f"- structure `{network['structure']}`, weights `{network['sha256'][:16]}`",
        "",
        "## Files",
        "",
        "Each was run in its own runtime and held against the network"
        + (" as it was compressed" if compression else "")
        + ": *agreement* is the share of samples "
        "with the same answer. *Time* is that of one sample with one thread, on the exporting machine.",
        "",
        "| file | takes | weights | size | time | agreement | largest difference | accuracy |",
        "|---|---|---|---|---|---|---|---|",
        *map(_row, files),
        "",
        "Scores come out, one for each class, float32; the largest is the answer. Samples go in raw: "
        "normalisation is inside.",
        *_names(files),
        *_classes(network["labels"]),
        *_remarks(files),
        "",
        "## Made with",
        "",
        *(f"- {one['name']}: {_versions(one)}; sha256 `{one['sha256']}`" for one in files),
    ]
    return "\n".join(lines) + "\n"


def _names(files: list[dict[str, Any]]) -> list[str]:
    """Says what goes in and comes out is called, where a format has names for it."""
    named = {
        (one["format"], one["input"]["name"], one["output"]["name"])
        for one in files
        if "name" in one["input"]
    }
    return [
        f"In {form} files the input is called `{sample}`, the output `{scores}`."
        for form, sample, scores in sorted(named)
    ]


def _versions(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in one["versions"].items())


def _row(one: Mapping[str, Any]) -> str:
    taken, found = one["input"], one["agreement"]
    shape = " x ".join(f"{size} {axis}" for size, axis in zip(taken["shape"], taken["axes"], strict=True))
    return (
        f"| `{one['name']}` | {taken['dtype']}, {shape} | {one['dtype']} | {format_size(one['num_bytes'])} | "
        f"{one['microseconds']:.1f} us | {100 * found['agreement']:.1f} % of {found['num_samples']} | "
        f"{found['largest_difference']:.2g} | {100 * found['accuracy']:.1f} % |"
    )


def _classes(labels: list[str]) -> list[str]:
    return ["", f"Classes, from 0: {', '.join(map(_plain, labels))} (`{LABELS}`)."] if labels else []


def _plain(text: str) -> str:
    """Returns a text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", text)


def _remarks(files: list[dict[str, Any]]) -> list[str]:
    told = [f"- `{one['name']}`: {remark}" for one in files for remark in one["remarks"]]
    return ["", *told] if told else []
