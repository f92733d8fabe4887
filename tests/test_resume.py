"""A run that is cut short, at whatever moment, and goes on: it ends as one that never was, to the bit."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cut_short import SMALL, outcome, snapshots
from flwr.app import Context, RecordDict
from recorded_runs import KEPT, LAYOUT, make_report, make_state
from typer.testing import CliRunner

import fedhp
import fedhp.run.fleet_run as rounds
from fedhp.cli import app
from fedhp.comparison.cells import run_fleet as run_cell_of_comparison
from fedhp.errors import RecordError, ScenarioError
from fedhp.federation.device import Device
from fedhp.federation.numbers import Given
from fedhp.federation.server_state import ServerState
from fedhp.files.locks import NAME, locked
from fedhp.fleet.devices import DeviceProfile
from fedhp.records import checkpoint, load_run
from fedhp.references import CLIENT_APP, COHORT_APP
from fedhp.scenario.loading import load_scenario
from fedhp.simulation.opening import open_grid
from fedhp.sweep.cell import Cell, run_cell
from strategies.server_app import app as server_app

pytest.importorskip("pyarrow", reason="writing records needs the extra 'server'")

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Path]]:
    """What a run comes to, and what a kill would have left before each change to its record."""
    place = tmp_path_factory.mktemp("runs")
    with snapshots(place / "run", place) as taken:
        fedhp.simulate("quickstart", place / "run", show=False, **SMALL)
    return outcome(place / "run"), taken


@pytest.fixture
def cut_short(undisturbed: tuple[dict[str, Any], list[Path]], tmp_path: Path) -> Path:
    """A copy of the record as it was when round 2 was about to be written."""
    found = next(one for one in undisturbed[1] if told_in(one) == [1, 2])
    return Path(shutil.copytree(found, tmp_path / "run"))


def told_in(folder: Path) -> list[int]:
    return [int(path.stem[-6:]) for path in reversed(checkpoint.found(folder))]


def test_killed_at_any_moment_a_run_goes_on_to_the_same_end(undisturbed):
    """Five moments of all that there are, drawn from them: `fedhp bench resume` kills for good."""
    expected, taken = undisturbed
    begun = [one for one in taken if list(one.glob("checkpoint-*"))]
    assert len(begun) > 30
    for folder in random.Random(len(taken)).sample(begun, 5):
        fedhp.resume(folder, show=False)
        assert outcome(folder) == expected


@pytest.fixture
def third_round_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    close_round, calls = rounds.close_round, []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return close_round(*given)

    monkeypatch.setattr(rounds, "close_round", interrupted)


def test_an_interrupted_run_whose_tables_are_merged_goes_on_and_may_be_killed_doing_so(
    undisturbed, tmp_path, third_round_interrupts
):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fedhp.simulate("quickstart", folder, show=False, **SMALL)
    assert load_run(folder).summary["status"] == "interrupted"
    assert (folder / "rounds.parquet").is_file()
    with snapshots(folder, tmp_path) as taken:
        fedhp.resume(folder, show=False)
    assert outcome(folder) == undisturbed[0]
    merging = [one for one in taken if (one / ".rounds.parquet.parts").exists()]
    between = [one for one in merging if not (one / "rounds.parquet").exists()]
    for one in (merging[1], between[0]):
        fedhp.resume(one, show=False)
        assert outcome(one) == undisturbed[0]


def test_under_flower_a_run_goes_on_by_its_run_configuration(tmp_path, third_round_interrupts):
    """On a grid in this process, which its server takes for any; `fedhp resume` tells the command."""
    folder, scenario = tmp_path / "run", load_scenario("quickstart", values=SMALL)
    keys = " ".join(f"{key}={value}" for key, value in SMALL.items())

    def start(**config: str) -> None:
        context = Context(1, 0, {}, RecordDict(), config)  # type: ignore[arg-type]
        with open_grid(scenario.simulation, CLIENT_APP, 6, 60.0, cohort_app=COHORT_APP) as grid:
            server_app(grid, context)

    with pytest.raises(KeyboardInterrupt):
        start(overrides=keys, out=str(folder))
    with pytest.raises(RecordError, match=re.escape(f"'resume=\"{folder}\"'")):
        fedhp.resume(folder)
    with pytest.raises(ScenarioError, match="rounds: a run goes on as it was begun"):
        start(resume=str(folder), overrides="rounds=7")
    start(resume=str(folder))
    start(overrides=keys, out=str(tmp_path / "whole"))
    assert outcome(folder) == outcome(tmp_path / "whole")
    with pytest.raises(RecordError, match="has finished, and nothing is left to do"):
        start(resume=str(folder))


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_run_with_workers_that_is_killed_goes_on_from_the_command_line(undisturbed, tmp_path):
    """Killed hard as soon as two rounds are kept; its workers end with it."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "fedhp"]
    keys = [f"{key}={value}" for key, value in {**SMALL, "simulation.num_workers": 2}.items()]
    process = subprocess.Popen(
        [*command, "run", "quickstart", *keys, "--out", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not (folder / "checkpoint-000002.safetensors").exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run([*command, "resume", folder], capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    assert "of 3" in resumed.stdout
    assert (folder / "report.html").exists()
    for name in ("report.html", "figures"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {**outcome(folder), "summary": 0} == {**undisturbed[0], "summary": 0}
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def newest(folder: Path) -> Path:
    return checkpoint.found(folder)[0]


def each(damage: Damage) -> Damage:
    return lambda folder: [damage(path) for path in checkpoint.found(folder)]


def with_version(folder: Path) -> None:
    for path in checkpoint.found(folder):
        values = checkpoint.load(path)
        versions = {**values["versions"], "fedhp": "0.0.1"}
        checkpoint.save(folder, values["told"], {**values, "versions": versions})


def over_devices(folder: Path) -> None:
    for path in checkpoint.found(folder):
        values = checkpoint.load(path)
        checkpoint.save(folder, values["told"], {**values, "simulated": False})


def with_another(what: str) -> Damage:
    def damage(folder: Path) -> None:
        for path in checkpoint.found(folder):
            values = checkpoint.load(path)
            values["basis"][what] = "0"
            checkpoint.save(folder, values["told"], values)

    return damage


def with_other_rounds(folder: Path) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("rounds: 3", "rounds: 4"))


def ended(folder: Path) -> None:
    fedhp.resume(folder, show=False)


REFUSALS: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "there is no such folder"),
    "no record": (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is missing"),
    "a comparison": (
        lambda folder: (folder / "comparison.json").touch(),
        "holds a comparison: repeat the command that made it",
    ),
    "missing": (each(Path.unlink), "keeps no checkpoint"),
    "cut short": (each(cut_in_half), "checkpoint-000002.safetensors is cut short or damaged"),
    "damaged": (each(flip_last_byte), "is cut short or damaged: its digest is that of other values"),
    "another version": (with_version, "was begun with fedhp 0.0.1"),
    "another scenario": (with_other_rounds, r"of another scenario than config.yaml (rounds: 3, now 4)"),
    "other data": (with_another("data"), "cannot go on: its data is not what it was begun on"),
    "another network": (with_another("network"), "its network is not the one that it was begun with"),
    "lost rows": (
        lambda folder: (folder / "rounds.parquet" / "part-000000.parquet").unlink(),
        "its tables lack rows of rounds 0 to 1",
    ),
    "of devices": (over_devices, "go on by: flwr run . --stream --run-config 'resume=\""),
    "finished": (ended, "has finished, and nothing is left to do"),
}


@pytest.mark.parametrize(("damage", "said"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_go_on_is_refused_in_a_line_and_left_as_it_is(damage, said, cut_short):
    damage(cut_short)
    before = contents(cut_short)
    result = CliRunner().invoke(app, ["resume", str(cut_short)])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert str(cut_short) in result.stderr
    assert contents(cut_short) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_data_that_changed_meanwhile_is_refused_and_code_that_did_is_told(tmp_path, monkeypatch):
    labels = np.arange(200) % 4
    images = np.random.default_rng(0).random((200, 1, 4, 4), np.float32) + labels[:, None, None, None]
    kept = {"y_train": labels, "x_test": images[:40], "y_test": labels[:40]}
    data, module = tmp_path / "mine.npz", tmp_path / "my_own_net.py"
    np.savez(data, x_train=images, **kept)
    layers = "nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, num_classes)"
    module.write_text(
        f"from torch import nn\n\n\ndef net(input_shape, num_classes):\n    return nn.Sequential({layers})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = {"data.name": "npz", "data.root": str(data), "model.target": "my_own_net:net"}
    with snapshots(tmp_path / "run", tmp_path) as taken:
        fedhp.simulate("quickstart", tmp_path / "run", show=False, **SMALL, **own)
    folder = next(one for one in taken if told_in(one) == [1, 2])
    np.savez(data, x_train=images + 1, **kept)
    with pytest.raises(RecordError, match="its data is not what it was begun on: put the files"):
        fedhp.resume(folder, show=False)
    np.savez(data, x_train=images, **kept)
    module.write_text(module.read_text() + "\n# another\n")
    fedhp.resume(folder, show=False)
    assert outcome(folder) == outcome(tmp_path / "run")
    assert "module 'my_own_net' has changed since" in (folder / "events.log").read_text()


def test_running_statistics_and_a_robust_rule_go_on_too(tmp_path):
    own = {"model.name": "conv1d", "model.widths": [8, 8], "model.norm": "batch", "server.checkpoint": 2}
    own |= {"strategy.robust.rule": "median", "strategy.robust.cap": 2.0, "prune.target_compression": 4}
    with snapshots(tmp_path / "run", tmp_path) as taken:
        fedhp.simulate("quickstart", tmp_path / "run", show=False, **SMALL, **own)
    folder = [one for one in taken if told_in(one) == [0, 1]][-1]
    fedhp.resume(folder, show=False)
    assert outcome(folder) == outcome(tmp_path / "run")


@pytest.mark.parametrize("damage", [cut_in_half, flip_last_byte])
def test_where_the_last_checkpoint_is_damaged_the_one_before_serves(damage, undisturbed, cut_short, caplog):
    damage(newest(cut_short))
    fedhp.resume(cut_short, show=False)
    assert "checkpoint-000002.safetensors is cut short or damaged" in caplog.text
    assert outcome(cut_short) == undisturbed[0]


def test_keys_that_change_results_are_refused_and_others_taken(undisturbed, cut_short):
    with pytest.raises(ScenarioError, match=r"^rounds, train\.learning_rate: a run goes on as it was begun"):
        fedhp.resume(cut_short, overrides=["train.learning_rate=1"], rounds=5)
    fedhp.resume(cut_short, show=False, overrides=["server.checkpoint=0"])
    assert outcome(cut_short) == undisturbed[0]


def test_one_process_at_a_time_works_on_a_record(cut_short, tmp_path):
    """As `resume` and as `run`; the lock of a process that was killed is none."""
    (cut_short / NAME).touch()
    with locked(cut_short / NAME), pytest.raises(RecordError, match="another process is at work on the run"):
        fedhp.resume(cut_short)
    fedhp.resume(cut_short, show=False)
    assert not (cut_short / NAME).exists()
    (tmp_path / "new").mkdir()
    with locked(tmp_path / "new" / NAME), pytest.raises(RecordError, match="another process is at work"):
        fedhp.simulate("quickstart", tmp_path / "new", **SMALL)


def test_checkpoints_are_as_many_as_the_scenario_says_and_gone_in_the_end(tmp_path):
    with snapshots(tmp_path / "run", tmp_path) as taken:
        fedhp.simulate("quickstart", tmp_path / "run", show=False, **{**SMALL, "server.checkpoint": 2})
    told = [told_in(folder) for folder in taken]
    assert [one for one, before in zip(told[1:], told[:-1], strict=True) if one != before] == [
        *([0], [0, 1], [0, 1, 3], [1, 3]),
        *([3], []),
    ]


def test_a_cell_of_a_comparison_goes_on_inside(undisturbed, cut_short, monkeypatch):
    """And not from its beginning, which is not called."""
    monkeypatch.setattr("fedhp.comparison.cells.simulate", None)
    cell = Cell("run", load_run(cut_short).config, run_cell_of_comparison)
    _, result = run_cell(cell, cut_short.parent)
    assert (result.status, result.reason) == ("finished", "")
    (cut_short / "devices.csv").unlink()
    assert outcome(cut_short) == undisturbed[0]


def test_what_the_server_holds_comes_back_as_it_was(tmp_path):
    """In types too: moments may be float64, and figures of rows None."""
    layout, rows, draw = LAYOUT, make_report(1).clients, np.random.default_rng(0)
    shapes = {name: layout.shape(name, KEPT.counts) for name in layout.trained}
    moments: Any = tuple({name: draw.normal(size=shape) for name, shape in shapes.items()} for _ in range(2))
    known = Given(Device(2**63 + 1, 4, DeviceProfile("phone", None, 50, spread=0.1 + 0.2, cores=4)), 5)
    state = ServerState(make_state(KEPT), 7, moments, ({"weights": 0.1 + 0.2},), (), (rows,), True, (known,))
    checkpoint.save(tmp_path, 8, state.values())
    read = ServerState.of(checkpoint.load(newest(tmp_path)), layout)
    assert replace(read, model=state.model, moments=()) == replace(state, moments=())
    assert read.model.structure == KEPT
    for ours, theirs in ((state.model.weights, read.model.weights), *zip(moments, read.moments, strict=True)):
        assert list(ours) == list(theirs)
        assert all(theirs[name].dtype == array.dtype for name, array in ours.items())
        assert all((theirs[name] == array).all() for name, array in ours.items())
    values = checkpoint.load(newest(tmp_path))
    assert ServerState.of({k: v for k, v in values.items() if k != "numbers"}, layout).numbers == ()
    values["model"]["weights"]["a.bias"] = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="do not fit the structure"):
        ServerState.of(values, layout)
