"""The arrows between modules, as a table: whoever adds a module says here what it may know."""

import ast
import re
from pathlib import Path

import pytest
from house import (
    FRONT_DOOR,
    PACKAGES,
    ROOT,
    a_circle,
    class_sizes,
    imports,
    longest_chain,
    name,
    parsed,
    sources,
)

# A module imports only from rows above its own. A package inside fedhp counts as one module.
ROWS = (
    {"bounds", "drawing", "errors", "seeds", "threads"},
    {"choices", "files", "sizes", "terminal"},
    {"data", "fleet", "references"},
    {"model"},
    {"compression", "pruning"},
    {"costs"},
    {"training"},
    {"aggregation"},
    {"scenario"},
    {"draft", "records", "simulation"},
    {"federation", "report", "sweep", "tracking"},
    {"exports"},
    {"clients", "run"},
    {"latency"},
    {"api", "deployment", "strategies"},
    {"bench", "comparison", "studies", "twins"},
    {"cli"},
    {"__main__"},
)
ROW_OF = {module: number for number, row in enumerate(ROWS) for module in row}

# Who may know a library: each stays behind as few doors as possible.
DOORS = {
    "cryptography": {"deployment"},
    "flwr": {
        *("federation", "simulation", "run", "bench", "terminal", "clients", "strategies", "deployment"),
    },
    "jinja2": {"drawing"},
    "matplotlib": {"drawing", "report", "studies", "comparison"},
    "omegaconf": {"scenario"},
    "ray": {"simulation", "sweep", "bench"},
    # On a device that may be without it, nothing of it is imported before somebody computes with it.
    "torch": {
        *("data", "model", "compression", "pruning", "costs", "training", "aggregation"),
        *("threads", "clients", "api", "bench", "exports", "latency"),
    },
    "wandb": {"tracking"},
}

SAYS_NOTHING = {"base", "common", "helpers", "manager", "misc", "util", "utils"}


def module_of(dotted: str) -> str:
    """Maps ``fedhp.tracking.wandb`` to ``tracking``, ``clients.client_app`` to ``clients``."""
    first, *rest = dotted.split(".")
    if first != "fedhp":
        return first
    # Names that are no module, such as fedhp.__version__, come from the front door.
    is_module = rest and ((ROOT / "fedhp" / rest[0]).is_dir() or rest[0] in ROW_OF)
    return rest[0] if is_module else "__init__"


def module_at(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return rest[0] if folder == "fedhp" else folder


SOURCES = [path for path in sources(*PACKAGES) if path != FRONT_DOOR]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_module_imports_only_from_rows_above_it(path: Path) -> None:
    own = module_at(path)
    assert own in ROW_OF, (
        f"{name(path)} stands in no row of ROWS in {name(Path(__file__))}: "
        f"add '{own}' below all that it imports"
    )
    known = {module_of(dotted) for dotted in imports(path) if dotted.split(".")[0] in PACKAGES}
    wrong = {module for module in known - {own, "__init__"} if ROW_OF.get(module, len(ROWS)) >= ROW_OF[own]}
    assert not wrong, f"{name(path)} may not import {sorted(wrong)}: they are not above '{own}'"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_library_is_known_only_behind_its_doors(path: Path) -> None:
    libraries = {dotted.split(".")[0] for dotted in imports(path)} & set(DOORS)
    wrong = {library for library in libraries if module_at(path) not in DOORS[library]}
    assert not wrong, f"{name(path)} may not import {sorted(wrong)}"


def test_files_import_one_another_in_no_circle() -> None:
    assert not a_circle()


def test_no_chain_of_imports_is_longer_than_sixteen_files() -> None:
    assert len(longest_chain()) <= 16, "\n".join(longest_chain())


def test_few_files_stand_outside_of_the_rooms() -> None:
    assert len(list((ROOT / "fedhp").glob("*.py"))) <= 12


def test_no_class_is_longer_than_130_lines() -> None:
    assert not [f"{size.place}: {size.lines}" for size in class_sizes() if size.lines > 130]


def test_no_class_has_more_than_14_attributes_but_those_whose_attributes_are_columns_or_keys() -> None:
    many = {size.place for size in class_sizes() if size.attributes > 14}
    assert many <= {
        "fedhp/pruning/options.py:PruneConfig",
        "fedhp/training/options.py:TrainConfig",
        "fedhp/records/rows.py:ClientReport",
        "fedhp/records/rows.py:RoundReport",
        "fedhp/records/summary.py:Summary",
    }


def test_the_front_door_imports_nothing_of_fedhp_eagerly() -> None:
    """Flower's command line imports it on the way to the apps, and must not pay for the rest."""
    body = parsed(FRONT_DOOR).body
    eager = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [line for line in eager if re.search(r"\bfedhp\b|from \.", line)]


def test_core_refers_to_the_apps_by_name_only() -> None:
    """Installed they are ``fedhp.clients``, in a checkout ``clients``: no import suits both."""
    wrong = [
        f"{name(path)} imports {dotted}"
        for path in sources("fedhp")
        for dotted in imports(path)
        if re.match(r"(fedhp\.)?(clients|strategies)\b", dotted)
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["clients", "strategies"])
def test_siblings_are_imported_relatively_and_the_core_absolutely(folder: str) -> None:
    wrong = []
    for path in sources(folder):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                dotted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                dotted = ["beyond the package"] if node.level > 1 else []
                dotted += [node.module or ""] if node.level == 0 else []
            else:
                continue
            bad = [d for d in dotted if d.split(".")[0] in ("clients", "strategies") or " " in d]
            wrong += [f"{name(path)}:{node.lineno} imports {d}" for d in bad]
    assert not wrong


def test_modules_are_named_after_what_they_hold() -> None:
    assert not [name(path) for path in sources(*PACKAGES) if path.stem in SAYS_NOTHING]


def test_only_the_command_line_prints() -> None:
    wrong = [
        f"{name(path)}:{node.lineno}"
        for path in SOURCES
        if module_at(path) != "cli"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def test_tests_are_no_package() -> None:
    """With an ``__init__.py``, pytest would put a folder in the path that shadows ``clients``."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_source_names_a_place_of_one_machine() -> None:
    place = re.compile(r"(?<![\w.}])/(?:Users|farm|home|mnt|root|work)/")
    files = [*sources(*PACKAGES, "tests"), *(ROOT / "scenarios").rglob("*.yaml")]
    assert not [name(path) for path in files if place.search(path.read_text())]
