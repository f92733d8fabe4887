"""``fedhp spikes``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedhp.terminal import readable_errors

if TYPE_CHECKING:
    from fedhp.exports.spikes import SpikeCount


def spikes(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The record of a run.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(help="Where the run's data lies now, if elsewhere.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    """Count the spikes of a run's spiking network, and estimate their energy beside the same without spikes.

    [bold]Examples[/bold]

      fedhp spikes runs/first

    On up to 1,000 of the run's held-out samples. Energies are of operations alone, of 32-bit numbers in
    45 nm: 4.6 pJ for a multiplication with its addition, 0.9 pJ for an addition (Horowitz 2014).
    """
    with readable_errors(debug):
        from fedhp.exports.spikes import count_spikes

        found = count_spikes(run, data)
        if as_json:
            typer.echo(json.dumps(found.to_dict(), indent=2))
        else:
            _show(found)


def _show(found: "SpikeCount") -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("inputs that spike", "operations", "energy", "without spikes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.layers:
        rate = "the sample" if one.rate is None else f"{one.rate:.1%}"
        table.add_row(
            one.name, rate, f"{one.operations:,.0f}", *_nanojoules(one.picojoules, one.picojoules_without)
        )
    table.add_row("all", "", "", *_nanojoules(found.picojoules, found.picojoules_without))
    console = Console(highlight=False, emoji=False, markup=False)
    console.print(table)
    console.print(
        f"{found.spikes:,.1f} spikes for a sample in {found.time_steps} time steps, the mean over "
        f"{found.num_samples:,} held-out samples; {_nanojoules(found.picojoules_kept)[0]} were the first "
        f"layer's current kept, which is the same at every step. Energies are estimates, of operations alone "
        f"(45 nm: 4.6 pJ for a product with its addition, 0.9 pJ for an addition)",
        soft_wrap=True,
    )


def _nanojoules(*picojoules: float) -> list[str]:
    return [f"{energy / 1000:,.2f} nJ" for energy in picojoules]
