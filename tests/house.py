"""The house in figures: ``python tests/house.py`` prints them, ``test_architecture.py`` holds them.

An import counts wherever it stands, in functions and branches too. ``from package import module`` is an
import of that module, and from outside the package also of its ``__init__.py`` where that says more than a
docstring.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("fedhp", "clients", "strategies")
FRONT_DOOR = ROOT / "fedhp" / "__init__.py"


@dataclass(frozen=True)
class ClassSize:
    """What a class holds: its lines, and the attributes of its instances."""

    place: str
    lines: int
    attributes: int


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Yields the absolute dotted name of all that a file imports, in functions and branches too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                above = package[: len(package) - level + 1] if level else ()
                prefix = ".".join([*above, *([module] if module else [])])
                yield from (f"{prefix}.{alias.name}" for alias in aliases)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(dotted)), *_],
            ):
                yield dotted


def files_of(dotted: str, importer: Path) -> Iterator[Path]:
    """Yields the file behind a dotted name, and the content of its package's ``__init__.py``."""
    place = ROOT.joinpath(*dotted.split("."))
    package = place.parent / "__init__.py"
    if place.with_suffix(".py").is_file():
        yield place.with_suffix(".py")
        if package.parent not in importer.parents and len(parsed(package).body) > 1:
            yield package
    elif (place / "__init__.py").is_file():
        yield place / "__init__.py"
    elif place.parent != ROOT:
        # A name inside a module or a package.
        module = place.parent.with_suffix(".py")
        yield module if module.is_file() else package


def import_graph() -> dict[Path, set[Path]]:
    """Maps each file to those it imports; all names of the front door lead on to other files."""
    return {
        path: {
            file
            for dotted in imports(path)
            if dotted.split(".")[0] in PACKAGES
            for file in files_of(dotted, path)
        }
        - {path, FRONT_DOOR}
        for path in sources(*PACKAGES)
        if path != FRONT_DOOR
    }


def a_circle() -> list[str]:
    """Names files that import one another in a circle; none if there is no such circle."""
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        return [name(path) for path in reversed(error.args[1])]
    return []


def longest_chain() -> list[str]:
    """Names the files of the longest chain in which each imports the next.

    Raises:
        graphlib.CycleError: If files import one another in a circle.
    """
    graph = import_graph()
    longest: dict[Path, list[Path]] = {}
    for path in TopologicalSorter(graph).static_order():
        below = max((longest[known] for known in sorted(graph[path])), key=len, default=[])
        longest[path] = [path, *below]
    return [name(path) for path in max(longest.values(), key=len)]


def class_sizes() -> list[ClassSize]:
    return [
        ClassSize(f"{name(path)}:{node.name}", _lines(node), len(_attributes(node)))
        for path in sources(*PACKAGES)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
    ]


def _lines(node: ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _attributes(node: ast.ClassDef) -> set[str]:
    """Names what an instance holds: the fields of a dataclass, and what is assigned to ``self``."""
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    fields = {
        ast.unparse(part.target)
        for part in node.body
        if isinstance(part, ast.AnnAssign) and is_dataclass and "ClassVar" not in ast.unparse(part.annotation)
    }
    return fields | {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute)
        and isinstance(part.ctx, ast.Store)
        and ast.unparse(part.value) == "self"
    }


def main() -> None:
    if circle := a_circle():
        print("a circle of imports:", *circle, sep="\n  ")
    else:
        chain = longest_chain()
        print(f"longest chain of imports: {len(chain)} files", *chain, sep="\n  ")
    print(f"files at the top of fedhp/: {len(list((ROOT / 'fedhp').glob('*.py')))}")
    sizes = class_sizes()
    for measure in ("lines", "attributes"):
        print(f"classes with most {measure}:")
        for size in sorted(sizes, key=lambda size: -getattr(size, measure))[:5]:
            print(f"  {getattr(size, measure):4} {size.place}")


if __name__ == "__main__":
    main()
