"""What was found of two records that are held against each other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedhp.records.result import RunResult
from fedhp.twins.likeness import Likeness

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class RecordComparison:
    """A simulation held against what became of its scenario on devices.

    Attributes:
        simulated: The simulation's record.
        real: That of the devices.
        rounds: The rounds that both have held, which are compared.
        cautions: Why the figures may say little of each other; empty for two records of one scenario.
        likeness: What the models have in common.
        figures: A row per device class and figure; see `fedhp.twins.measures.rows` for the columns.
        failures: A row per device class and reason of failures: in how many client rounds of each run.
    """

    simulated: RunResult
    real: RunResult
    rounds: int
    cautions: Sequence[str]
    likeness: Likeness
    figures: "pd.DataFrame"
    failures: "pd.DataFrame"

    def __repr__(self) -> str:
        """Says which records they are, and how alike, not all that there is."""
        which = f"{self.simulated.folder}, {self.real.folder}, {self.rounds} rounds"
        return f"RecordComparison({which}: {self.likeness})"

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as plain values, which JSON can hold."""
        tables: Any = {"figures": self.figures, "failures": self.failures}
        return {
            "simulated": str(self.simulated.folder),
            "real": str(self.real.folder),
            "rounds": self.rounds,
            "cautions": list(self.cautions),
            "likeness": asdict(self.likeness),
            **{
                name: table.astype(object).where(table.notna(), None).to_dict("records")
                for name, table in tables.items()
            },
        }
