"""``fedhp measure``."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedhp.bounds import MOST_THREADS
from fedhp.exports.measured import Measurement
from fedhp.exports.measured_table import measured_table
from fedhp.terminal import readable_errors


def measure(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Exported networks, or their folders.", show_default=False),
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file that all are held against.", show_default=False),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="With how many each runs.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.05, max=600, help="How long each is timed.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    """Measure exported networks in their runtimes: time of one sample, memory, size.

    [bold]Examples[/bold]

      fedhp measure runs/first/export/model.onnx

      fedhp measure runs/first

      fedhp measure small.pte smaller.pte --against dense.pte

    Any .onnx, .pte, .tflite or .pt2 file that takes one input will do; no record is needed. Files are run in
    turns, so that what else the machine does hits all alike.
    """
    with readable_errors(debug):
        from fedhp.errors import ExportError
        from fedhp.exports.measuring import measure

        with Console(stderr=True).status("measuring"):
            found = measure(files, against, threads=threads, seconds=seconds)
        if as_json:
            typer.echo(json.dumps(found.to_dict(), indent=2))
        else:
            _show(found)
        if found.failures:
            raise ExportError(f"{len(found.failures)} of the files could not be measured; see above")


def _show(found: Measurement) -> None:
    console = Console(highlight=False, emoji=False, markup=False)
    for said in found.failures.values():
        console.print(said, soft_wrap=True)
    if found.files:
        names = _without_common_folders([one.file for one in found.files])
        rows = [((name,), one) for name, one in zip(names, found.files, strict=True)]
        console.print(measured_table(rows, ("file",)))


def _without_common_folders(names: Sequence[str]) -> list[str]:
    """Returns paths below the folder in which all of them lie: a table has little room for more."""
    try:
        shared = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # some are absolute, or on another drive
        return list(names)
    return [os.path.relpath(name, shared or ".") for name in names]
