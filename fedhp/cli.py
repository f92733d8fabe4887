"""The command ``fedhp``: thin; every verb calls a function that can be called from Python too."""

import atexit
import gc
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from typer.core import TyperGroup

from fedhp.bench.command import app as bench_app
from fedhp.comparison.command import compare
from fedhp.deployment.device_command import app as device_app
from fedhp.deployment.serve_command import app as serve_app
from fedhp.draft.command import init
from fedhp.exports.command import export
from fedhp.exports.measure_command import measure
from fedhp.exports.spikes_command import spikes
from fedhp.latency.command import latency
from fedhp.references import COHORT_APP
from fedhp.simulation.nursery import begun_early
from fedhp.studies.command import app as studies_app
from fedhp.terminal import ScenarioArguments, outlive_readers, readable_errors, stop_cleanly
from fedhp.twins.command import compare_records

_logger = logging.getLogger("fedhp")


class _Commands(TyperGroup):
    """Commands that answer a scenario's key in the place of an option with how it is written."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was given."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            options = [one for one in error.possibilities or () if one.startswith(error.option_name)]
            if options or error.ctx is None or not _takes_keys(error.ctx.command):
                raise
            from fedhp.scenario.loading import keys_like

            keys = keys_like(error.option_name.lstrip("-").replace("-", "_"))
            if not keys:
                raise
            written = " or ".join(f"{key}=VALUE" for key in keys)
            raise click.UsageError(
                f"No such option '{error.option_name}'. Keys of the scenario go without dashes: {written}",
                error.ctx,
            ) from None


def _takes_keys(command: click.Command) -> bool:
    return any("KEY=VALUE" in (parameter.metavar or "") for parameter in command.params)


app = typer.Typer(
    cls=_Commands,
    help="Federated training of one shrinking model on devices with little memory.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    suggest_commands=False,  # click does
)

app.add_typer(bench_app, name="bench")
app.add_typer(studies_app, name="reproduce")
app.add_typer(serve_app, name="serve")
app.add_typer(device_app, name="device")
app.command()(init)
app.command()(compare)
app.command()(compare_records)
app.command()(export)
app.command()(measure)
app.command()(spikes)
app.command()(latency)


@app.callback(invoke_without_command=True)
def version(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Federated training of one shrinking model on devices with little memory."""
    if show_version:
        typer.echo(f"fedhp {importlib.metadata.version('fedhp')}")
        raise typer.Exit


Out = Annotated[Path | None, typer.Option(help="Folder of the run record; default runs/<scenario>-<time>.")]
Debug = Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")]


