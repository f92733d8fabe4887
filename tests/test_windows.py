"""The fleet of sensor windows that is made of pictures."""

import numpy as np
import pytest
from typer.testing import CliRunner

import fedhp
from fedhp.bench.windows import write_windows
from fedhp.cli import app
from fedhp.data.config import DataConfig
from fedhp.data.dataset import raw_arrays
from fedhp.errors import DataError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "w.npz"
    told = write_windows(path, "digits", owners=3)
    assert (told["owners"], told["tests"]) == (3, 360)
    return path


def test_every_picture_is_dealt_once_at_most_and_read_row_by_row(file):
    """Less its sensor's gain, offset and noise a window is the digit whose row it is, on its side."""
    windows = np.load(file)
    pictures = raw_arrays(DataConfig())["train_images"][:, 0].swapaxes(1, 2).reshape(-1, 64) / 255
    found = []
    for owner in range(3):
        own = windows["x_train"][windows["client_train"] == owner].reshape(-1, 64)
        assert 150 <= len(own) <= 300
        distances = ((own[:, None] - pictures) ** 2).sum(2)
        found += distances.argmin(1).tolist()
    assert len(set(found)) > 0.98 * len(found)
    assert (raw_arrays(DataConfig())["train_labels"][found] == windows["y_train"]).mean() > 0.99


def test_owners_have_three_classes_more_often_and_sensors_of_their_own(file):
    windows = np.load(file)
    for owner in range(3):
        own = windows["y_train"][windows["client_train"] == owner]
        often = np.sort(np.bincount(own, minlength=10))[-3:].sum() / len(own)
        assert often == pytest.approx(12 / 19, abs=0.12)  # three times four of nineteen
    means = [windows["x_train"][windows["client_train"] == owner].mean((0, 2)) for owner in range(3)]
    assert np.abs(means[0] - means[1]).max() > 0.03


def test_one_seed_fixes_the_file(file, tmp_path):
    write_windows(tmp_path / "again.npz", "digits", owners=3)
    one, two = np.load(file), np.load(tmp_path / "again.npz")
    assert all(np.array_equal(one[key], two[key]) for key in one)
    write_windows(tmp_path / "other.npz", "digits", owners=3, seed=1)
    assert not np.array_equal(np.load(tmp_path / "other.npz")["y_train"], one["y_train"])


def test_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="1437 pictures are too few for 30 owners of up to 300 windows"):
        write_windows(tmp_path / "w.npz", "digits")


def test_the_command_writes_what_a_scenario_takes(tmp_path):
    path = tmp_path / "w.npz"
    result = CliRunner().invoke(app, ["bench", "windows", str(path), "--source", "digits", "--owners", "3"])
    assert result.exit_code == 0, result.output
    fleet = {"fleet.num_clients": 3, "rounds": 1, "simulation.num_workers": 0}
    run = fedhp.simulate("har_fleet", tmp_path / "run", show=False, **fleet, **{"data.root": str(path)})
    assert sorted(run.clients["client"]) == [0, 1, 2]
