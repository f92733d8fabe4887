"""``fedhp reproduce``: the tables and pictures of the documentation, each by one command."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedhp.bounds import MOST_SEEDS
from fedhp.terminal import readable_errors

if TYPE_CHECKING:
    from fedhp.studies.study import Conclude
    from fedhp.sweep.cell import Study

app = typer.Typer(
    help="Run a whole study: many runs in parallel, then a table and a picture. Repeated, it goes on.",
    no_args_is_help=True,
    suggest_commands=False,  # click does
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides for every run.", show_default=False),
]
Seeds = Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="Number of seeds, from 0.")]
Scenarios = Annotated[str, typer.Option(help="Scenarios, by commas.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Folder of the study; default runs/<study>.")]
Quick = Annotated[bool, typer.Option("--quick", help="A taste: the digits of quickstart, one seed.")]
Debug = Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")]


@app.command()
def dynhp(
    overrides: Overrides = None,
    seeds: Seeds = 3,
    scenarios: Scenarios = "",
    out: Out = None,
    quick: Quick = False,
    debug: Debug = False,
) -> None:
    """DynHP at 2x to 20x against the dense network, the small one from scratch, and a single cut.

    [bold]Examples[/bold]

      fedhp reproduce dynhp --quick

      fedhp reproduce dynhp --scenarios mnist,cifar10 train.epochs=5 --out runs/short

      fedhp reproduce dynhp simulation.num_workers=0   # one run after the other, without Ray
    """
    with readable_errors(debug):
        from fedhp.studies import grids
        from fedhp.sweep.cell import Study

        names = _scenarios(scenarios, quick, grids.SCENARIOS)
        grid = grids.Grid(names, range(1 if quick else seeds), overrides or ())
        notes = (*_taste(quick), grids.ABOUT_ARMS)
        study = Study("DynHP against its yardsticks", grids.dynhp_cells(grid), grids.ARMS, notes)
        _run(study, out, "dynhp", quick, grid.overrides)


@app.command()
def criteria(
    overrides: Overrides = None,
    seeds: Seeds = 3,
    scenarios: Scenarios = "",
    out: Out = None,
    quick: Quick = False,
    debug: Debug = False,
) -> None:
    """Every pruning criterion at 5x, 10x and 20x, on the same seeds.

    [bold]Examples[/bold]

      fedhp reproduce criteria --quick

      fedhp reproduce criteria --scenarios fashion_mnist --seeds 5
    """
    with readable_errors(debug):
        from fedhp.studies import grids
        from fedhp.sweep.cell import Study

        names = _scenarios(scenarios, quick, grids.CRITERIA_SCENARIOS)
        varied = ("prune.criterion",)
        grid = grids.Grid(names, range(1 if quick else seeds), overrides or (), varied)
        study = Study("Pruning criteria", grids.criteria_cells(grid), notes=_taste(quick))
        _run(study, out, "criteria", quick, grid.overrides)


@app.command()
def published(
    overrides: Overrides = None,
    tables: Annotated[
        str,
        typer.Option(
            help="Of heterofl, niid, mcmahan, or single lines, heterofl/d-e; all by default.",
            show_default=False,
        ),
    ] = "",
    seeds: Seeds = 1,
    out: Out = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A taste: two rounds on 2,000 samples, one seed.")
    ] = False,
    debug: Debug = False,
) -> None:
    """What others published of federated learning on MNIST and Fashion-MNIST, beside what comes out here.

    HeteroFL's narrow networks, FedAvg and FedProx of NIID-Bench, and the rounds to 99 % of FedAvg's paper. In
    full, a run takes from ten minutes to half a day of one core.

    [bold]Examples[/bold]

      fedhp reproduce published --quick

      fedhp reproduce published --tables heterofl,mcmahan/E1-B10 --seeds 3
    """
    with readable_errors(debug):
        from fedhp.studies.published.cells import chosen_lines, published_cells
        from fedhp.studies.published.writing import conclude
        from fedhp.sweep.cell import Study

        here = [entry for entry in overrides or () if entry.startswith("simulation.")]
        given = [entry for entry in overrides or () if entry not in here]
        cells = published_cells(chosen_lines(tables), range(1 if quick else seeds), given, quick)
        study = Study("Published figures", cells, notes=_taste(quick))
        _in_folder(study, out, "published", quick, here, conclude)


def _scenarios(given: str, quick: bool, default: tuple[str, ...]) -> tuple[str, ...]:
    if given:
        return tuple(name.strip() for name in given.split(","))
    return ("quickstart",) if quick else default


def _taste(quick: bool) -> tuple[str, ...]:
    note = "A taste (--quick): figures of one seed and few samples mean nothing."
    return (note,) if quick else ()


def _run(study: "Study", out: Path | None, name: str, quick: bool, overrides: Sequence[str]) -> None:
    from fedhp.api import warn_unused
    from fedhp.studies.study import conclude

    here = [entry for entry in overrides if entry.startswith("simulation.")]
    warn_unused("train", [entry for entry in overrides if entry not in here])
    _in_folder(study, out, name, quick, here, conclude)


def _in_folder(
    study: "Study", out: Path | None, name: str, quick: bool, here: Sequence[str], conclude: "Conclude"
) -> None:
    """Runs a study in its folder; ``here`` are the overrides that say where its runs are computed."""
    from fedhp.scenario.loading import load_scenario
    from fedhp.studies.study import run_study
    from fedhp.sweep.running import check_outcomes

    config = load_scenario("quickstart", here).simulation
    root = out or Path("runs") / (f"{name}-quick" if quick else name)
    check_outcomes(run_study(study, root, config, conclude))
