"""Where samples come from, who owns which, and how a batch is gathered.

A source is read and checked once, written to a cache folder as plain ``.npy`` files and
memory-mapped from there: the worker processes of a simulation share one copy through the page
cache, and never import the libraries that prepared it.
"""

from fedhp.data.config import DataConfig, PartitionConfig
from fedhp.data.dataset import Dataset, note_on_labels, open_dataset
from fedhp.data.partition import label_counts, partition_rows
from fedhp.data.shard import Shard, client_shard, device_shard, test_shard, train_shard
from fedhp.data.sources import SOURCES

__all__ = [
    "SOURCES",
    "DataConfig",
    "Dataset",
    "PartitionConfig",
    "Shard",
    "client_shard",
    "device_shard",
    "label_counts",
    "note_on_labels",
    "open_dataset",
    "partition_rows",
    "test_shard",
    "train_shard",
]
