"""``fedhp device``: a real device."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedhp.terminal import readable_errors

if TYPE_CHECKING:
    from fedhp.deployment.device import DeviceOptions

app = typer.Typer(
    help="Be a device: see what this machine can train, and take part in a server's runs.",
    no_args_is_help=True,
    suggest_commands=False,  # click does
)

Keys = Annotated[
    Path | None, typer.Option(help="The folder that 'fedhp serve' made for this device: its key and ca.crt.")
]
Threads = Annotated[int, typer.Option(help="Threads to train with.")]
Runtime = Annotated[
    str, typer.Option(help="torch or numpy; default PyTorch where it is installed.", metavar="NAME")
]
Debug = Annotated[bool, typer.Option(help="Show tracebacks and everything that Flower says.")]


@app.command()
def run(
    context: typer.Context,
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="This device's own samples: an .npz file, a folder of images, idx files or a CSV file."
        ),
    ] = None,
    keys: Keys = None,
    budget: Annotated[
        str, typer.Option(help="Memory for training, such as 2MiB.", metavar="SIZE", show_default=False)
    ] = "",
    reserve: Annotated[
        str,
        typer.Option(
            help="Memory that is to stay free while it trains, such as 16MiB, the default; off lets nothing "
            "watch.",
            metavar="SIZE",
            show_default=False,
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Option(help="The device class in records; default the name in its key.", show_default=False),
    ] = "",
    partition_id: Annotated[
        int | None,
        typer.Option(min=0, help="The part of the scenario's data to play, and the number in records."),
    ] = None,
    threads: Threads = 1,
    runtime: Runtime = "",
    model_target: Annotated[
        str, typer.Option(help="The network of one's own that the server may have imported.")
    ] = "",
    methods: Annotated[
        str, typer.Option(help="Client methods of one's own that the server may have imported, by commas.")
    ] = "",
    measures: Annotated[
        bool,
        typer.Option(
            "--measures",
            help="Let the server have exported networks measured here, which native runtimes load and run.",
        ),
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without encryption and keys; for a server on the loopback.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Take part in a server's runs, until Ctrl-C: whatever ends the SuperNode, it starts again.

    [bold]Examples[/bold]

      fedhp device run --superlink server.example:8000 --keys door --data mine.npz --budget 2MiB

      fedhp device run --superlink server.example:8000 --keys window --partition-id 1

      fedhp device run --superlink server.example:8000 --keys gate --measures
    """
    with readable_errors(debug):
        from fedhp.deployment.device import run_device

        run_device(_options(context.params))


@app.command()
def check(
    scenario: Annotated[str, typer.Argument(help="A scenario's name or YAML file.")] = "quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="This device's own samples; without them, some are made up.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Memory for training; default what is proposed.", metavar="SIZE")
    ] = "",
    threads: Threads = 1,
    runtime: Runtime = "",
    keys: Keys = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """See what this machine can train: its memory and speed, a budget, and the part of a model that fits.

    It trains as 'run' does that is given the same.

    [bold]Examples[/bold]

      fedhp device check

      fedhp device check fashion_mnist_fleet --budget 1MiB --data mine/
    """
    with readable_errors(debug):
        from fedhp.deployment.device import check_computing, own_home
        from fedhp.threads import threads_of_a_process

        check_computing(runtime, threads)
        os.environ.update(threads_of_a_process(threads))  # before anything imports what computes
        from fedhp.deployment.check import check_device
        from fedhp.deployment.showing import show_check
        from fedhp.scenario.loading import load_scenario
        from fedhp.sizes import parse_size

        size = parse_size(budget, "--budget") if budget else None
        chosen = load_scenario(scenario, overrides or [])
        found = check_device(chosen, data, size, runtime, threads, own_home(keys))
        if as_json:
            typer.echo(json.dumps(asdict(found), indent=2))
        else:
            show_check(found)


@app.command()
def key(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    name: Annotated[str, typer.Argument(help="The device's name.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Make this device's key here, so that its private half never travels.

    The public half goes to the server: 'fedhp serve add-device DIR NAME --public-key key.pub'. From there
    comes ca.crt, to be laid beside the key.
    """
    with readable_errors(debug):
        from fedhp.deployment.keys import PUBLIC_KEY, check_name, make_device_key

        make_device_key(folder, check_name(name))
        typer.echo(f"give to the server's owner: {folder / PUBLIC_KEY}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def unit(context: typer.Context) -> None:
    """Print a systemd unit for this device; what is given is what 'run' takes ('fedhp device run --help').

    [bold]Example[/bold]

      fedhp device unit --superlink server.example:8000 --keys door --data mine.npz
    """
    run = typer.main.get_group(app).commands["run"]
    # It refuses what that would refuse.
    told = run.make_context(context.info_name, list(context.args), parent=context.parent).params
    with readable_errors():
        from fedhp.deployment.units import remarks, unit

        typer.echo(unit("device", ["device", "run", *context.args]), nl=False)
        for remark in remarks(_checks(told)):
            typer.echo(f"warning: {remark}", err=True)


def _checks(told: Mapping[str, Any]) -> Iterator[str]:
    from fedhp.deployment.device import checked

    yield from checked(_options(told))


def _options(told: Mapping[str, Any]) -> "DeviceOptions":
    """Returns what the parameters of 'run' say, but for --debug."""
    from fedhp.deployment.device import DeviceOptions
    from fedhp.errors import DeploymentError

    if told["insecure"] == bool(told["keys"]):
        raise DeploymentError("give either --keys, the folder that the server made, or --insecure")
    given = {field.name: told[field.name] for field in fields(DeviceOptions)}
    given |= {key: Path(given[key]) for key in ("keys", "data") if given[key]}
    return DeviceOptions(**given)
