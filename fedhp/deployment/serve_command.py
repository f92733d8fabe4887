"""``fedhp serve``: a server for real devices."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedhp.bounds import MOST_THREADS
from fedhp.errors import MissingExtraError
from fedhp.terminal import readable_errors

if TYPE_CHECKING:
    from fedhp.deployment.folder import ServerFolder
    from fedhp.deployment.server import Address

_PORT = 8000

app = typer.Typer(
    help="Serve real devices: keys, certificates, a server that lets in whom it knows, and runs on them.",
    no_args_is_help=True,
    suggest_commands=False,  # click does
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.", show_default=False)]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="A name or address under which devices reach the server; may be repeated."),
]
Debug = Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")]


@app.command()
def init(
    folder: Folder,
    hosts: Hosts = None,
    devices: Annotated[
        str, typer.Option(help="How many devices in all, or their names by commas.", metavar="NUMBER|NAMES")
    ] = "0",
    debug: Debug = False,
) -> None:
    """Make a server's folder: an authority, a server certificate and a key for each device.

    [bold]Examples[/bold]

      fedhp serve init fleet --host server.example --devices 2

      fedhp serve init fleet --host 192.168.1.10 --devices door,window

    What is there is kept: repeated, it makes only what is missing.
    """
    with readable_errors(debug):
        from fedhp.deployment.folder import ServerFolder, make_folder

        names = _names(devices, ServerFolder(folder).devices())
        made, new = make_folder(folder, hosts or [], names)
        typer.echo(f"server's folder: {folder}, with {len(made.devices())} devices, {len(new)} of them new")
        for name in new:
            typer.echo(f"  copy to {name}: {made.device(name)}")
        typer.echo(f"next: fedhp serve start {folder}")


@app.command()
def add_device(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The device's name.", show_default=False)],
    public_key: Annotated[
        Path | None,
        typer.Option(help="The public half of a key that the device made itself ('fedhp device key')."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Let one more device in; at once where the server runs."""
    with readable_errors(debug):
        from fedhp.deployment.folder import AUTHORITY, ServerFolder
        from fedhp.deployment.server import admit

        place, is_known = admit(ServerFolder(folder), name, public_key)
        typer.echo(f"copy to {name}: {place if public_key is None else place / AUTHORITY}")
        if is_known:
            typer.echo("registered with the server that runs")


