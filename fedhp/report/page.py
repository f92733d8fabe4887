"""The page of a report: facts and figures, laid out by a template."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedhp.report import facts, series
from fedhp.report.plot import Picture, Plot
from fedhp.report.style import DARK, LIGHT

if TYPE_CHECKING:
    from fedhp.tracking import RunResult


def render(run: "RunResult", pictures: Sequence[tuple[Plot, Picture | None]]) -> str:
    """Returns the page as HTML, which needs no other file and no network."""
    # Escaped: a scenario's texts and a client's words come from anywhere.
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = _data_uri
    shown, more = facts.failures(run)
    return environment.get_template("page.html.j2").render(
        run=run,
        light=LIGHT,
        dark=DARK,
        facts=facts.facts(run),
        classes=facts.class_rows(run),
        first_of_last=series.first_of_last(run.rounds),
        failures=shown,
        more_failures=more,
        pictures=pictures,
        config=run.config.to_yaml(),
    )


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
