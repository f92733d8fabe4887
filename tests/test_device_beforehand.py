"""What a device is told before it takes part: data that fits no scenario, budgets beyond reason."""

import logging

import numpy as np
import pytest
from test_data_own_kinds import pixels, write_image

from fedhp.costs.machine import Room
from fedhp.data.own import check_own
from fedhp.deployment import beforehand, device
from fedhp.deployment.device import DeviceOptions, run_device
from fedhp.errors import DataError, NeedsTorchError

SERVER = "127.0.0.1:9"


@pytest.fixture
def started(monkeypatch):
    """What would have been started."""
    words = []
    monkeypatch.setattr(device, "keep_going", lambda command, *rest: words.append(command))
    return words


def told(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_data_that_cannot_be_read_is_refused_before_anything_is_started(tmp_path, started):
    bad = tmp_path / "bad.csv"
    bad.write_text("1;2;0\n")
    with pytest.raises(DataError, match=r"^--data: .*bad\.csv, line 1: expected 2 columns, got 1; cells are"):
        run_device(DeviceOptions(SERVER, data=bad))
    assert not started
    bad.write_text("1,2,0\n")
    run_device(DeviceOptions(SERVER, data=bad))
    assert len(started) == 1


@pytest.mark.parametrize(
    ("samples", "labels", "said"),
    [
        (np.ones((2, 3)), [0, 1, 2], "one label per sample"),
        (np.ones((2, 3)), [0.5, 1.5], "must hold integers"),
        (np.ones((2, 3)), [-1, 4], "must hold labels of 0 to 4, got -1 to 4"),
        (np.full((2, 3), np.nan), [0, 1], "finite|not a number|nan"),
        (np.ones((0, 3)), [], "not be empty"),
    ],
)
def test_what_no_scenario_takes_is_refused(tmp_path, samples, labels, said):
    np.savez(tmp_path / "mine.npz", x_train=samples, y_train=labels)
    with pytest.raises(DataError, match=said):
        check_own(tmp_path / "mine.npz")


def test_what_some_scenario_may_take_is_not(tmp_path):
    """Labels far apart, names, windows over time, and images in grey and in colours."""
    for labels in ([3, 90_000], ["cat", "dog"], [True, False]):
        np.savez(tmp_path / "mine.npz", x_train=np.ones((2, 3, 50)), y_train=labels)
        check_own(tmp_path / "mine.npz")
    write_image(tmp_path / "images" / "0" / "a.png", pixels(4, 4))
    write_image(tmp_path / "images" / "1" / "b.png", pixels(4, 4, 3))
    check_own(tmp_path / "images")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("2GiB", ["2.00 GiB are more than the 1.00 GiB of memory that are left"]),
        ("1GiB", []),
        ("1KiB", []),
        ("3B", ["3 B hold the smallest part of no model that ships"]),
    ],
)
def test_a_budget_beyond_the_machine_or_any_model_is_told(budget, said, monkeypatch, started, caplog):
    monkeypatch.setattr(beforehand, "room", lambda: Room(2**30, 2**30, 2**40))
    run_device(DeviceOptions(SERVER, partition_id=0, budget=budget))
    assert len(told(caplog)) == len(said)
    assert all(one in text for one, text in zip(said, told(caplog), strict=True))
    assert len(started) == 1


def test_a_part_of_data_sets_that_cannot_be_opened_here_is_told(tmp_path, monkeypatch, started, caplog):
    monkeypatch.setattr(beforehand, "find_spec", lambda name: None if name == "sklearn" else name)
    run_device(DeviceOptions(SERVER, partition_id=0))
    assert ["needs scikit-learn, not installed here" in text for text in told(caplog)] == [True]
    caplog.clear()
    np.savez(tmp_path / "mine.npz", x_train=np.ones((2, 3)), y_train=[0, 1])
    run_device(DeviceOptions(SERVER, data=tmp_path / "mine.npz", partition_id=0))
    assert not told(caplog)


def test_pytorch_that_is_asked_for_and_missing_is_told(monkeypatch, started):
    monkeypatch.setattr(device, "has_torch", lambda: False)
    with pytest.raises(NeedsTorchError, match="--runtime torch needs PyTorch"):
        run_device(DeviceOptions(SERVER, partition_id=0, runtime="torch"))
    run_device(DeviceOptions(SERVER, partition_id=0, runtime="numpy"))
    assert len(started) == 1
