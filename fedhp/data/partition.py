"""Who owns which training rows: flwr-datasets' partitioners, run once on labels alone.

Its partitioner makes a data set of every part, 2 ms each. Where the parts are known without it, evenly cut or
by owner, they are cut here: a fleet of 100,000 would wait for minutes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.config import DataConfig, PartitionConfig
from fedhp.data.dataset import Dataset, open_dataset
from fedhp.data.overhearing import overheard
from fedhp.errors import DivisionError, require
from fedhp.files.cache import key_of, prepared
from fedhp.seeds import derive, generator

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_SHOWN = 10


def partition_rows(config: DataConfig, num_clients: int, seed: int) -> Sequence[NDArray[np.intp]]:
    """Returns, per client, its rows of the training set: read-only, disjoint, never empty.

    The division is a function of the arguments and the data alone; it is made once and kept on
    disk.

    Raises:
        DivisionError: If the data cannot be divided as asked.
        DataError: If it cannot be opened.
        MissingExtraError: If flwr-datasets is needed and not installed.
    """
    return rows_of(open_dataset(config), config.partition, num_clients, seed)


def rows_of(
    dataset: Dataset, config: PartitionConfig, num_clients: int, seed: int
) -> Sequence[NDArray[np.intp]]:
    """Returns `partition_rows` of a data set that is open already."""
    return _divided(dataset, config, num_clients, seed)[0]


def partition_notes(config: DataConfig, num_clients: int, seed: int) -> Iterator[str]:
    """Yields which rows are with no client, what the library that divides them warns of, and who is who.

    Raises:
        DataError: If the data cannot be divided as asked.
        MissingExtraError: If flwr-datasets is needed and not installed.
    """
    dataset = open_dataset(config)
    parts, heard = _divided(dataset, config.partition, num_clients, seed)
    labels = dataset.train_labels
    dealt = np.bincount(labels[np.concatenate(parts)], minlength=dataset.num_classes)
    left = np.bincount(labels, minlength=dataset.num_classes) - dealt
    if left.any():
        unseen = ", ".join(map(str, np.flatnonzero((left > 0) & (dealt == 0))))
        yield (
            f"data.partition.name '{config.partition.name}' gives {left.sum()} of {len(labels)} training "
            f"rows to no client{f', all of label {unseen} among them' if unseen else ''}; have more clients "
            f"(fleet.num_clients), or raise data.partition.classes_per_client"
        )
    yield from (f"flwr-datasets: {line}" for line in heard)
    owners = dataset.owner_names
    if config.partition.name == "natural" and owners != tuple(map(str, range(num_clients))):
        shown = ", ".join(f"{client} {name!r}" for client, name in enumerate(owners[:_SHOWN]))
        more = ", ..." if num_clients > _SHOWN else ""
        yield f"clients are the owners in client_train, in order: {shown}{more}; partition.parquet names all"


def label_counts(config: DataConfig, num_clients: int, seed: int) -> list[NDArray[np.int64]]:
    """Returns, per client, how many of its rows have each label, shape (classes,).

    Raises:
        DivisionError: If the data cannot be divided as asked.
        DataError: If it cannot be opened.
        MissingExtraError: If flwr-datasets is needed and not installed.
    """
    dataset = open_dataset(config)
    parts = rows_of(dataset, config.partition, num_clients, seed)
    return [np.bincount(dataset.train_labels[rows], minlength=dataset.num_classes) for rows in parts]


@lru_cache(maxsize=8)
def _divided(
    dataset: Dataset, config: PartitionConfig, num_clients: int, seed: int
) -> tuple[tuple[NDArray[np.intp], ...], tuple[str, ...]]:
    identity = {
        "dataset": dataset.key,
        "partition": asdict(config),
        "num_clients": num_clients,
        "seed": seed,
    }
    arrays = prepared("partitions", key_of(identity), lambda: _divide(dataset, config, num_clients, seed))
    return tuple(np.split(arrays["rows"], arrays["offsets"][1:-1])), tuple(arrays["heard"].tolist())


def _divide(
    dataset: Dataset, config: PartitionConfig, num_clients: int, seed: int
) -> Mapping[str, NDArray[Any]]:
    _check_possible(dataset, config, num_clients)
    order = generator(seed, "partition", "order").permutation(len(dataset.train_labels))
    if config.name in _CUTS:
        parts, heard = _CUTS[config.name](dataset, order, config, num_clients, seed), []
    else:
        parts, heard = _partitioned(dataset, order, config, num_clients, seed)
    _check_sizes([len(part) for part in parts], config, len(order))
    return {
        "rows": np.concatenate(parts),
        "offsets": np.cumsum([0, *map(len, parts)], dtype=np.intp),
        "heard": np.array(heard, str),
    }


def _partitioned(
    dataset: Dataset, order: NDArray[np.intp], config: PartitionConfig, num_clients: int, seed: int
) -> tuple[list[NDArray[np.intp]], list[str]]:
    """Returns the parts that flwr-datasets makes of the rows in this order, and what it warns of."""
    with require(f"the partition '{config.name}'", "server", "flwr-datasets"):
        import datasets

        partitioner = _PARTITIONERS[config.name](config, num_clients, derive(seed, "partition"))
    columns = {"row": order, "label": dataset.train_labels[order]}
    try:
        with overheard() as heard:
            partitioner.dataset = datasets.Dataset.from_dict(columns).with_format("numpy")
            parts = [
                np.asarray(partitioner.load_partition(client)["row"][:], np.intp)
                for client in range(num_clients)
            ]
        return parts, [line for line in heard.lines if not line.startswith(_TRIED_AGAIN)]
    except ValueError as error:
        cause = _CAUSES.get(config.name, str(error).rstrip(". "))
        raise DivisionError(_refusal(config, num_clients, len(order), cause)) from None


def _check_possible(dataset: Dataset, config: PartitionConfig, num_clients: int) -> None:
    num_rows = len(dataset.train_labels)
    each = max(config.min_samples, config.shards_per_client if config.name == "shards" else 1)
    wanted = num_clients * each
    if num_clients < 1 or num_rows < wanted:
        raise DivisionError(_refusal(config, num_clients, num_rows, f"it takes at least {wanted} rows"))
    if config.name == "pathological" and config.classes_per_client > dataset.num_classes:
        raise DivisionError(
            f"data.partition.classes_per_client = {config.classes_per_client} exceeds the "
            f"{dataset.num_classes} classes of the data; lower it"
        )
    if config.name != "natural":
        return
    if dataset.client_train is None:
        raise DivisionError(
            "data.partition.name 'natural' needs data that names each row's owner: an .npz file "
            "with client_train (data.name 'npz'); choose another partition for this data"
        )
    owners = len(np.unique(dataset.client_train))
    if owners != num_clients:
        raise DivisionError(
            f"data.partition.name 'natural' makes one client per owner: the data has {owners} "
            f"owners and fleet.num_clients is {num_clients}; set fleet.num_clients={owners}"
        )


def _check_sizes(sizes: Sequence[int], config: PartitionConfig, num_rows: int) -> None:
    smallest = min(sizes)
    if smallest < config.min_samples:
        cause = f"client {sizes.index(smallest)} would get {smallest}"
        raise DivisionError(_refusal(config, len(sizes), num_rows, cause))


def _refusal(config: PartitionConfig, num_clients: int, num_rows: int, cause: str) -> str:
    return (
        f"{num_rows} training rows cannot be divided among {num_clients} clients by "
        f"data.partition.name '{config.name}' with at least {config.min_samples} each: {cause}. "
        f"Use fewer clients (fleet.num_clients), more rows (data.max_train), a smaller "
        f"data.partition.min_samples{_ADVICE.get(config.name, '')}"
    )


# What DirichletPartitioner warns of each draw that it repeats; where no draw serves, it raises.
_TRIED_AGAIN = "The specified min_partition_size"
_CAUSES = {"dirichlet": "each of ten draws left some client with fewer"}
_ADVICE = {
    "dirichlet": " or a larger data.partition.alpha",
    "shards": " or fewer data.partition.shards_per_client",
    "pathological": " or other data.partition.classes_per_client",
}


def _evenly(
    dataset: Dataset, order: NDArray[np.intp], config: PartitionConfig, num_clients: int, seed: int
) -> list[NDArray[np.intp]]:
    return np.array_split(order, num_clients)


def _by_owner(
    dataset: Dataset, order: NDArray[np.intp], config: PartitionConfig, num_clients: int, seed: int
) -> list[NDArray[np.intp]]:
    assert dataset.client_train is not None
    owners = dataset.client_train[order]
    sizes = np.unique(owners, return_counts=True)[1]
    return np.split(order[np.argsort(owners, kind="stable")], np.cumsum(sizes)[:-1])


def _in_shards(
    dataset: Dataset, order: NDArray[np.intp], config: PartitionConfig, num_clients: int, seed: int
) -> list[NDArray[np.intp]]:
    """Deals blocks of the rows sorted by label, the first of them a row longer where they cannot be equal.

    flwr-datasets cuts equal blocks and leaves out what remains, whole classes perhaps; where nothing remains,
    the parts are the same, by the same draws.
    """
    stream = np.random.default_rng(derive(seed, "partition"))
    ordered = order[np.argsort(dataset.train_labels[order], kind="stable")]
    blocks = np.array_split(ordered, num_clients * config.shards_per_client)
    dealt = stream.permutation(len(blocks)).reshape(num_clients, -1)
    parts = [np.concatenate([blocks[block] for block in own]) for own in dealt]
    for part in parts:
        stream.shuffle(part)
    return parts


def _dirichlet(config: PartitionConfig, num_clients: int, seed: int) -> "Partitioner":
    from flwr_datasets.partitioner import DirichletPartitioner

    return DirichletPartitioner(
        num_clients, "label", config.alpha, min_partition_size=config.min_samples, seed=seed
    )


def _pathological(config: PartitionConfig, num_clients: int, seed: int) -> "Partitioner":
    from flwr_datasets.partitioner import PathologicalPartitioner

    # The first class in turn, so that with enough clients no class goes unused.
    return PathologicalPartitioner(
        num_clients,
        "label",
        config.classes_per_client,
        class_assignment_mode="first-deterministic",
        seed=seed,
    )


_Cut = Callable[[Dataset, NDArray[np.intp], PartitionConfig, int, int], list[NDArray[np.intp]]]

_CUTS: Mapping[str, _Cut] = {
    "iid": _evenly,
    "natural": _by_owner,
    "shards": _in_shards,
}

_PARTITIONERS: Mapping[str, Callable[[PartitionConfig, int, int], Any]] = {
    "dirichlet": _dirichlet,
    "pathological": _pathological,
}
