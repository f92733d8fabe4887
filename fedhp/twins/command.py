"""``fedhp compare-records``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedhp.terminal import readable_errors


def compare_records(
    simulated: Annotated[
        Path, typer.Argument(metavar="SIM", help="The record of a simulation.", show_default=False)
    ],
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="The record of a run on devices.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write report.html, figures/ and CSV; without it, nothing is.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    """Show where a simulation was wrong about devices: memory, seconds, bytes, accuracy, per device class.

    [bold]Examples[/bold]

      fedhp compare-records runs/quickstart-20260131-141500 fleet/runs/quickstart-20260131-142000

      fedhp compare-records runs/simulated fleet/runs/real --out pages/twins

    Ratios are real by simulated. Records of other scenarios, seeds, rounds or fleets are compared too, with a
    warning; unfinished ones as far as both came.
    """
    with readable_errors(debug):
        from fedhp.twins.comparing import compare_records
        from fedhp.twins.terminal import show

        found = compare_records(simulated, real, out)
        if as_json:
            typer.echo(json.dumps(found.to_dict(), indent=2))
            return
        show(found)
        if out is not None:
            typer.echo(f"report: {out / 'report.html'}")
