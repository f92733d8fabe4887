"""``fedhp bench``: what the documentation's figures were measured with. Each prints a table."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedhp.bounds import MOST_SEEDS
from fedhp.terminal import readable_errors

_MOST = 10**6  # of anything that is counted: more never ends, or fits no machine

app = typer.Typer(
    help="Measure speed, memory and accuracy; docs/benchmarks.md says with which commands.",
    no_args_is_help=True,
    suggest_commands=False,  # click does
)


def _writable(file: Path | None) -> Path | None:
    """Refuses a file that cannot be written, before anything is measured."""
    if file is not None:
        is_new = not file.exists()
        place = file.absolute().parent if is_new else file
        if place.is_dir() != is_new or not os.access(place, os.W_OK):
            raise typer.BadParameter(f"{file} cannot be written; give a file in a folder that exists")
    return file


Json = Annotated[
    Path | None, typer.Option("--json", help="Also write the figures to this file.", callback=_writable)
]
Workers = Annotated[
    int, typer.Option(min=0, max=4096, help="Worker processes; 0 runs the clients in this process.")
]


@app.command()
@readable_errors()
def fleet(
    scenario: Annotated[str, typer.Argument(help="A scenario's name or YAML file.")] = "fashion_mnist_fleet",
    seeds: Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="Number of seeds, from 0.")] = 3,
    strategies: Annotated[
        str, typer.Option(help="Strategies, by commas.")
    ] = "mask_intersection,dense,exclusive",
    workers: Workers = 2,
    json_file: Json = None,
) -> None:
    """Accuracy, compression and memory of a fleet against the dense yardsticks, over seeds."""
    from fedhp.bench.fleet import run_fleet

    result = run_fleet(scenario, range(seeds), strategies.split(","), **{"simulation.num_workers": workers})
    for table in ("runs", "strategies"):
        _show([_fleet_row(row) for row in result[table]])
    _write(json_file, result)


# What of a fleet's figures fits a terminal: heading and unit; the JSON file has all.
_FLEET: dict[str, tuple[str, float]] = {
    "strategy": ("strategy", 1),
    "seed": ("seed", 1),
    "final_accuracy": ("last %", 0.01),
    "last_accuracy": ("last %", 0.01),
    "last_accuracy_deviation": ("±", 0.01),
    "best_accuracy": ("best %", 0.01),
    "compression": ("size 1/", 1),
    "budget_violations": ("over", 1),
    "memory_measured_mean": ("MiB", 2**20),
    "bytes_up": ("MiB up", 2**20),
    "seconds": ("s", 1),
}


def _fleet_row(row: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: column for key, column in _FLEET.items() if key in row}
    return {name: row[key] if unit == 1 else row[key] / unit for key, (name, unit) in known.items()}


@app.command()
@readable_errors()
def windows(
    file: Annotated[Path, typer.Argument(help="The .npz file to write.", callback=_writable)],
    source: Annotated[str, typer.Option(help="A data set of pictures.")] = "mnist",
    owners: Annotated[int, typer.Option(min=1, max=_MOST, help="People with sensors.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
) -> None:
    """Write windows of sensor readings, made of pictures whose rows are steps of time, with owners."""
    from fedhp.bench.windows import write_windows

    _report(write_windows(file, source, owners, seed), None)


@app.command()
@readable_errors()
def robust(
    scenario: Annotated[str, typer.Argument(help="A scenario's name or YAML file.")] = "quickstart",
    seeds: Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="Number of seeds, from 0.")] = 3,
    workers: Workers = 2,
    json_file: Json = None,
) -> None:
    """Accuracy where a fifth of the clients lies, by the rule that makes one of them; an hour."""
    from fedhp.bench.robust import run_robust

    overrides: dict[str, Any] = {"simulation.num_workers": workers}
    _report(run_robust(scenario, range(seeds), say=_say, **overrides), json_file)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides for every training.", show_default=False),
]
Scenarios = Annotated[str, typer.Option(help="Scenarios for one device, by commas.")]
Seeds = Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="Number of seeds, from 0.")]
Quick = Annotated[bool, typer.Option("--quick", help="A taste: the digits of quickstart, one seed.")]
_QUICK = ("train.epochs=4",)


@app.command()
@readable_errors()
def compression(
    scenarios: Scenarios = "fashion_mnist,cifar10",
    seeds: Seeds = 3,
    methods: Annotated[
        str, typer.Option(help="As `fedhp export --compress` takes them, with semicolons between.")
    ] = "",
    json_file: Json = None,
) -> None:
    """Accuracy and packed size of trained, pruned networks by each method of compression; half an hour."""
    from fedhp.bench.compression import METHODS, run_compression

    wanted = [method for method in methods.split(";") if method] or METHODS
    result = run_compression(scenarios.split(","), range(seeds), wanted, say=_say)
    _show(result["rows"])
    _write(json_file, result)


@app.command()
@readable_errors()
def torch_pruning(
    overrides: Overrides = None,
    scenarios: Scenarios = "fashion_mnist,cifar10",
    seeds: Seeds = 3,
    plans: Annotated[
        str,
        typer.Option(help="Shares of epochs before the cut; :constant for the learning rate, :global ranks."),
    ] = "0.5,0.25:constant",
    out: Annotated[Path, typer.Option(help="Where records are kept.")] = Path("runs/torch-pruning"),
    quick: Quick = False,
    json_file: Json = None,
) -> None:
    """DynHP beside one-shot pruning by Torch-Pruning at equal epochs and parameters; half an hour.

    Repeated, it goes on, and measures in the runtimes of the environment that it is called in.
    """
    from fedhp.bench.torch_pruned import run_torch_pruned

    names, numbers, place, values = _trainings(scenarios, seeds, out, quick, overrides)
    result = run_torch_pruned(names, numbers, plans.split(","), place, values, say=_say)
    _show(result["rows"])
    _write(json_file, result)


@app.command()
@readable_errors()
def int8(
    overrides: Overrides = None,
    scenarios: Scenarios = "fashion_mnist,cifar10",
    seeds: Seeds = 3,
    calibration: Annotated[
        int, typer.Option(min=1, max=100_000, help="Training samples that give the ranges.")
    ] = 200,
    out: Annotated[Path, typer.Option(help="Where records are kept.")] = Path("runs/int8"),
    quick: Quick = False,
    json_file: Json = None,
) -> None:
    """Accuracy of int8 beside float32 in the runtimes that are installed; ten minutes.

    Repeated, it goes on, and measures in the runtimes of the environment that it is called in.
    """
    from fedhp.bench.int8 import run_int8

    result = run_int8(*_trainings(scenarios, seeds, out, quick, overrides), calibration, say=_say)
    _show(result["rows"])
    _write(json_file, result)


def _trainings(
    scenarios: str, seeds: int, out: Path, quick: bool, overrides: list[str] | None
) -> tuple[list[str], range, Path, list[str]]:
    """Returns scenarios, seeds, where records are kept, and overrides; those of a taste where it is quick."""
    if quick:
        return ["quickstart"], range(1), out.with_name(f"{out.name}-quick"), [*(overrides or ()), *_QUICK]
    return scenarios.split(","), range(seeds), out, overrides or []


@app.command()
@readable_errors()
def replies(
    number: Annotated[
        int, typer.Option(min=1, max=_MOST, help="Wrong replies, over all strategies.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of which are sent, and when.")] = 0,
    json_file: Json = None,
) -> None:
    """Malformed, misattributed and poisonous replies to every strategy: which count, or stop a round."""
    from fedhp.bench.replies import run_replies

    _report(run_replies(number, seed, say=_say), json_file)


@app.command()
@readable_errors()
def devices(
    number: Annotated[int, typer.Option(min=2, max=_MOST, help="Devices, about 200 MiB each.")] = 4,
    rounds: Annotated[int, typer.Option(min=2, max=_MOST, help="Rounds.")] = 6,
    seconds: Annotated[
        float, typer.Option(min=1, max=_MOST, help="Over which they are killed, from the first round's end.")
    ] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments.")] = 0,
    json_file: Json = None,
) -> None:
    """Devices on the loopback, over TLS, each killed once, and the server: what becomes of a run (Linux)."""
    from fedhp.bench.devices import run_devices

    result = run_devices(number, rounds, seconds, seed, say=_say)
    _show_sideways([{key: value for key, value in result.items() if not isinstance(value, dict)}])
    for table in ("failures", "kills"):
        _show([{table: cause, "number": times} for cause, times in result[table].items()])
    _write(json_file, result)


@app.command()
@readable_errors()
def device_memory(
    rounds: Annotated[int, typer.Option(min=1, max=_MOST, help="Rounds.")] = 3, json_file: Json = None
) -> None:
    """All processes of a device beside those of a SuperNode as Flower starts it; four minutes (Linux)."""
    from fedhp.bench.device_memory import run_device_memory

    _report(run_device_memory(rounds, say=_say), json_file)


@app.command()
@readable_errors()
def device_bytes(
    rounds: Annotated[int, typer.Option(min=1, max=_MOST, help="Rounds.")] = 10, json_file: Json = None
) -> None:
    """Bytes between a device and its server, counted at the socket; three minutes (Linux)."""
    from fedhp.bench.device_bytes import run_device_bytes

    _report(run_device_bytes(rounds, say=_say), json_file)


@app.command()
@readable_errors()
def memory(json_file: Json = None) -> None:
    """The memory model against PyTorch's own measurement, per model and batch; 10 to 30 minutes."""
    from fedhp.bench.memory import run_memory

    _report(run_memory(_say), json_file)


