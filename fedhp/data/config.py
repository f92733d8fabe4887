"""The data part of a scenario."""

from dataclasses import dataclass, field
from typing import Annotated

from fedhp.bounds import Bounds, Text
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.data.layout import LAYOUTS
from fedhp.errors import ScenarioError

SOURCE_NAMES = ("digits", "mnist", "fashion_mnist", "cifar10", "npz")  # in `fedhp.data.sources.SOURCES`
PARTITIONS = ("iid", "dirichlet", "shards", "pathological", "natural")


@dataclass(frozen=True)
class PartitionConfig:
    """How the training rows are divided among the clients.

    Attributes:
        name: How the training rows are divided among the clients. ``iid``: evenly; ``dirichlet``: class
            shares drawn per client (arXiv 1905.12022); ``shards``: rows sorted by label and dealt in blocks
            of one size, to a row (arXiv 1602.05629); ``pathological``: few classes per client, where few
            clients leave classes unused, which a run notes; ``natural``: by the owners that come with the
            data (``npz`` only), one client each.
        alpha: Concentration of ``dirichlet``: small is skewed, large is even.
        shards_per_client: Blocks per client in ``shards``.
        classes_per_client: Classes per client in ``pathological``.
        min_samples: Rows that every client must get, those that it holds out included; a partition that gives
            less is refused.
    """

    name: Annotated[str, OneOf(PARTITIONS), STABLE] = "dirichlet"
    alpha: Annotated[float, Bounds(above=0), STABLE] = 0.5
    shards_per_client: Annotated[int, Bounds(at_least=1)] = 2
    classes_per_client: Annotated[int, Bounds(at_least=1)] = 2
    min_samples: Annotated[int, Bounds(at_least=1)] = 10

    def __post_init__(self) -> None:
        check_values(self, "data.partition.")


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is divided.

    Attributes:
        name: Which data set: ``digits`` comes with scikit-learn, ``npz`` is data of your own.
        root: The folder that holds the files; for ``npz`` also the file itself. When empty, the environment
            variable ``FEDHP_DATA``; data that is in neither is fetched from the Hugging Face hub; see below.
        partition: How the training rows are divided.
        max_train: Take at most this many training rows, the first of a fixed permutation; 0 takes all.
        local_test: Share of its own rows that each client holds out, rounded down to rows: a seeded draw, the
            same in every round, and never trained on. In every round the client evaluates there the model
            that it received, and its own after local training: ``local_accuracy_global`` and
            ``local_accuracy_personal`` in the record.
        layout: Of ``npz`` only: which axis of a sample holds its channels. ``auto`` goes by the number of
            axes and their sizes. Applies to the own data of devices too. See [below](#data-of-your-own).
    """

    name: Annotated[str, OneOf(SOURCE_NAMES, "bring your own data as 'npz'"), STABLE] = "digits"
    root: Annotated[str, Text(longest=4096), STABLE] = ""
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    max_train: Annotated[int, Bounds(at_least=0, hint="0 takes all")] = 0
    local_test: Annotated[float, Bounds(at_least=0, below=1, hint="a share of each client's rows")] = 0.0
    layout: Annotated[str, OneOf(LAYOUTS)] = "auto"

    def __post_init__(self) -> None:
        check_values(self, "data.")
        if self.layout != "auto" and self.name != "npz":
            raise ScenarioError(
                f"data.layout is for data of your own (data.name npz): the axes of '{self.name}' are known; "
                f"leave it out"
            )
