"""The page of a report: facts and figures, laid out by a template."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedhp.report import facts, series
from fedhp.report.plot import Picture, Plot
from fedhp.report.style import DARK, LIGHT

if TYPE_CHECKING:
    from fedhp.records import RunResult

_HERE = Path(__file__).parent


def render(run: "RunResult", pictures: Sequence[tuple[Plot, Picture | None]]) -> str:
    """Returns the page as HTML, which needs no other file and no network."""
    shown, more = facts.failures(run)
    return fill(
        _HERE / "page.html.j2",
        run=run,
        facts=facts.facts(run),
        classes=facts.class_rows(run),
        more_classes=max(0, len(series.class_names(run)) - facts.MOST_CLASSES),
        accuracy=facts.accuracy_name(run),
        judged=facts.judged(run),
        first_of_last=series.first_of_last(run.rounds),
        failures=shown,
        more_failures=more,
        pictures=pictures,
        config=run.config.to_yaml(),
    )


def fill(template: Path, **values: Any) -> str:
    """Returns a page of a template that extends ``base.html.j2``."""
    # Escaped: a scenario's texts and a client's words come from anywhere.
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template(template.name).render(light=LIGHT, dark=DARK, **values)


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
