"""Which published figures there are to be held against, and the scenarios that are to give them.

Settings and figures of the first two tables were read in the pages and the code of Flower's baselines, those
of the third are of table 2 in McMahan et al. 2017 (arXiv 1602.05629).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

TARGET = 0.99  # of the third table: an accuracy on MNIST's test samples


@dataclass(frozen=True)
class Line:
    """A published figure, and how it is to come about.

    Attributes:
        case: What was run, in the table's terms; also the folder of its runs.
        values: Of the table's scenario, what is other here.
        published: Accuracy in percent, or rounds.
        deviation: Its standard deviation over runs, where it was published.
    """

    case: str
    values: Mapping[str, Any]
    published: float
    deviation: float | None = None


@dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
        title: What it is, and whose.
        scenario: The name of the scenario that its lines start from.
        reads: Which of a run's figures is published: an accuracy, in percent, or the rounds to `TARGET`.
        lines: Its lines.
        about: What is other in ours, and what was not published.
    """

    title: str
    scenario: str
    reads: Literal["last", "best", "rounds"]
    lines: Sequence[Line]
    about: str


def _heterofl(case: str, first: int, published: float) -> Line:
    """A line whose devices all hold the whole of a network that is so many channels wide at first."""
    return Line(
        case,
        {
            "model.widths": [first * 2**n for n in range(4)],
            "strategy.levels": [1.0],
            "fleet.classes": [{"name": case, "share": 1, "memory": "2MiB"}],
        },
        published,
    )


_PARTITIONS: Mapping[str, Mapping[str, Any]] = {
    "iid": {"data.partition.name": "iid"},
    "dirichlet": {"data.partition.name": "dirichlet", "data.partition.alpha": 0.5},
    "two-labels": {"data.partition.name": "pathological", "data.partition.classes_per_client": 2},
}
# Accuracy and deviation of FedAvg and FedProx, by partition.
_NIID: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] = {
    "mnist": {
        "iid": ((99.09, 0.05), (99.16, 0.04)),
        "dirichlet": ((98.89, 0.07), (99.02, 0.02)),
        "two-labels": ((96.86, 0.30), (96.85, 0.15)),
    },
    "fashion_mnist": {
        "iid": ((89.23, 0.45), (89.42, 0.09)),
        "dirichlet": ((88.09, 0.29), (88.15, 0.42)),
        "two-labels": ((78.10, 2.51), (78.05, 0.99)),
    },
}


def _niid() -> Iterator[Line]:
    for data, partitions in _NIID.items():
        for partition, published in partitions.items():
            for (name, mu), figure in zip((("fedavg", 0.0), ("fedprox", 0.01)), published, strict=True):
                values = {"data.name": data, **_PARTITIONS[partition], "train.proximal_mu": mu}
                yield Line(f"{data}-{partition}-{name}", values, *figure)


def _mcmahan(epochs: int, batch: int, rounds: int, published: int) -> Line:
    """A line of E epochs in batches of B; of as many samples as each client has, 600, is all of them."""
    said = "inf" if batch == 600 else str(batch)
    values = {"train.local_epochs": epochs, "train.batch_size": batch, "rounds": rounds}
    return Line(f"E{epochs}-B{said}", values, published)


TABLES: Mapping[str, Table] = {
    "heterofl": Table(
        "HeteroFL on MNIST, IID: Flower's baseline of Diao et al. 2021",
        "heterofl_mnist",
        "last",
        (_heterofl("e", 4, 98.46), _heterofl("d", 8, 99.07), Line("d-e", {}, 99.12)),
        "Which round's accuracy was published is not said; ours is the last. In d-e, half of our devices are "
        "of each width, for good, where theirs draw one in every round. Our batch statistics are those of a "
        "round's ten devices; theirs of all training samples and, as its code reads, of all rounds so far.",
    ),
    "niid": Table(
        "NIID-Bench, FedAvg and FedProx: Flower's baseline of Li et al. 2022",
        "niid_bench",
        "best",
        tuple(_niid()),
        "Published is the best round, over three seeds. Theirs takes pixels as they are, from 0 to 1; ours "
        "normalises them. Their mu of FedProx is the best of 0.001, 0.01, 0.1 and 1; ours is 0.01.",
    ),
    "mcmahan": Table(
        "Rounds to 99 % on MNIST, IID, C = 0.1: McMahan et al. 2017, table 2",
        "fedavg_mnist",
        "rounds",
        (_mcmahan(5, 10, 30, 20), _mcmahan(1, 10, 60, 34), _mcmahan(20, 600, 300, 234)),
        "Rounds are those at which the best accuracy so far crosses 99 %, interpolated between rounds, as in "
        "the paper. It chose the best learning rate for each line and does not give them; ours is 0.1, the "
        "better of two for E1-B10. How it draws first weights and whether it normalises is not said.",
    ),
}