@app.command()
@readable_errors()
def step(json_file: Json = None) -> None:
    """A training step of a pruned network beside the dense one's, and what tracking its units costs."""
    from fedhp.bench.step import run_step

    _report(run_step(), json_file)


@app.command()
@readable_errors()
def engine(
    nodes: Annotated[int, typer.Option(min=1, max=_MOST, help="Simulated nodes.")] = 1000,
    workers: Workers = 2,
    vs_flower: Annotated[bool, typer.Option(help="Run Flower's engine beside it.")] = False,
    numbers: Annotated[
        int, typer.Option(min=1, max=_MOST, help="float32 numbers per message (MLP: 266610).")
    ] = 10_000,
    json_file: Json = None,
) -> None:
    """Messages per second of the simulation engine; clients only return what they got (40 KB)."""
    from fedhp.bench.engine import run_engine

    _report(run_engine(nodes, workers, vs_flower, numbers=numbers), json_file)


@app.command(name="round")
@readable_errors()
def round_(
    workers: Workers = 2,
    clients: Annotated[int, typer.Option(min=1, max=50_000, help="Clients of the fleet.")] = 1000,
    per_round: Annotated[int, typer.Option(min=1, max=50_000, help="Clients in a round.")] = 50,
    compression: Annotated[
        float, typer.Option(min=1, max=1000, help="How much smaller the network is than the MLP.")
    ] = 1.0,
    vs_flower: Annotated[bool, typer.Option(help="Run Flower's engine and FedAvg on the same work.")] = False,
    json_file: Json = None,
) -> None:
    """Clients per second of plain federated averaging beside a bare PyTorch loop, and memory (PSS)."""
    from fedhp.bench.round import run_round

    _report(run_round(workers, clients, min(per_round, clients), compression, vs_flower), json_file)