@app.command()
def run(
    arguments: ScenarioArguments = None,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Simulate a fleet: train and prune one model on devices that each have a memory budget.

    [bold]Examples[/bold]

      fedhp run

      fedhp run fashion_mnist_fleet rounds=20 prune.target_compression=5

      fedhp run my_fleet.yaml strategy.name=dense --out runs/dense

      fedhp run quickstart simulation.num_workers=0 tracking.wandb.mode=offline

    Overrides are dotted scenario keys; `fedhp show SCENARIO` prints all of them with their values.
    """
    # Workers import what they need while this process does; whether there will be any is read next.
    alone = "simulation.num_workers=0" in (arguments or ())
    with readable_errors(debug), begun_early(COHORT_APP, 1, wanted=not alone):
        with _for_good():
            from fedhp.api import simulate, warn_unpruned, warn_unused
            from fedhp.records.record import run_folder
            from fedhp.scenario.loading import load_scenario, split_arguments

        name, overrides = split_arguments(arguments or [])
        warn_unused("run", overrides)
        scenario = load_scenario(name, overrides)
        warn_unpruned(scenario, overrides)
        with run_folder(scenario.name, out) as folder, _reported(folder):
            simulate(scenario, folder)


@app.command()
def train(
    arguments: ScenarioArguments = None,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Train and prune on one device, without a fleet, within memory.budget where it is set.

    [bold]Examples[/bold]

      fedhp train

      fedhp train fashion_mnist train.epochs=5 prune.target_compression=5

      fedhp train mnist memory.budget=2MiB memory.batch_policy=fill --out runs/small

    It is the loop of a fleet's client, over train.epochs passes; the record's rounds are epochs.
    """
    with readable_errors(debug):
        with _for_good():
            from fedhp.api import train, warn_unused
            from fedhp.records.record import run_folder
            from fedhp.scenario.loading import load_scenario, split_arguments

        name, overrides = split_arguments(arguments or [])
        warn_unused("train", overrides)
        scenario = load_scenario(name, overrides)
        with run_folder(scenario.name, out) as folder, _reported(folder):
            train(scenario, folder)


@app.command()
def resume(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder of a run record.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Overrides of keys that change no result.", show_default=False
        ),
    ] = None,
    federation: Annotated[
        str | None, typer.Option(help="Of a run over devices: Flower's federation to go on with.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Go on with a run that was cut short, to the end that it would have had, bit by bit.

    [bold]Examples[/bold]

      fedhp resume runs/quickstart-20260131-141500

      fedhp resume runs/quickstart-20260131-141500 simulation.num_workers=4

    It goes on at its last checkpoint, one after every round by default (server.checkpoint). A run over
    devices goes on by 'fedhp serve run DIR --resume FOLDER' where 'fedhp serve' serves, or by 'flwr run':
    without --federation, the command is told.
    """
    with readable_errors(debug):
        from fedhp.records.kept import begun_in

        begun_in(folder)  # whatever else may be missing
        with _for_good():
            from fedhp.api import resume

        with _reported(folder):
            if federation is None:
                resume(folder, overrides=overrides or [])
            else:
                from fedhp.deployment.starting import resume_under_flower

                resume_under_flower(folder, federation, overrides or [])


@app.command()
def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="The folder of a run record or a comparison.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write report.html and figures/; default FOLDER.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Report on a run or a comparison: report.html, one page that needs nothing else, and its figures.

    [bold]Examples[/bold]

      fedhp report runs/quickstart-20260131-141500

      fedhp report runs/quickstart-20260131-141500 --out pages/first

      fedhp report runs/compare-quickstart

    `fedhp run`, `train` and `compare` do so at their end. An unfinished run is reported as far as it came.
    """
    with readable_errors(debug):
        from fedhp.comparison.report import report_on_folder

        typer.echo(f"report: {report_on_folder(folder, out)}")


@app.command()
def scenarios() -> None:
    """List the scenarios that ship."""
    from fedhp.scenario.loading import load_scenario, shipped_scenarios

    for name in shipped_scenarios():
        one = load_scenario(name)
        alone = one.fleet.num_clients == 1
        command = f"fedhp train {name}: {one.train.epochs} epochs"
        _tell(name, one.description, command if alone else f"fedhp run {name}: {one.rounds} rounds")


@app.command()
def show(
    arguments: ScenarioArguments = None,
    debug: Debug = False,
) -> None:
    """Print a scenario as it would run, every key with its value, as YAML."""
    with readable_errors(debug):
        from fedhp.scenario.loading import load_scenario, split_arguments

        name, overrides = split_arguments(arguments or [])
        typer.echo(load_scenario(name, overrides).to_yaml(), nl=False)


@app.command()
def strategies() -> None:
    """List the aggregation strategies."""
    with readable_errors():
        from fedhp.aggregation.options import StrategyConfig
        from fedhp.run.setup import registry

    usual = StrategyConfig()
    for name, kind in registry().items():
        summary = (kind.__doc__ or "").partition("\n")[0]
        own = {key: getattr(usual, key) for key in sorted(kind.options)}
        told = {"paper": kind.paper, "options": _options("strategy", own)}
        _tell(name, summary, *(f"{what}: {text}" for what, text in told.items() if text))
    optimizer = _options("strategy.optimizer", vars(usual.optimizer))
    _tell("all of them", "take a server optimiser besides", f"options: {optimizer}")
    _tell("what the options mean", "docs/scenarios.md")


def _options(section: str, values: Mapping[str, object]) -> str:
    """Writes options with their defaults as one would give them on the command line."""

    def said(value: object) -> object:
        return "null" if value is None else "''" if value == "" else value

    return " ".join(
        _options(f"{section}.{key}", vars(value)) if is_dataclass(value) else f"{section}.{key}={said(value)}"
        for key, value in values.items()
    )


def _tell(name: str, *lines: str) -> None:
    """Prints what has a name, and what there is to say of it below, indented, in a terminal of any width."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(name, style="bold")
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def main() -> None:
    """Runs the command line; modules of one's own are found where it was called."""
    sys.path.insert(0, os.getcwd())
    outlive_readers()
    stop_cleanly()
    atexit.register(gc.freeze)  # or the interpreter looks through all of it as it ends: half a second
    app()


@contextmanager
def _for_good() -> Iterator[None]:
    """Keeps the garbage collector from what is imported within: it would look through it again and again."""
    if "torch" in sys.modules:  # nearly all is there already, and not by this process's one command
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Reports on the run that goes on meanwhile; says how, of one that is interrupted."""
    from fedhp.records.kept import can_go_on
    from fedhp.records.load import has_finished
    from fedhp.report.writing import reported

    try:
        with reported(folder):
            yield
    except KeyboardInterrupt:
        if has_finished(folder):
            _logger.info(
                "the record is whole, only its report is missing: 'fedhp report %s' writes it", folder
            )
        elif (folder / "rounds.parquet").exists():
            _logger.info("'fedhp report %s' reports on it as far as it came", folder)
            if can_go_on(folder):
                _logger.info("'fedhp resume %s' goes on with it", folder)
        raise
