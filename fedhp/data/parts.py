"""A data set parted: what each client trains on, what it holds out, and what the server tests on."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.config import DataConfig
from fedhp.data.dataset import Dataset, held_dataset, open_dataset
from fedhp.data.partition import rows_of
from fedhp.data.shard import Shard
from fedhp.errors import DataError
from fedhp.seeds import generator


def client_shard(config: DataConfig, num_clients: int, seed: int, client: int) -> Shard:
    """Returns a simulated client's training rows, a function of the arguments and the data alone.

    Raises:
        DataError: If there is no such client, or the data cannot be opened or divided.
    """
    if not 0 <= client < num_clients:
        raise DataError(
            f"there is no client {client} among {num_clients}: partition ids go from 0 to "
            f"{num_clients - 1}; check the node's partition-id and fleet.num_clients"
        )
    dataset = held_dataset(config)
    return _training(dataset).part(rows_of(dataset, config.partition, num_clients, seed)[client])


def local_parts(config: DataConfig, shard: Shard, seed: int, stream: int) -> tuple[Shard, Shard | None]:
    """Divides a device's samples into those that it trains on and those held out (``data.local_test``).

    Args:
        config: How much is held out.
        shard: All samples of the device.
        seed: The run's seed.
        stream: What the device's randomness hangs on; a simulated one's is its partition id.
    """
    if not config.local_test:
        return shard, None
    return shard.hold_out(config.local_test, generator(seed, "local test", stream))


def train_shard(config: DataConfig) -> Shard:
    """Returns all training rows: those of a device that trains alone.

    Raises:
        DataError: If the data cannot be opened.
    """
    return _training(open_dataset(config))


@lru_cache(maxsize=1)  # of which every client of a fleet has a part
def _training(dataset: Dataset) -> Shard:
    return _shard(dataset, dataset.train_images, dataset.train_labels)


def _shard(dataset: Dataset, images: NDArray[Any], labels: NDArray[np.int64]) -> Shard:
    mean, std = (0.0, 1.0) if images.dtype != np.uint8 else (dataset.mean, dataset.std)
    rows = np.arange(len(labels))
    return Shard(images, labels, rows, num_classes=dataset.num_classes, mean=mean, std=std)


def test_shard(config: DataConfig) -> Shard:
    """Returns the held-out rows, on which the server evaluates.

    Raises:
        DataError: If the data cannot be opened.
    """
    dataset = open_dataset(config)
    return _shard(dataset, dataset.test_images, dataset.test_labels)