@app.command()
@readable_errors()
def stack(
    turns: Annotated[int, typer.Option(min=1, max=1000, help="Of each case; medians over them.")] = 7,
    json_file: Json = None,
) -> None:
    """Clients trained 1 to 50 at a time beside a bare loop, per network; 2 to 5 minutes."""
    from fedhp.bench.stack import run_stack

    _report(run_stack(turns=turns, say=_say), json_file)


@app.command()
@readable_errors()
def overhead(workers: Workers = 2, json_file: Json = None) -> None:
    """A round's cost beyond the clients' own training, with 100 clients of the MLP."""
    from fedhp.bench.overhead import run_overhead

    _report(run_overhead(workers), json_file)


@app.command()
@readable_errors()
def growth(workers: Workers = 2, json_file: Json = None) -> None:
    """The server's peak memory for few and many clients and rounds."""
    from fedhp.bench.growth import run_growth

    _report(run_growth(workers), json_file)


@app.command()
@readable_errors()
def resume(
    kills: Annotated[int, typer.Option(min=1, max=_MOST, help="Runs that are killed.")] = 30,
    ray: Annotated[bool, typer.Option(help="Have every other run's workers on Ray.")] = True,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEEDS, help="Of the moments.")] = 0,
    json_file: Json = None,
) -> None:
    """Runs killed (-9) at random moments and gone on with: which end as the undisturbed one (Linux)."""
    from fedhp.bench.resume import run_resume

    _report(run_resume(kills, ray, seed, _say), json_file)


