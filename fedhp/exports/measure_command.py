"""``fedhp measure``."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedhp.bounds import MOST_THREADS
from fedhp.exports.measured import Measured, Measurement
from fedhp.sizes import format_size
from fedhp.terminal import readable_errors


def measure(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Exported networks.", show_default=False)
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
            listed = [one.to_dict() for one in found.files]
            typer.echo(json.dumps({"files": listed, "failures": dict(found.failures)}, indent=2))
        else:
            _show(found)
        if found.failures:
            raise ExportError(f"{len(found.failures)} of the files could not be measured; see above")


def _show(found: Measurement) -> None:
    console = Console(highlight=False)
    for said in found.failures.values():
        console.print(said, markup=False, soft_wrap=True)
    if not found.files:
        return
    headings = ["time", "95 %", "size", "memory"]
    headings += ["energy"] * any(one.microjoules is not None for one in found.files)
    headings += ["x time", "x size", "x memory"] * (found.files[0].against is not None)
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.files:
        table.add_row(one.file, *(_cell(one, heading) for heading in headings))
    console.print(table)


def _cell(one: Measured, heading: str) -> str:
    """Returns what stands under a heading; a dash where it is not known."""
    beside = one.against
    cells = {
        "time": f"{one.microseconds:.1f} us",
        "95 %": f"{one.microseconds_p95:.1f} us",
        "size": format_size(one.num_bytes),
        "memory": "-" if one.memory_bytes is None else format_size(one.memory_bytes),
        "energy": "-" if one.microjoules is None else f"{one.microjoules:.0f} uJ",
    }
    if beside is not None:
        cells["x time"] = f"{beside.time:.2f}"
        cells["x size"] = f"{beside.size:.2f}"
        cells["x memory"] = "-" if beside.memory is None else f"{beside.memory:.2f}"
    return cells[heading]
