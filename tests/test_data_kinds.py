"""Data as it comes: kinds that train, and kinds of which a run says what is odd."""

import numpy as np
import pytest
from own_data import own, values
from sklearn.datasets import load_digits, load_wine

import fedhp
from fedhp.data import data_notes, open_dataset, partition_rows, train_shard

DIGITS, NAMED = load_digits(), load_wine()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "cache"))


def windows(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Three sensors of unlike scale over 32 steps; a class is a frequency."""
    rng = np.random.default_rng(0)
    labels, steps = rng.integers(0, 3, num_rows), np.arange(32)
    phases = rng.uniform(0, 6, (num_rows, 3, 1))
    waves = np.sin(2 * np.pi * (1 + 2 * labels[:, None, None]) * steps / 32 + phases)
    return (waves + 0.2 * rng.normal(size=waves.shape)) * np.array([[1], [250], [0.01]]), labels


def tinted(images: np.ndarray) -> np.ndarray:
    return np.repeat(images[..., None], 3, -1) * [1.0, 0.5, 0.1] + [0, 100, 7]


KINDS = {
    "a table of unlike features, by names": (NAMED.data, np.array(["a", "b", "c"])[NAMED.target], {}),
    "12-bit images": ((DIGITS.images * 255).astype(np.uint16), DIGITS.target, {}),
    "colours last, big-endian": (tinted(DIGITS.images).astype(">f4"), DIGITS.target, {}),
    "black and white": (DIGITS.images > 8, DIGITS.target, {}),
    "half precision": (DIGITS.data.astype(np.float16), DIGITS.target, {}),
    "windows, time first": (
        windows(300)[0].transpose(0, 2, 1),
        windows(300)[1],
        {
            "data.layout": "channels_last",
            "model.name": "conv1d",
            "model.widths": [8, 8, 8],
            "model.norm": "group",
        },
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_data_are_learned(tmp_path, name):
    """At most 600 rows, held out too: a model that is wrongly fed stays far below nine tenths of them."""
    x, y, more = KINDS[name]
    order = np.random.default_rng(0).permutation(len(x))[:600]
    chosen = {
        **values(own(tmp_path, x[order], y[order])),
        **{"fleet.num_clients": 2, "simulation.num_workers": 0, "data.partition.name": "iid"},
        **{"prune.target_compression": 1, "fleet.classes": [{"name": "any", "memory": "64MiB"}]},
        **{"train.optimizer": "adam", "train.learning_rate": 0.01, "train.local_epochs": 2},
    }
    run = fedhp.simulate("quickstart", tmp_path / "run", show=False, rounds=5, **{**chosen, **more})
    assert run.summary["final_accuracy"] > 0.9


def test_samples_that_were_rounded_until_little_is_left_are_noted(tmp_path):
    """Single precision counts by 2 at 3e7, two deviations; whole numbers, by 1, are as they are."""
    x = np.random.default_rng(0).normal(size=(200, 3)) + 3e7
    (note,) = data_notes(open_dataset(own(tmp_path / "single", x.astype(np.float32))))
    assert note.startswith("training samples were rounded to steps of ")
    assert list(data_notes(open_dataset(own(tmp_path / "double", x)))) == []
    assert list(data_notes(open_dataset(own(tmp_path / "whole", np.rint(x).astype(np.int64))))) == []


def test_whole_numbers_that_double_precision_cannot_tell_apart_are_noted_as_rounded(tmp_path):
    """From 2^60 on it counts by 2^8: of 100 numbers in a row nothing is left, of 1,000 a few steps."""
    labels, start = np.arange(1000) % 3, 2**60 + 2**7 + 1
    last_bits = start + (np.arange(3000).reshape(1000, 3) // 30)
    rounded, equal = data_notes(open_dataset(own(tmp_path / "lost", last_bits, labels)))
    assert rounded.startswith("training samples were rounded to steps of 1 of their deviation, ")
    assert equal.startswith("all training samples are equal in double precision")
    (rounded,) = data_notes(open_dataset(own(tmp_path / "some", start + np.arange(3000).reshape(1000, 3))))
    assert rounded.startswith("training samples were rounded to steps of 0.")


def test_a_feature_that_double_precision_cannot_tell_apart_is_noted_beside_others(tmp_path):
    x = np.stack([np.arange(90) % 7, 2**60 + np.arange(90)], axis=1)
    (rounded,) = data_notes(open_dataset(own(tmp_path, x)))
    assert rounded.startswith("training samples were rounded to steps of 1 of their deviation, ")


@pytest.mark.parametrize("unit", [1e-150, 1e-170, 1e-200, 1e-300, 1e30])
def test_numbers_of_any_size_that_float32_holds_are_brought_to_deviation_1(tmp_path, unit):
    """Squared, those below 1e-162 are nothing in double precision."""
    x = np.random.default_rng(0).normal(size=(200, 3))
    dataset = open_dataset(own(tmp_path, x * unit))
    assert list(data_notes(dataset)) == []
    expected = (x - x.mean(axis=0)) / x.std(axis=0)
    np.testing.assert_allclose(dataset.train_images.reshape(200, 3), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("factor", "noted"), [(255.0, True), (1 / 255, True), (3.0, False)])
def test_held_out_samples_on_another_scale_are_noted(tmp_path, factor, noted):
    x = np.random.default_rng(0).random((40, 6, 6))
    notes = list(data_notes(open_dataset(own(tmp_path, x, x_test=x * factor))))
    assert [note.startswith("held-out samples spread ") for note in notes] == [True] * noted


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    """In one process, as in a notebook; a client of a run that goes on keeps to what the run began with."""
    x = np.arange(60.0).reshape(20, 3)
    config = own(tmp_path, x)
    assert train_shard(config).input_shape == (1, 1, 3)
    own(tmp_path, np.arange(100.0).reshape(25, 4))
    assert open_dataset(config).input_shape == (1, 1, 4)
    assert train_shard(config).input_shape == (1, 1, 4)
    assert sum(map(len, partition_rows(config, 2, 0))) == 25
    own(tmp_path, np.arange(150.0).reshape(30, 5))
    assert sum(map(len, partition_rows(config, 2, 0))) == 30


def test_a_client_keeps_to_what_its_run_began_with(tmp_path):
    from fedhp.data import client_shard

    config = own(tmp_path, np.arange(120.0).reshape(40, 3))
    before = client_shard(config, 2, 0, 0)
    own(tmp_path, np.arange(200.0).reshape(50, 4))
    assert client_shard(config, 2, 0, 0).input_shape == before.input_shape
