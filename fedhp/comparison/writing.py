"""A comparison's tables as files: CSV for programs, Markdown and LaTeX for people."""

from collections.abc import Iterator, Sequence

from fedhp.comparison import texts
from fedhp.comparison.facets import Facet
from fedhp.comparison.result import Result
from fedhp.sweep.texts import markdown_table, write_csv

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def write(result: Result) -> None:
    """Writes ``runs.csv``, ``table.csv``, ``classes.csv``, ``pairs.csv``, ``table.md`` and ``table.tex``."""
    tables, root = result.tables, result.root
    files = {
        "runs": tables.runs,
        "table": tables.arms,
        "classes": tables.classes,
        "pairs": tables.pairs,
    }
    for file, rows in files.items():
        write_csv(root / f"{file}.csv", rows)
    for kind, lines in (("md", _markdown(result)), ("tex", _latex(result))):
        (root / f"table.{kind}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _markdown(result: Result) -> Iterator[str]:
    yield f"# {result.manifest.title}\n"
    yield f"{texts.heading(result)}.\n"
    for facet in result.facets:
        if facet.title:
            yield f"## {facet.title}\n"
        yield from markdown_table(texts.arm_texts(facet, result.manifest.export))
        yield ""
        yield from (f"- {said}\n" for said in (*texts.said_identical(result, facet), *texts.reasons(facet)))
    yield texts.meaning(result)
    for title, said_of, said in (
        ("By device class", lambda facet: texts.class_texts(facet, result.tables.classes), ""),
        ("In pairs", lambda facet: texts.pair_texts(facet, result.tables.pairs), texts.PAIRS),
    ):
        for facet in result.facets:
            yield f"## {title}{f', {facet.title}' if facet.title else ''}\n"
            yield from markdown_table(said_of(facet))
            yield ""
        yield said


def _latex(result: Result) -> Iterator[str]:
    yield r"% Tables for \input: they need \usepackage{booktabs}."
    for facet in result.facets:
        arms, pairs = (
            texts.arm_texts(facet, result.manifest.export),
            texts.pair_texts(facet, result.tables.pairs),
        )
        yield from _floating(_caption(result, facet, texts.terms(result)), 1, arms)
        yield from _floating(_caption(result, facet, texts.PAIRS), 2, pairs)


def _caption(result: Result, facet: Facet, terms: str) -> str:
    title = f", {facet.title}" if facet.title else ""
    return " ".join(f"{texts.heading(result)}{title}. {terms}".split())


def _floating(caption: str, names: int, rows: texts.Texts) -> Iterator[str]:
    """Yields a table that floats, the first columns of which are names."""
    heading, *body = rows
    if not body:
        return
    yield r"\begin{table}"
    yield r"  \centering"
    yield rf"  \caption{{{escaped(caption)}}}"
    yield rf"  \begin{{tabular}}{{{'l' * names}{'r' * (len(heading) - names)}}}"
    yield r"    \toprule"
    yield f"    {_line(heading)}"
    yield r"    \midrule"
    yield from (f"    {_line(row)}" for row in body)
    yield r"    \bottomrule"
    yield r"  \end{tabular}"
    yield r"\end{table}"


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(escaped, cells))} \\\\"


def escaped(text: str) -> str:
    """Returns a text as LaTeX shows it."""
    return "".join(_LATEX.get(sign, sign) for sign in text)
