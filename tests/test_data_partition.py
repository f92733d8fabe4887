"""Every row is dealt or named, and a library's warnings are heard."""

import logging
import sys
import warnings

import numpy as np
import pytest
from data_files import npz_config
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import own

import fedhp
from fedhp.data import PartitionConfig, label_counts, partition_notes, partition_rows
from fedhp.data.overhearing import Heard, overheard
from fedhp.data.partition import _in_shards
from fedhp.errors import DataError, MissingExtraError
from fedhp.seeds import derive, generator

pytestmark = pytest.mark.usefixtures("own_cache")


class Labels:
    def __init__(self, train_labels: np.ndarray) -> None:
        self.train_labels = train_labels


def in_shards(labels: np.ndarray, num_clients: int, each: int, seed: int = 0) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(labels))
    config = PartitionConfig("shards", shards_per_client=each)
    return _in_shards(Labels(labels), order, config, num_clients, seed)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=24, max_size=90), st.integers(1, 6), st.integers(1, 4))
def test_shards_deal_every_row_in_blocks_that_differ_by_a_row(labels, num_clients, each):
    """A client's rows are so many runs of the rows sorted by label, each of one size or a row longer."""
    parts = in_shards(np.array(labels), num_clients, each)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    least = len(labels) // (num_clients * each)
    assert all(each * least <= len(part) <= each * (least + 1) for part in parts)
    kinds = [len(set(np.array(labels)[part])) for part in parts]
    # A block of so many rows holds no more labels than begin in it, and there are 6 in all.
    assert sum(kinds) <= 6 - 1 + num_clients * each


@pytest.mark.parametrize("seed", range(3))
def test_where_blocks_are_equal_shards_are_those_of_flwr_datasets(seed):
    datasets = pytest.importorskip("datasets")
    from flwr_datasets.partitioner import ShardPartitioner

    labels = np.random.default_rng(seed).integers(0, 10, 240)
    order = np.random.default_rng(seed).permutation(240)
    theirs = ShardPartitioner(6, "label", 4, seed=derive(seed, "partition"))
    theirs.dataset = datasets.Dataset.from_dict({"row": order, "label": labels[order]}).with_format("numpy")
    with warnings.catch_warnings(action="ignore"):
        expected = [np.asarray(theirs.load_partition(client)["row"][:]).tolist() for client in range(6)]
    assert [part.tolist() for part in in_shards(labels, 6, 4, seed)] == expected


def test_the_class_at_the_end_is_dealt_too(tmp_path):
    """181 rows for 16 blocks: 20 of each of nine classes and one of a tenth, the last in order."""
    labels = np.concatenate([np.repeat(np.arange(9), 20), [9]])
    config = own(tmp_path, np.zeros((181, 4)), labels, partition=PartitionConfig("shards", min_samples=1))
    used = np.concatenate(partition_rows(config, 8, 0))
    assert sorted(used.tolist()) == list(range(181))
    assert list(partition_notes(config, 8, 0)) == []


def test_classes_that_no_client_has_are_named(tmp_path):
    """3 clients of one class each, the first in turn: 0, 1 and 2 of 5. Of 50 rows, 30 are 3s and 4s."""
    labels = np.array([0, 1, 2, 3, 4, 3, 4, 3, 4, 0] * 5)
    few = PartitionConfig("pathological", classes_per_client=1, min_samples=1)
    first, second = partition_notes(own(tmp_path, np.zeros((50, 4)), labels, partition=few), 3, 0)
    assert first.startswith(
        "data.partition.name 'pathological' gives 30 of 50 training rows to no client, all of"
    )
    assert "label 3, 4 among them; have more clients" in first
    assert second.startswith("flwr-datasets: Classes: [")
    assert "will NOT be used" in second


def test_a_run_says_which_rows_are_with_no_client(tmp_path):
    few = {"fleet.num_clients": 3, "simulation.num_workers": 0, "data.partition.name": "pathological"}
    fedhp.simulate("quickstart", tmp_path / "run", show=False, rounds=1, **few)
    events = (tmp_path / "run" / "events.log").read_text(encoding="utf-8")
    assert "training rows to no client, all of label" in events
    assert "flwr-datasets: Classes: " in events


def test_what_a_library_warns_of_is_heard_once_whichever_way_it_takes(capfd):
    """Of tries that differ in their numbers, the last; what is for programmers, not at all."""
    with overheard() as heard:
        for number in (1, 2):
            warnings.warn(f"try {number} of [0.5, 0.5]\nwas in vain", stacklevel=1)
        warnings.warn("another name is wanted", FutureWarning, stacklevel=1)
        logging.getLogger("datasets.arrow").warning("%d rows are odd", 3)
        logging.getLogger("datasets").info("all is well")
    assert heard.lines == ["3 rows are odd", "try 2 of [0.5, 0.5] was in vain"]
    assert capfd.readouterr() == ("", "")


