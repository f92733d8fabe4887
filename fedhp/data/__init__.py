"""Where samples come from, who owns which, and how a batch is gathered.

A source is read and checked once, written to a cache folder as plain ``.npy`` files and
memory-mapped from there: the worker processes of a simulation share one copy through the page
cache, and never import the libraries that prepared it.
"""

from fedhp.data.config import DataConfig, PartitionConfig
from fedhp.data.dataset import Dataset, open_dataset
from fedhp.data.device import device_shard
from fedhp.data.layout import LAYOUTS, looks_channels_last
from fedhp.data.normalisation import Normalisation
from fedhp.data.notes import data_notes
from fedhp.data.partition import label_counts, partition_notes, partition_rows
from fedhp.data.parts import client_shard, local_parts, test_shard, train_shard
from fedhp.data.shard import Shard
from fedhp.data.sources import SOURCES

__all__ = [
    "LAYOUTS",
    "SOURCES",
    "DataConfig",
    "Dataset",
    "Normalisation",
    "PartitionConfig",
    "Shard",
    "client_shard",
    "data_notes",
    "device_shard",
    "label_counts",
    "local_parts",
    "looks_channels_last",
    "open_dataset",
    "partition_notes",
    "partition_rows",
    "test_shard",
    "train_shard",
]
