"""A page laid out by a template, in the colours of the figures."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedhp.drawing.style import DARK, LIGHT

_HERE = Path(__file__).parent


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
