"""The data part of a scenario."""

from dataclasses import dataclass, field

from fedhp.choices import check_choice
from fedhp.data.layout import LAYOUTS
from fedhp.data.sources import SOURCES
from fedhp.errors import ScenarioError

PARTITIONS = ("iid", "dirichlet", "shards", "pathological", "natural")


@dataclass(frozen=True)
class PartitionConfig:
    """How the training rows are divided among the clients.

    Attributes:
        name: ``iid``; ``dirichlet`` (class shares drawn per client, arXiv 1905.12022); ``shards``
            (rows sorted by label and dealt in blocks of one size, to a row, arXiv 1602.05629);
            ``pathological`` (few classes per client); ``natural`` (the owners that come with the data).
        alpha: Concentration of ``dirichlet``: small is skewed, large is even.
        shards_per_client: Blocks per client in ``shards``.
        classes_per_client: Classes per client in ``pathological``.
        min_samples: Rows that every client must get.
    """

    name: str = "dirichlet"
    alpha: float = 0.5
    shards_per_client: int = 2
    classes_per_client: int = 2
    min_samples: int = 10

    def __post_init__(self) -> None:
        check_choice("data.partition.name", self.name, PARTITIONS)
        if not 0 < self.alpha < float("inf"):
            raise ScenarioError(f"data.partition.alpha must be a number above 0, got {self.alpha}")
        for key in ("shards_per_client", "classes_per_client", "min_samples"):
            if getattr(self, key) < 1:
                raise ScenarioError(f"data.partition.{key} must be at least 1, got {getattr(self, key)}")


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is divided.

    Attributes:
        name: A name in ``fedhp.data.SOURCES``.
        root: The folder that holds the files (for ``npz``, also the file itself); when empty, the
            environment variable ``FEDHP_DATA``.
        partition: How the training rows are divided.
        max_train: Take at most this many training rows, the first of a fixed permutation; 0 takes
            all of them.
        local_test: Share of its own rows that each client holds out to evaluate on, rounded down to rows.
        layout: Which axis of the samples in an ``.npz`` file, also of a device's own, holds the channels:
            ``channels_first``, ``channels_last``, or ``auto`` by their number and sizes (see
            ``fedhp.data.layout``).
    """

    name: str = "digits"
    root: str = ""
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    max_train: int = 0
    local_test: float = 0.0
    layout: str = "auto"

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, SOURCES, "; bring your own data as 'npz'")
        check_choice("data.layout", self.layout, LAYOUTS)
        if self.layout != "auto" and self.name != "npz":
            raise ScenarioError(
                f"data.layout is for data of your own (data.name npz): the axes of '{self.name}' are known; "
                f"leave it out"
            )
        if self.max_train < 0:
            raise ScenarioError(f"data.max_train must be 0 (all) or more, got {self.max_train}")
        if not 0 <= self.local_test < 1:
            raise ScenarioError(f"data.local_test must be a share from 0 to below 1, got {self.local_test}")