def test_draws_that_are_repeated_until_one_serves_are_not_told(tmp_path, monkeypatch):
    """With some of four seeds, the first draw leaves a client with too few rows, and a later one does not."""
    heard, keep = [], Heard.add
    monkeypatch.setattr(Heard, "add", lambda self, text: heard.append(text) or keep(self, text))
    rare = PartitionConfig("dirichlet", alpha=0.3, min_samples=5)
    config = own(tmp_path, np.zeros((90, 4)), partition=rare)
    assert [list(partition_notes(config, 6, seed)) for seed in range(4)] == [[]] * 4
    assert any("min_partition_size (5) was not satisfied" in text for text in heard)
    assert all(len(rows) >= 5 for seed in range(4) for rows in partition_rows(config, 6, seed))


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "pathological"])
def test_partitions_are_disjoint_whole_and_deterministic(mnist, name, monkeypatch, tmp_path):
    config = mnist(name, alpha=5.0)
    parts = partition_rows(config, 10, seed=1)
    assert len(parts) == 10
    assert sorted(np.concatenate(parts).tolist()) == list(range(60))
    assert all(part.dtype == np.intp and not part.flags.writeable for part in parts)
    other = partition_rows(config, 10, seed=2)
    assert [part.tolist() for part in other] != [part.tolist() for part in parts]
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "second"))
    again = partition_rows(config, 10, seed=1)
    assert [part.tolist() for part in again] == [part.tolist() for part in parts]


def test_prepared_partition_needs_no_partitioner(mnist, monkeypatch):
    config = mnist("dirichlet", alpha=5.0)
    expected = [part.tolist() for part in partition_rows(config, 4, 0)]
    from fedhp.data.partition import _divided

    _divided.cache_clear()
    for module in ("datasets", "flwr_datasets", "flwr_datasets.partitioner"):
        monkeypatch.setitem(sys.modules, module, None)
    assert [part.tolist() for part in partition_rows(config, 4, 0)] == expected
    with pytest.raises(MissingExtraError, match=r"fedhp\[server\]"):
        partition_rows(config, 4, 99)


@pytest.mark.parametrize(("name", "num_clients"), [("iid", 5), ("natural", 4)])
def test_parts_that_are_cut_here_are_those_of_flwr_datasets(tmp_path, name, num_clients):
    datasets, partitioner = pytest.importorskip("datasets"), pytest.importorskip("flwr_datasets.partitioner")
    owners = np.array([7, 3, 3, 9, 7, 3, 1, 9, 3, 7, 3, 9])
    parts = partition_rows(
        npz_config(tmp_path, PartitionConfig(name, min_samples=1), client_train=owners), num_clients, 3
    )
    order = generator(3, "partition", "order").permutation(12)
    theirs = {
        "iid": lambda: partitioner.IidPartitioner(num_clients),
        "natural": lambda: partitioner.NaturalIdPartitioner("owner"),
    }[name]()
    theirs.dataset = datasets.Dataset.from_dict({"row": order, "owner": owners[order]})
    expected = [theirs.load_partition(client)["row"][:] for client in range(num_clients)]
    assert [part.tolist() for part in parts] == expected


def test_iid_is_even_and_shards_hold_few_classes(mnist):
    assert {len(part) for part in partition_rows(mnist("iid"), 5, 0)} == {12}
    # 30 shards of 2 rows, 2 per client: at most 2 classes each, since 6 rows per class divide by 2.
    shards = partition_rows(mnist("shards"), 15, 0)
    assert all(len(part) == 4 and len(set(part % 10)) <= 2 for part in shards)


def test_pathological_clients_see_the_asked_number_of_classes(mnist):
    parts = partition_rows(mnist("pathological", classes_per_client=3), 10, 0)
    assert [len(set((part % 10).tolist())) for part in parts] == [3] * 10


def test_label_counts_count_each_clients_own_rows(tmp_path):
    """Rows go to owners 5 and 9 by turns, with the labels 0 and 0, and 1 and 2: three times each."""
    pytest.importorskip("flwr_datasets")
    labels = np.array([0, 1, 0, 2] * 3)
    owners = np.array([5, 9] * 6)
    partition = PartitionConfig("natural", min_samples=1)
    config = npz_config(tmp_path, partition, client_train=owners, y_train=labels)
    assert [own.tolist() for own in label_counts(config, 2, 0)] == [[6, 0, 0], [0, 3, 3]]


def test_natural_owners_in_sorted_order(tmp_path):
    pytest.importorskip("flwr_datasets")
    owners = np.array(["b", "c", "a"] * 4)
    config = npz_config(tmp_path, PartitionConfig("natural", min_samples=1), client_train=owners)
    parts = partition_rows(config, 3, 0)
    expected = [[2, 5, 8, 11], [0, 3, 6, 9], [1, 4, 7, 10]]
    assert [sorted(part.tolist()) for part in parts] == expected
    with pytest.raises(DataError, match=r"3 owners .* set fleet\.num_clients=3"):
        partition_rows(config, 4, 0)


@pytest.mark.parametrize(
    ("name", "values", "num_clients", "message"),
    [
        ("iid", {}, 61, "60 training rows cannot be divided among 61 clients"),
        ("iid", {"min_samples": 7}, 10, "at least 7 each: it takes at least 70 rows"),
        (
            "dirichlet",
            {"alpha": 0.01, "min_samples": 10},
            6,
            "each of ten draws left .* larger data.partition.alpha",
        ),
        ("shards", {"shards_per_client": 4}, 16, "it takes at least 64 rows"),
        ("pathological", {"classes_per_client": 11}, 2, "classes_per_client = 11 exceeds the 10 classes"),
        ("pathological", {"classes_per_client": 1, "min_samples": 4}, 11, "each: client 0 would get 3"),
        ("natural", {}, 3, "an .npz file with client_train"),
    ],
)
def test_impossible_partition_is_refused(mnist, name, values, num_clients, message):
    with pytest.raises(DataError, match=message):
        partition_rows(mnist(name, **values), num_clients, 0)


def test_partitioners_stay_silent(mnist, capfd):
    partition_rows(mnist("dirichlet", alpha=0.4, min_samples=3), 5, 0)
    assert capfd.readouterr() == ("", "")
