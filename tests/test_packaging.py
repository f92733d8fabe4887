"""What is shipped: the wheel for `pip install`, the app bundle (FAB) for `flwr run`."""

import io
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from packaging.requirements import Requirement

from fedhp.federation.flower_version import TRIED

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    # Offline: the build backend is there already, from the dev extra.
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(io.BytesIO(path.read_bytes()))


@pytest.fixture(scope="module")
def bundle() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT)))


def shipped_sources(*folders: str) -> set[str]:
    """Returns the modules and scenarios of the checkout, as paths below its root."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml"}
    }


def test_wheel_owns_one_name_at_the_top(wheel: zipfile.ZipFile) -> None:
    """``clients`` or ``strategies`` there would overwrite another distribution's files silently."""
    tops = {entry.split("/")[0] for entry in wheel.namelist()}
    assert tops == {"fedhp", f"fedhp-{PROJECT['project']['version']}.dist-info"}


def test_wheel_holds_every_module_and_scenario_and_no_test(wheel: zipfile.ZipFile) -> None:
    moved = {f"fedhp/{path}" for path in shipped_sources("clients", "strategies", "scenarios")}
    entries = {entry for entry in wheel.namelist() if ".dist-info/" not in entry}
    kinds = {entry for entry in entries if entry.endswith((".py", ".yaml"))}
    assert kinds == shipped_sources("fedhp") | moved
    assert {
        "fedhp/clients/client_app.py",
        "fedhp/strategies/server_app.py",
        "fedhp/scenarios/quickstart.yaml",
        "fedhp/py.typed",
        "fedhp/report/page.html.j2",
    } <= entries
    assert not [entry for entry in entries if "test" in entry]


def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    (metadata,) = (entry for entry in wheel.namelist() if entry.endswith("dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    return [Requirement(line[15:]) for line in lines if line.startswith("Requires-Dist: ")]


def test_wheel_asks_of_a_device_neither_pytorch_nor_ray_nor_pandas(wheel: zipfile.ZipFile) -> None:
    base = {each.name for each in requirements(wheel) if each.marker is None}
    assert {"flwr", "numpy"} <= base
    assert not base & {"torch", "ray", "wandb", "pandas", "pyarrow", "flwr-datasets", "scikit-learn"}


def test_pip_installs_the_flower_that_devices_and_servers_take(wheel: zipfile.ZipFile) -> None:
    (flower,) = (each.specifier for each in requirements(wheel) if each.name == "flwr")
    assert [minor for minor in range(20, 80) if f"1.{minor}.3" in flower] == [
        int(tried.removeprefix("1.")) for tried in TRIED
    ]


@pytest.mark.parametrize("extra", ["torch", "server", "sim", "dev"])
def test_whoever_holds_rounds_has_pytorch(wheel: zipfile.ZipFile, extra: str) -> None:
    """An extra may bring others, as pip follows them."""
    brought, extras = set[str](), [extra]
    while extras:
        asked = {"extra": extras.pop()}
        found = [each for each in requirements(wheel) if each.marker and each.marker.evaluate(asked)]
        brought |= {each.name for each in found}
        extras += [one for each in found if each.name == "fedhp" for one in each.extras]
    assert "torch" in brought


def test_bundle_holds_the_app_and_nothing_else(bundle: zipfile.ZipFile) -> None:
    expected = shipped_sources("fedhp", "clients", "strategies", "scenarios")
    assert "scenarios/quickstart.yaml" in expected
    assert set(bundle.namelist()) == expected | {
        ".info/CONTENT",
        "LICENSE",
        "README.md",
        "pyproject.toml",
    }


@pytest.mark.parametrize("component", ["serverapp", "clientapp"])
def test_bundle_holds_the_components_that_it_names(bundle: zipfile.ZipFile, component: str) -> None:
    config = tomllib.loads(bundle.read("pyproject.toml").decode())
    module, _, attribute = config["tool"]["flwr"]["app"]["components"][component].partition(":")
    source = bundle.read(module.replace(".", "/") + ".py").decode()
    # Flower finds the app by reading the source, so an annotation would hide it.
    assert f"\n{attribute} = " in source
