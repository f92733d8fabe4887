"""What is listened for in the output of Flower's processes, held against the Flower that is installed."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from flwr.supercore.error import ApiErrorCode

from fedhp.deployment import phrases
from fedhp.deployment.phrases import CODES, Phrase, said

TABLE = [
    one
    for value in vars(phrases).values()
    for one in (value if isinstance(value, tuple) else (value,))
    if isinstance(one, Phrase)
]


@cache
def texts(module: str) -> list[str]:
    """Returns every text of a module as it is written there, a value of an f-string as ``%s``."""
    return list(_texts(module))


def _texts(module: str) -> Iterator[str]:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "%s" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_table_is_found():
    assert len(TABLE) >= 19


@pytest.mark.parametrize("phrase", TABLE, ids=lambda one: one.text)
def test_flower_still_says_so(phrase):
    is_whole = phrase.text.endswith("%s")  # or the value would be more than one
    assert any(
        text == phrase.text or (not is_whole and text.startswith(phrase.text))
        for text in texts(phrase.module)
    )


def test_flowers_codes_are_still_the_same():
    assert {name: str(ApiErrorCode[name].value) for name in CODES} == CODES


@pytest.mark.parametrize(
    ("line", "phrase", "values"),
    [
        ("INFO :      SuperNode ID: 1208", phrases.CONNECTED, ["1208"]),
        ("[code: 2004] Not [now].", phrases.REFUSED, ["2004", "Not [now]."]),
        (
            "2026-11-30T19:07:39Z INFO [uvicorn.error] Uvicorn running on https://a:1 (Press CTRL+C to quit)",
            phrases.LISTENS,
            ["https://a:1"],
        ),
        (
            "ERROR :     [/v1/fleet/activate-node][ApiError:2004] Failed: [x][y] z",
            phrases.API_ERROR,
            ["/v1/fleet/activate-node", "2004", "Failed: [x][y] z"],
        ),
        ("INFO :      [Fleet.ActivateNode] Activated node_id=7", phrases.ACTIVATED, ["7"]),
        ("INFO :      fedhp round 1: Receiving: train message (ID: 1)", phrases.RECEIVING, None),
        ("waiting for Uvicorn running on http://a:1 (Press CTRL+C to quit)", phrases.LISTENS, None),
        ("INFO :      node named [Fleet.ActivateNode] Activated node_id=7", phrases.ACTIVATED, None),
    ],
)
def test_values_are_read_where_the_words_begin_a_line(line, phrase, values):
    """Lines as Flower 1.41 writes them, and the same words within other lines."""
    found = said(line, phrase)
    assert (None if found is None else list(found[1:])) == values
