"""``fedhp init``: what it sees in data, and that the scenario that it writes is one that holds together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedhp
from fedhp.aggregation.assignment import fit_counts
from fedhp.cli import app
from fedhp.data import open_dataset
from fedhp.draft import planning
from fedhp.draft.looking import Kind, look
from fedhp.draft.planning import draft
from fedhp.draft.writing import page
from fedhp.errors import DataError
from fedhp.run.advice import run_notes
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario

UINT8, FLOAT = np.dtype(np.uint8), np.dtype(np.float64)

# What is stored, and what it is: the model, the layout, and the shape that the samples have then.
STORED = {
    "features": ((24,), FLOAT, Kind.FEATURES, "mlp", "auto", (1, 1, 24)),
    "windows": ((9, 128), FLOAT, Kind.WINDOWS, "conv1d", "channels_first", (1, 9, 128)),
    "windows, time first": ((128, 9), FLOAT, Kind.WINDOWS, "conv1d", "channels_last", (1, 9, 128)),
    "grey": ((28, 28), UINT8, Kind.IMAGES, "cnn", "auto", (1, 28, 28)),
    "small and grey": ((8, 8), UINT8, Kind.IMAGES, "cnn", "auto", (1, 8, 8)),
    "oblong": ((60, 20), UINT8, Kind.IMAGES, "cnn", "auto", (1, 60, 20)),
    "colour": ((32, 32, 3), UINT8, Kind.IMAGES, "cnn", "auto", (3, 32, 32)),
    "many colours": ((16, 16, 5), UINT8, Kind.IMAGES, "cnn", "channels_last", (5, 16, 16)),
    "one sensor": ((1, 128), FLOAT, Kind.WINDOWS, "conv1d", "channels_first", (1, 1, 128)),
    "one sensor, time first": ((128, 1), FLOAT, Kind.WINDOWS, "conv1d", "channels_last", (1, 1, 128)),
    "time first, with an extra axis": ((128, 1, 9), FLOAT, Kind.IMAGES, "mlp", "channels_last", (9, 128, 1)),
    "colour, channels first": ((3, 24, 32), FLOAT, Kind.IMAGES, "cnn", "auto", (3, 24, 32)),
}


def stored(file: Path, shape: tuple[int, ...], kind: np.dtype, num_rows: int = 300, **more: Any) -> str:
    values = np.random.default_rng(0).integers(0, 256, (num_rows, *shape)).astype(kind)
    labels = np.arange(num_rows) % 3
    np.savez(file, x_train=values, y_train=labels, x_test=values[:30], y_test=labels[:30], **more)
    return str(file)


@pytest.mark.parametrize("name", STORED)
def test_the_scenario_is_ready_to_run_and_its_budgets_hold_shares_of_the_model(tmp_path, name):
    """Nothing stands out in it: the first class holds all of the model, and no other is told too small."""
    shape, kind, sort, model, layout, sample = STORED[name]
    data = stored(tmp_path / "mine.npz", shape, kind)
    seen = look(data)
    made = draft(seen, "mine")
    assert (seen.kind, seen.dataset.input_shape) == (sort, sample)
    file = tmp_path / "mine.yaml"
    file.write_text(page(seen, made), encoding="utf-8")
    scenario = load_scenario(file)
    assert scenario == made.scenario
    assert (scenario.model.name, scenario.data.layout) == (model, layout)
    setup = prepare(scenario)
    budgets = {kind.name: kind.memory_bytes for kind in scenario.fleet.classes}
    assert list(run_notes(seen.dataset, setup.recipe, setup.memory, budgets)) == []
    layout, batch = setup.recipe.architecture.layout, scenario.train.batch_size
    fits = [
        fit_counts(setup.memory, setup.recipe.shape, layout.widths, size, batch) for size in budgets.values()
    ]
    assert fits[0] == layout.widths
    full, *parts = map(layout.num_parameters, fits)
    assert [part / full for part in parts] == pytest.approx([0.5, 0.3, 0.15], abs=0.06)


def test_rows_with_owners_are_divided_by_them_and_others_by_chance(tmp_path):
    """Owner 2 has the 4 rows that are left of 300 when the others have 148 each."""
    owners = np.repeat(["ann", "bob", "cy"], [148, 148, 4])
    data = draft(look(stored(tmp_path / "own.npz", (8,), FLOAT, client_train=owners)), "own").scenario
    assert (data.data.partition.name, data.data.partition.min_samples) == ("natural", 4)
    assert (data.fleet.num_clients, data.server.clients_per_round) == (3, 3)
    free = draft(look(stored(tmp_path / "free.npz", (8,), FLOAT)), "free").scenario
    assert free.data.partition.name == "dirichlet"
    assert free.fleet.num_clients == 300 // 50


@pytest.mark.parametrize(("num_rows", "num_clients"), [(30, 3), (41, 4), (150, 4), (260, 5), (2000, 20)])
def test_few_rows_are_divided_among_few_clients(tmp_path, num_rows, num_clients):
    """50 rows each; where there are fewer, one client for each of the four classes, of 10 rows at least."""
    made = draft(look(stored(tmp_path / "few.npz", (8,), FLOAT, num_rows)), "few")
    assert made.scenario.fleet.num_clients == num_clients
    prepare(made.scenario)


@pytest.mark.parametrize(("most", "rounds"), [(10**6, 40), (50_000, 25), (1000, 15)])
def test_rounds_are_as_many_as_a_run_may_train_on_samples(tmp_path, monkeypatch, most, rounds):
    """20 clients of 50 rows each, all asked, two epochs: 2,000 samples a round; 15 to 40 rounds."""
    monkeypatch.setattr(planning, "_MOST_SAMPLES", most)
    scenario = draft(look(stored(tmp_path / "many.npz", (2,), FLOAT, 1000)), "many").scenario
    assert (scenario.train.local_epochs, scenario.rounds) == (2, rounds)


@pytest.mark.parametrize(("num_rows", "epochs", "batch"), [(1998, 2, 16), (2000, 1, 32)])
def test_small_shards_take_more_and_smaller_steps(tmp_path, num_rows, epochs, batch):
    """Half of the rows are of either owner."""
    data = stored(tmp_path / "two.npz", (2,), FLOAT, num_rows, client_train=np.arange(num_rows) % 2)
    train = draft(look(data), "two").scenario.train
    assert (train.local_epochs, train.batch_size) == (epochs, batch)


@pytest.mark.parametrize("name", ["mine", "ü (1)", "it's", 'a "b"', "yes", "7", "a: b # c"])
def test_any_name_of_a_file_comes_back_from_what_is_written(tmp_path, name):
    seen = look(stored(tmp_path / f"{name}.npz", (4,), FLOAT))
    file = tmp_path / "scenario.yaml"
    file.write_text(page(seen, draft(seen, name)), encoding="utf-8")
    scenario = load_scenario(file)
    assert (scenario.name, scenario.data.root) == (name, str(tmp_path / f"{name}.npz"))


@pytest.mark.usefixtures("in_folder")
def test_the_command_writes_a_file_that_runs_and_says_so():
    stored(Path("mine.npz"), (6,), FLOAT)
    result = CliRunner().invoke(app, ["init", "mine.npz"])
    assert result.exit_code == 0, result.output
    assert "data: 300 rows of features (6 numbers each), and 30 held out; 3 classes" in result.stdout
    assert "wrote mine.yaml; next: fedhp run mine.yaml" in result.stdout
    run = fedhp.simulate("mine.yaml", "run", rounds=1, **{"simulation.num_workers": 0})
    assert run.summary["status"] == "finished"


@pytest.mark.usefixtures("in_folder")
def test_a_data_set_by_name_and_a_model_by_name():
    result = CliRunner().invoke(app, ["init", "digits", "--model", "mlp", "--out", "first.yaml"])
    assert result.exit_code == 0, result.output
    scenario = load_scenario("first.yaml")
    assert (scenario.name, scenario.data.name, scenario.model.name) == ("first", "digits", "mlp")
    assert CliRunner().invoke(app, ["init", "digits"]).exit_code == 0
    assert load_scenario("my_digits.yaml").model.name == "cnn"


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    ("shape", "layout", "said", "read"),
    [
        ((16, 16, 5), "auto", "(5 x 16 x 16, stored channels last)", (5, 16, 16)),
        ((16, 16, 5), "channels_first", "(16 x 16 x 5)", (16, 16, 5)),
        ((8, 12, 10), "channels_last", "(10 x 8 x 12, stored channels last)", (10, 8, 12)),
        ((20, 20), "channels_last", "(20 channels over 20 steps, stored time first)", (1, 20, 20)),
    ],
)
def test_a_layout_is_drafted_as_told_and_the_likely_one_otherwise(shape, layout, said, read):
    stored(Path("mine.npz"), shape, FLOAT)
    result = CliRunner().invoke(app, ["init", "mine.npz", "--layout", layout])
    assert result.exit_code == 0, result.output
    assert said in result.stdout
    assert "note:" not in result.stdout
    assert open_dataset(load_scenario("mine.yaml").data).input_shape == read


@pytest.mark.usefixtures("in_folder")
def test_what_the_data_shows_is_noted():
    rows = np.zeros((40, 5))
    np.savez("flat.npz", x_train=rows, y_train=np.ones(40, int), x_test=rows, y_test=np.ones(40, int))
    result = CliRunner().invoke(app, ["init", "flat.npz"])
    assert "note: all training samples have label 1: " in result.stdout


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mine.npz", "--out", "there.yaml"], "there.yaml is there already; name another file by --out"),
        (["mien.npz"], "no file mien.npz, and no data set of that name; give an .npz file with x_train"),
        (["mine.csv"], "mine.csv is no .npz file, which is what is read: "),
        (["mine.csv"], "numpy.savez('mine.npz', x_train=..., y_train=..., x_test=..., y_test=...)"),
        (["digit"], "Did you mean 'digits'?"),
        (
            ["mine.npz", "--model", "cmn"],
            "--model must be one of mlp, cnn, vgg11, resnet20, conv1d, lenet5, fedavg_cnn, heterofl_cnn, "
            "spiking_mlp, spiking_cnn, got 'cmn'",
        ),
        (["mine.npz", "--layout", "last"], "--layout must be one of auto, channels_first, channels_last"),
        (["digits", "--layout", "channels_last"], "data.layout is for data of your own"),
        (["mine.npz", "--model", "cnn"], "cnn"),
        (["mine.npz", "--out", "no/such.yaml"], "no/such.yaml cannot be written: No such file or directory"),
        (["there.yaml"], "there.yaml"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_and_nothing_is_written(arguments, said):
    stored(Path("mine.npz"), (6,), FLOAT)
    Path("mine.csv").write_text("x,y,label\n1,2,0\n")
    Path("there.yaml").write_text("rounds: 3\n")
    result = CliRunner().invoke(app, ["init", *arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert [path.name for path in Path().glob("*.yaml")] == ["there.yaml"]
    assert Path("there.yaml").read_text() == "rounds: 3\n"


def test_a_single_training_row_is_refused(tmp_path):
    data = stored(tmp_path / "one.npz", (4,), FLOAT, num_rows=1)
    with pytest.raises(DataError, match="1 training rows are too few"):
        draft(look(data), "one")


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