@app.command()
@readable_errors()
def reconcile(
    updates: Annotated[int, typer.Option(min=1, max=_MOST, help="Updates of a million parameters.")] = 1000,
    json_file: Json = None,
) -> None:
    """Reconciling many updates beside reading them once from memory, and the memory that it takes."""
    from fedhp.bench.reconcile import run_reconcile

    _report(run_reconcile(updates), json_file)


@app.command()
@readable_errors()
def process(
    limit: Annotated[str, typer.Option(help="What the system allows.")] = "16MiB",
    epochs: Annotated[int, typer.Option(min=1, max=_MOST, help="Passes over the digits.")] = 10,
    json_file: Json = None,
) -> None:
    """A device's process under a hard limit of the operating system, dense and with DynHP (Linux)."""
    from fedhp.bench.process import run_process
    from fedhp.sizes import parse_size

    _report(run_process(parse_size(limit, "--limit"), epochs), json_file)


@app.command()
@readable_errors()
def runtimes(
    rounds: Annotated[int, typer.Option(min=1, max=_MOST, help="Rounds of each; medians over them.")] = 20,
    json_file: Json = None,
) -> None:
    """A device's client process with NumPy beside one with PyTorch: memory, and a round's time (Linux)."""
    from fedhp.bench.runtimes import run_runtimes

    _report(run_runtimes(rounds), json_file)


# Rows that stand beside each other in a terminal's width.
_FEW = 4


def _say(text: str) -> None:
    """Says how far a measurement is, beside its figures."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)


def _report(result: Mapping[str, Any], json_file: Path | None) -> None:
    for rows in (result.get("rows"), [{k: v for k, v in result.items() if not isinstance(v, list)}]):
        if rows:
            (_show if len(rows) > _FEW else _show_sideways)(rows)
    _write(json_file, result)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for column in _columns(rows):
        table.add_column(_heading(column), overflow="fold", no_wrap=column == "strategy")
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in _columns(rows)))
    Console().print(table)


def _show_sideways(rows: Sequence[Mapping[str, Any]]) -> None:
    """Shows a row as a column: few runs with many figures do not fit a terminal's width otherwise."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    for _ in rows:
        table.add_column(justify="right")
    for column in _columns(rows):
        table.add_row(_heading(column), *(_cell(row.get(column, "")) for row in rows))
    Console().print(table)


def _heading(column: str) -> str:
    return column.replace("_", " ")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _write(json_file: Path | None, result: Mapping[str, Any]) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
