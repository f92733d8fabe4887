"""Classes and owners by their names, and labels in other forms than numbers from 0 on."""

from dataclasses import replace

import numpy as np
import pytest
from data_files import npz_config
from own_data import own, values, write_npz

import fedhp
from fedhp.data import (
    DataConfig,
    Normalisation,
    PartitionConfig,
    client_shard,
    device_shard,
    open_dataset,
    partition_notes,
)
from fedhp.errors import DataError

SCALE = Normalisation((0.0,), (1.0,))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "cache"))


def features(num_rows: int = 12) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_rows, 3))


@pytest.mark.parametrize("kind", ["U", "S"])
def test_names_of_classes_are_numbered_in_sorted_order(tmp_path, kind):
    """run, sit, walk: 0, 1, 2. The held-out rows have two of them."""
    labels = np.array(["walk", "run", "sit", "walk"] * 3).astype(kind)
    held_out = {"x_test": features(3), "y_test": np.array(["sit", "walk", "sit"]).astype(kind)}
    dataset = open_dataset(own(tmp_path, features(), labels, **held_out))
    assert dataset.label_names == ("run", "sit", "walk")
    assert dataset.train_labels.tolist() == [2, 0, 1, 2] * 3
    assert dataset.test_labels.tolist() == [1, 2, 1]
    assert dataset.num_classes == 3


def test_sets_that_are_known_have_their_published_names():
    from fedhp.data import SOURCES

    assert SOURCES["cifar10"].label_names[3] == "cat"
    assert SOURCES["fashion_mnist"].label_names[9] == "Ankle boot"
    assert open_dataset(DataConfig()).label_names == ()


def test_truth_values_are_two_classes(tmp_path):
    x = features()
    dataset = open_dataset(own(tmp_path, x, x[:, 0] > 0))
    assert dataset.num_classes == 2
    assert dataset.train_labels.tolist() == [int(row[0] > 0) for row in x]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.eye(3)[np.arange(12) % 3], r"got \(12, 3\); of one column per class, take .argmax\(axis=1\)"),
        (np.zeros((12, 1), int), r"got \(12, 1\); take .reshape\(-1\)"),
        (np.arange(12) % 3.0, r"got float64; .*whole ones with .astype\(int\)"),
        (np.array(["a", "b\nround 1: won", "c"] * 4), r"1 to 100 printable characters, got 'b\\nround"),
        (np.array(["a", "", "c"] * 4), "1 to 100 printable characters, got ''"),
        (np.array(["a", "b" * 101, "c"] * 4), "1 to 100 printable characters, got 'bbb"),
        (np.array([b"\xff", b"a", b"b"] * 4), "bytes that are no text in UTF-8"),
    ],
)
def test_labels_in_other_forms_are_refused_with_what_to_do(tmp_path, labels, said):
    with pytest.raises(DataError, match=f"y_train .*{said}"):
        open_dataset(own(tmp_path, features(), labels))


@pytest.mark.parametrize(
    ("held_out", "said"),
    [
        (
            np.array(["a", "d", "b"]),
            "y_test holds 'd', which is no class .* classes are a, b, c, ..., 3 in all",
        ),
        (np.array([0, 1, 3]), "y_test must hold labels of 0 to 2, got 0 to 3"),
    ],
)
def test_held_out_labels_are_those_of_training(tmp_path, held_out, said):
    labels = np.array(["a", "b", "c"] * 4)
    with pytest.raises(DataError, match=said):
        open_dataset(own(tmp_path, features(), labels, x_test=features(3), y_test=held_out))


def test_a_devices_names_are_numbered_as_the_servers(tmp_path):
    """It has only two of three classes, and names of its own order would be 0 and 1."""
    file = str(write_npz(tmp_path / "own.npz", features(), np.array(["walk", "sit"] * 6)))
    names = ("run", "sit", "walk")
    shard = device_shard(file, normalisation=SCALE, num_classes=3, label_names=names)
    assert shard.batch(np.arange(4))[1].tolist() == [2, 1, 2, 1]
    for known, said in (
        (("run", "walk"), "'sit', which is no class"),
        ((), "'sit', 'walk', .* have numbers only"),
    ):
        with pytest.raises(DataError, match=said):
            device_shard(file, normalisation=SCALE, num_classes=3, label_names=known)


def test_clients_are_told_by_their_owners_names(tmp_path):
    """Sorted, ann is client 0 and bob client 1, whoever comes first in the file."""
    owners = np.array(["bob", "ann", "bob"] * 10)
    config = own(
        tmp_path, features(30), client_train=owners, partition=PartitionConfig("natural", min_samples=1)
    )
    assert len(client_shard(config, 2, 0, 0)) == 10
    assert list(partition_notes(config, 2, 0)) == [
        "clients are the owners in client_train, in order: 0 'ann', 1 'bob'; partition.parquet names all"
    ]
    run = fedhp.simulate(
        "quickstart",
        tmp_path / "run",
        show=False,
        rounds=1,
        **values(config),
        **{"data.partition.name": "natural", "fleet.num_clients": 2, "simulation.num_workers": 0},
    )
    assert run.partition is not None
    assert run.partition.groupby("owner")["count"].sum().to_dict() == {"ann": 10, "bob": 20}
    assert run.partition.groupby("client")["owner"].first().tolist() == ["ann", "bob"]
    assert "0 'ann', 1 'bob'" in (tmp_path / "run" / "events.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(("owners", "names"), [([7, 3, 7], ("3", "7")), ([1, 0, 1], ("0", "1"))])
def test_owners_with_other_numbers_are_told_too(tmp_path, owners, names):
    config = own(
        tmp_path,
        features(),
        client_train=np.array(owners * 4),
        partition=PartitionConfig("natural", min_samples=1),
    )
    assert open_dataset(config).owner_names == names
    assert len(list(partition_notes(config, 2, 0))) == (names != ("0", "1"))


def test_of_rows_that_are_taken_each_keeps_its_own_owner(tmp_path):
    """Thirty owners of one row each, whose label tells which: of four rows, four owners are left."""
    names = np.array([f"owner {number:02d}" for number in range(30)])
    config = own(tmp_path, features(30), np.arange(30), client_train=names)
    dataset = open_dataset(replace(config, max_train=4))
    assert dataset.client_train is not None
    told = [dataset.owner_names[owner] for owner in dataset.client_train]
    assert told == [names[label] for label in dataset.train_labels]
    assert len(dataset.owner_names) == 4


def test_what_a_data_set_is_known_by_changes_with_all_that_training_hangs_on(tmp_path):
    owners = np.array(["b", "c", "a"] * 4)
    dataset = open_dataset(npz_config(tmp_path, client_train=owners))
    owner, scale = dataset.client_train, dataset.normalisation
    assert owner is not None
    changes = [
        {},
        {"client_train": owner[::-1].copy()},
        {"client_train": None},
        {"owner_names": ("a", "b", "d")},
        {"label_names": ("x", "y", "z")},
        {"layout": "another"},
        {"normalisation": replace(scale, std=tuple(1.001 * one for one in scale.std))},
        {"normalisation": replace(scale, mean=tuple(one + 0.001 for one in scale.mean))},
        {"train_images": dataset.train_images[::-1]},
        {"test_labels": dataset.test_labels[::-1]},
    ]
    numbers = [replace(dataset, **change).fingerprint() for change in changes]
    assert len(set(numbers)) == len(changes)
    assert replace(dataset).fingerprint() == numbers[0]
