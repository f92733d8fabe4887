"""``fedhp init``."""

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedhp.errors import ScenarioError
from fedhp.terminal import readable_errors


def init(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="An .npz file, or a data set's name: digits, mnist, fashion_mnist, cifar10."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="A model that ships, in the place of the one that suits the data.")
    ] = "",
    layout: Annotated[
        str,
        typer.Option(
            help="Of an .npz file: the axis of a sample with its channels; auto takes the likely one."
        ),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="The file to write; default DATA's name, .yaml.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    """Look at data and write a scenario that suits it: model, budgets, rates, partition.

    [bold]Examples[/bold]

      fedhp init mine.npz

      fedhp init windows.npz --model conv1d --out sensors.yaml

      fedhp init images.npz --layout channels_last

      fedhp init fashion_mnist

    An .npz file holds x_train, y_train, x_test and y_test, and client_train where rows have owners.
    """
    with readable_errors(debug):
        _init(data, model, layout, out)


def _init(data: str, model: str, layout: str, out: Path | None) -> None:
    from fedhp.choices import check_choice
    from fedhp.data.layout import LAYOUTS
    from fedhp.data.notes import data_notes
    from fedhp.draft.looking import look
    from fedhp.draft.planning import draft
    from fedhp.draft.writing import found, page, told
    from fedhp.model.options import USUAL_WIDTHS

    if model:
        check_choice("--model", model, USUAL_WIDTHS)
    check_choice("--layout", layout, LAYOUTS)
    seen = look(data, model, layout)
    file = out or _file(data, seen.config.name)
    if file.exists():
        raise ScenarioError(f"{file} is there already; name another file by --out, or move it away")
    made = draft(seen, file.stem, model)
    typer.echo(f"data: {found(seen)}")
    for line in (*told(made), *(f"note: {note}" for note in data_notes(seen.dataset))):
        typer.echo(line)
    _write(file, page(seen, made))
    typer.echo(f"wrote {file}; next: fedhp run {shlex.quote(str(file))}")


def _write(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as new:  # whatever has come to be there meanwhile
            new.write(text)
    except OSError as error:
        raise ScenarioError(f"{file} cannot be written: {error.strerror}; name another by --out") from None


def _file(data: str, source: str) -> Path:
    """Returns the file for data: what ships by a data set's own name is another scenario."""
    name = re.sub(r"\W+", "_", Path(data).stem)
    return Path(f"{name}.yaml" if source == "npz" else f"my_{name}.yaml")
