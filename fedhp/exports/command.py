"""``fedhp export``."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from fedhp.terminal import readable_errors


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The record of a run.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMATS",
            help="Of onnx, executorch, litert and torch, with commas; by default all that are installed.",
            show_default=False,
        ),
    ] = "",
    dtype: Annotated[
        str, typer.Option(metavar="WIDTHS", help="Of float32, int8 and int8_dynamic, with commas.")
    ] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="Where to write; by default RUN/export.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Where the run's data lies now, if elsewhere.", show_default=False),
    ] = None,
    calibration: Annotated[
        int, typer.Option(min=1, max=100_000, help="Training samples that give int8 its ranges.")
    ] = 200,
    compress: Annotated[
        str,
        typer.Option(
            metavar="METHODS",
            help="Make the network smaller first, by obc:0.5, obc:2:4, nm:2:4, obq:4, ternary or smartdeal.",
            show_default=False,
        ),
    ] = "",
    level: Annotated[
        float | None,
        typer.Option(
            metavar="WIDTH",
            help="Export one of the narrower networks that a model of strategy all_in_one stands for.",
            show_default=False,
        ),
    ] = None,
    trust_target: Annotated[
        bool, typer.Option(help="Import and call the code that the record of an own network names.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    """Write a run's network for phones, boards and microcontrollers, each file verified in its own runtime.

    [bold]Examples[/bold]

      fedhp export runs/quickstart-20260131-141500

      fedhp export runs/first --to onnx,litert --dtype float32,int8

      fedhp export runs/first --to onnx --compress obc:0.5,obq:4

    Samples go in raw, as they stand in the data. A file that does not do what the network does is not left
    behind.
    """
    with readable_errors(debug):
        from fedhp.errors import ExportError
        from fedhp.exports.exporting import export
        from fedhp.exports.showing import Progress

        with Progress(silent=as_json) as progress:
            done = export(
                run,
                to,
                dtype,
                out,
                data=data,
                calibration=calibration,
                compress=compress,
                trust_target=trust_target,
                level=level,
                tell=progress.tell,
            )
        if as_json:
            found = {"folder": str(done.folder), "files": [one.to_dict() for one in done.files]}
            packed = {
                key: None if one is None else one.to_dict()
                for key, one in (("compression", done.compression), ("pattern", done.pattern))
            }
            facts = {**found, **packed, "failures": dict(done.failures)}
            typer.echo(json.dumps(facts, indent=2))
        else:
            progress.show(done)
        if out is None and done.files:
            _report_anew(run)
        if done.failures:
            raise ExportError(f"{len(done.failures)} of the files could not be exported; see above")


def _report_anew(run: Path) -> None:
    """Has the run's report show its files, where it has one and what draws it is installed."""
    from fedhp.errors import MissingExtraError
    from fedhp.report import write_report

    if (run / "report.html").exists():
        with suppress(MissingExtraError):
            write_report(run)
