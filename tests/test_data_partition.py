"""Every row is dealt or named, and a library's warnings are heard."""

import logging
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import own

import fedhp
from fedhp.data import PartitionConfig, partition_notes, partition_rows
from fedhp.data.overhearing import Heard, overheard
from fedhp.data.partition import _in_shards
from fedhp.seeds import derive


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "cache"))


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
