"""``fedhp compare``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from fedhp.bounds import MOST_SEEDS
from fedhp.terminal import readable_errors

USUAL = "unequal_fleet"
DEFAULT = "mask_intersection,scratch,heterofl,fedrolex,exclusive,smallest,dense"


def compare(
    scenario: Annotated[str, typer.Argument(help="A scenario's name or YAML file.")] = USUAL,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides for every run.", show_default=False),
    ] = None,
    strategies: Annotated[
        str,
        typer.Option(
            help="Strategies, by commas; 'all' for all that ship.",
            show_default=DEFAULT.replace(",", ", "),  # so that it can be folded
        ),
    ] = DEFAULT,
    seeds: Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="Number of seeds, from 0.")] = 5,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help="A key to vary besides; given twice, two keys, in all combinations.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default runs/compare-, scenario and keys.")
    ] = None,
    export: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Also export each network, to onnx, executorch, litert or torch: columns of time and size.",
            show_default=False,
        ),
    ] = "",
    debug: Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    """Compare aggregation strategies: same fleet, budgets, seeds and rounds. Repeated, it goes on.

    [bold]Examples[/bold]

      fedhp compare unequal_fleet

      fedhp compare fashion_mnist_fleet --strategies mask_intersection,heterofl,dense --seeds 10

      fedhp compare unequal_fleet --strategies mask_intersection,dense --over prune.target_compression=2,4,8

      fedhp compare quickstart rounds=10 --over data.partition.alpha=0.1,1 --over train.local_epochs=1,4

    Every run is a whole record; then come tables (terminal, table.md, table.tex, CSV) and a report. More
    seeds, strategies or values of the same keys extend what is in the folder.
    """
    with readable_errors(debug):
        if "=" in scenario:  # the first override, of the usual scenario
            overrides, scenario = [scenario, *(overrides or [])], USUAL
        _compare(scenario, overrides or [], strategies, range(seeds), over or [], out, export)


def _compare(
    scenario: str,
    overrides: list[str],
    strategies: str,
    seeds: range,
    over: list[str],
    out: Path | None,
    export: str,
) -> None:
    from fedhp.comparison.cells import comparison_cells
    from fedhp.comparison.grid import Comparison, parse_grid
    from fedhp.comparison.run import run_comparison
    from fedhp.scenario.loading import load_scenario
    from fedhp.sweep.running import check_outcomes

    grid = parse_grid(over)
    if export:
        from fedhp.comparison.exported import check_format

        check_format(export)
    comparison = Comparison(scenario, _names(strategies), seeds, grid, overrides, export)
    where = [entry for entry in overrides if entry.startswith("simulation.")]
    config = load_scenario(scenario, where).simulation
    cells, root = comparison_cells(comparison), out or _default_folder(scenario, grid)
    check_outcomes(run_comparison(comparison, cells, root, config))


def _names(strategies: str) -> list[str]:
    from fedhp.run.setup import registry

    if strategies == "all":
        return list(registry())
    return [name.strip() for name in strategies.split(",")]


def _default_folder(scenario: str, keys: Iterable[str]) -> Path:
    varied = [key.rpartition(".")[2] for key in keys]
    return Path("runs") / "-".join(["compare", Path(scenario).stem, *varied])