@app.command()
def remove_device(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The device's name.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Let a device in no more, for good: lost, sold or not trusted; the server must run.

    To come back, it takes a new key ('fedhp serve add-device').
    """
    with readable_errors(debug):
        from fedhp.deployment import server
        from fedhp.deployment.folder import ServerFolder

        server.remove_device(ServerFolder(folder), name)
        typer.echo(f"removed {name}; its key is refused from now on")


@app.command()
def renew(folder: Folder, hosts: Hosts = None, debug: Debug = False) -> None:
    """Make a new server certificate, for more names or before the old one expires; devices keep theirs."""
    with readable_errors(debug):
        from fedhp.deployment.authority import hosts_of
        from fedhp.deployment.folder import ServerFolder, certify

        server = ServerFolder(folder)
        certify(server, hosts or [])
        typer.echo(f"made {server.server[1]}; a server that runs takes it when it starts again")
        typer.echo(f"it is for {', '.join(hosts_of(server.server[1]))}")


@app.command()
def start(
    folder: Folder,
    host: Annotated[
        str | None,
        typer.Option(help="The interface to listen at; default 0.0.0.0, all of them.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = _PORT,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without encryption and keys; on the loopback only.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Serve: a SuperLink with TLS that lets in the devices that have a key here, until Ctrl-C."""
    with readable_errors(debug):
        from fedhp.deployment.folder import ServerFolder
        from fedhp.deployment.server import serve

        if lacking := _lacking():
            typer.echo(f"warning: devices can connect, but {lacking}", err=True)
        address = _address(host, port, insecure)
        serve(ServerFolder(folder), address, lambda: _tell_ready(ServerFolder(folder), address))


@app.command()
def run(
    folder: Folder,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCENARIO] [KEY=VALUE]...",
            help="A scenario's name or YAML file (default: quickstart), then overrides.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run record; default within DIR/runs.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run of this record instead; no scenario is given.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a scenario on the devices of a server that runs, and show how it goes.

    Ctrl-C ends this command alone: the run goes on at the server, and how to stop it is said.

    [bold]Examples[/bold]

      fedhp serve run fleet quickstart rounds=3

      fedhp serve run fleet mine.yaml --out runs/first

      fedhp serve run fleet --resume runs/first
    """
    with readable_errors(debug):
        if lacking := _lacking():
            raise lacking
        from fedhp.deployment.folder import ServerFolder
        from fedhp.deployment.starting import resume_on_devices, run_on_devices

        words, server = arguments or [], ServerFolder(folder)
        named = bool(words) and "=" not in words[0]
        scenario, overrides = (words[0], words[1:]) if named else ("quickstart", words)
        if resume is None:
            record = run_on_devices(server, scenario, overrides, out)
        elif named or out:
            raise typer.BadParameter(
                "--resume takes the scenario and the folder of its record: leave out SCENARIO and --out"
            )
        else:
            record = resume_on_devices(server, resume, overrides)
        typer.echo(f"record: {record}")


@app.command()
def measure(
    folder: Folder,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Exported networks.", show_default=False)
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file that all are held against.", show_default=False),
    ] = None,
    devices: Annotated[
        str, typer.Option(help="Whom to ask, by commas; default all that are connected.", metavar="NAMES")
    ] = "",
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="With how many each runs.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.05, max=60, help="How long each is timed.")] = 1.0,
    timeout: Annotated[
        float, typer.Option(min=5, max=600, help="After how many seconds a device gives up.")
    ] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Measure exported networks on devices: time of one sample, memory, size; the server must run.

    Devices take part that were started with --measures and have the files' runtime. They are sent .onnx, .pte
    and .tflite files.

    [bold]Examples[/bold]

      fedhp serve measure fleet runs/first/export/model.onnx

      fedhp serve measure fleet small.tflite --against dense.tflite --devices door,window
    """
    with readable_errors(debug):
        if lacking := _lacking():
            raise lacking
        from fedhp.deployment.folder import ServerFolder
        from fedhp.deployment.measuring import measure_on_devices
        from fedhp.deployment.showing import show_measured
        from fedhp.errors import ExportError

        chosen = [name.strip() for name in devices.split(",") if name.strip()]
        given = {"threads": threads, "seconds": seconds, "limit": timeout}
        with Console(stderr=True).status("measuring"):
            found = measure_on_devices(ServerFolder(folder), files, against, chosen, **given)
        if as_json:
            typer.echo(json.dumps([one.to_dict() for one in found], indent=2))
        else:
            show_measured(found)
        if missing := [one.device for one in found if one.failure or (one.found and one.found.failures)]:
            raise ExportError(f"not all could be measured on {', '.join(missing)}; see above")


@app.command()
def devices(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List the devices of a server: who is connected, was last seen when, and failed last with what."""
    with readable_errors(debug):
        from fedhp.deployment.folder import ServerFolder
        from fedhp.deployment.listing import devices_seen
        from fedhp.deployment.showing import show_devices

        seen = devices_seen(ServerFolder(folder))
        if as_json:
            typer.echo(json.dumps([asdict(device) for device in seen], indent=2))
            return
        show_devices(seen)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def unit(context: typer.Context) -> None:
    """Print a systemd unit for this server; what is given is what 'start' takes ('fedhp serve start --help').

    [bold]Example[/bold]

      fedhp serve unit fleet --port 8000 | sudo tee /etc/systemd/system/fedhp-server.service
    """
    start = typer.main.get_group(app).commands["start"]
    # It refuses what that would refuse.
    told = start.make_context(context.info_name, list(context.args), parent=context.parent).params
    with readable_errors():
        from fedhp.deployment.folder import ServerFolder
        from fedhp.deployment.server import checked
        from fedhp.deployment.units import remarks, unit

        typer.echo(unit("server", ["serve", "start", *context.args]), nl=False)
        if lacking := _lacking():
            typer.echo(f"warning: devices could connect, but {lacking}", err=True)
        address = _address(told["host"], told["port"], told["insecure"])
        for remark in remarks(checked(ServerFolder(Path(told["folder"])), address)):
            typer.echo(f"warning: {remark}", err=True)


def _address(host: str | None, port: int, insecure: bool) -> "Address":
    from fedhp.deployment.server import Address

    return Address(host or ("127.0.0.1" if insecure else "0.0.0.0"), port, insecure)


def _lacking() -> MissingExtraError | None:
    """Returns what keeps a server from holding runs, which a run would say once it has its devices."""
    missing = (name for name in ("torch", "pandas", "pyarrow", "scipy") if find_spec(name) is None)
    module = next(missing, None)
    return MissingExtraError("a run on devices", module, "server") if module else None


def _names(devices: str, known: list[str]) -> list[str]:
    if devices.isdecimal():
        free = (name for number in count() if (name := f"device-{number}") not in known)
        return list(islice(free, max(0, int(devices) - len(known))))
    return [name.strip() for name in devices.split(",")]


def _tell_ready(folder: "ServerFolder", address: "Address") -> None:
    typer.echo(f"serving at {address.host}:{address.port}; Ctrl-C ends it")
    known = folder.devices()
    if address.insecure:
        typer.echo(f"a device runs: fedhp device run --superlink {address.here} --insecure --data FILE")
    elif known:
        typer.echo("a device runs, with its folder copied to it, such as:")
        typer.echo(f"  fedhp device run --superlink SERVER:{address.port} --keys {known[0]} --data FILE")
    else:
        typer.echo(f"no device has a key yet: fedhp serve add-device {folder.root} NAME")
    typer.echo(f"a run starts by: fedhp serve run {folder.root} quickstart")
