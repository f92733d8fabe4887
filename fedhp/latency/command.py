"""``fedhp latency``."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedhp.sizes import format_duration
from fedhp.terminal import ScenarioArguments, readable_errors

if TYPE_CHECKING:
    from fedhp.latency.look import Fitted


def latency(
    arguments: ScenarioArguments = None,
    runtime: Annotated[
        str, typer.Option(help="onnx, executorch, litert or torch; default prune.runtime.", metavar="NAME")
    ] = "",
    again: Annotated[bool, typer.Option(help="Measure, though it was measured here before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    """Measure what a scenario's network takes in a runtime as it shrinks, on this machine.

    [bold]Examples[/bold]

      fedhp latency cifar10 --runtime onnx

      fedhp latency my.yaml prune.target_latency=2ms prune.runtime=executorch

    Networks are not trained for it. What is found is kept, and prune.target_latency chooses by it: with that
    key, what it would choose is said.
    """
    with readable_errors(debug):
        from fedhp.latency.look import look
        from fedhp.run.setup import strategy_class
        from fedhp.scenario.loading import load_scenario, split_arguments

        scenario = load_scenario(*split_arguments(arguments or []))
        found = look(scenario, strategy_class(scenario.strategy.name), runtime, again=again)
        if as_json:
            typer.echo(json.dumps(found.to_dict(), indent=2))
        else:
            _show(found)


def _show(found: "Fitted") -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("parameters", "multiple of", "time", "x time", "by the model"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("widths", overflow="fold")
    whole = found.measured.microseconds[0]
    for one, took in found.rows:
        table.add_row(
            f"{one.num_parameters:,}",
            str(one.channels),
            format_duration(took),
            f"{took / whole:.2f}",
            format_duration(found.model.predict(one.counts)),
            "-".join(map(str, one.counts.values())),
        )
    console.print(table)
    console.print(
        f"{found.runtime}, one sample on one thread; the model is off by {100 * found.model.error:.0f} % for "
        f"networks that it was not fitted to",
        markup=False,
        soft_wrap=True,
    )
    for note in found.notes:
        console.print(note, markup=False, soft_wrap=True)
