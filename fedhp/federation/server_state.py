"""What the server holds between two rounds, and what a round comes to."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedhp.aggregation.personal import Personal
from fedhp.aggregation.proportion import Norms
from fedhp.aggregation.reconcile import Shares
from fedhp.aggregation.server_optimizer import Moments
from fedhp.federation.numbers import Given, Numbers
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState, Weights, check_shapes
from fedhp.model.structure import Structure
from fedhp.records.rows import ClientReport


@dataclass(frozen=True)
class ServerState:
    """All that one round hands on to the next: from it a run goes on as if it had never stopped.

    Nothing else is remembered. Every draw hangs on the seed, the round and the device alone, and devices keep
    nothing between messages.

    Attributes:
        model: The global model, with the scores of its units.
        round: The last round that was held; 0 before the first.
        moments: What the server's optimiser remembers.
        update_norms: Norms of the last updates that were in proportion.
        statistics_norms: Those of the last running statistics that were.
        in_vain: The rows of each round in a row, the last included, without any valid reply.
        some_absent: Whether some devices of the last round failed because they were not there.
        numbers: The numbers that real devices have, or had.
        dormant: Where units that were cut may come back, all that was ever known of them.
        judged: With which units the last round began, if some had come back.
        level_statistics: Running statistics of the narrower networks that the model stands for, by what they
            are called.
        personal: Where devices have layers of their own, what is known of these.
    """

    model: ModelState
    round: int = 0
    moments: Moments = ()
    update_norms: Norms = ()
    statistics_norms: Norms = ()
    in_vain: tuple[tuple[ClientReport, ...], ...] = ()
    some_absent: bool = False
    numbers: tuple[Given, ...] = ()
    dormant: ModelState | None = None
    judged: Structure | None = None
    level_statistics: Mapping[str, Weights] = field(default_factory=dict)
    personal: Personal | None = None

    def values(self) -> dict[str, Any]:
        """Returns the state as a checkpoint takes it, every attribute by its name."""
        return {
            **vars(self),
            "model": self.model.values(),
            "in_vain": [[row.values() for row in rows] for rows in self.in_vain],
            "numbers": [one.values() for one in self.numbers],
            "dormant": None if self.dormant is None else self.dormant.values(),
            "judged": None if self.judged is None else self.judged.to_bits(),
            "personal": None if self.personal is None else self.personal.values(),
        }

    @staticmethod
    def of(values: Mapping[str, Any], layout: Layout) -> "ServerState":
        """Reads `values`, of a model of this wiring.

        Raises:
            ValueError: If arrays do not fit the structure, or numbers of devices are none.
        """
        model, moments = ModelState.of(values["model"], layout), tuple(values["moments"])
        for arrays in moments:
            check_shapes(layout, model.structure, arrays, layout.trained)
        dormant, judged = values.get("dormant"), values.get("judged")
        levels = {name: dict(arrays) for name, arrays in values.get("level_statistics", {}).items()}
        if any(set(arrays) - layout.buffers for arrays in levels.values()):
            raise ValueError("statistics of levels are of what has none")
        personal = values.get("personal")
        read = {
            "model": model,
            "moments": moments,
            "update_norms": tuple(values["update_norms"]),
            "statistics_norms": tuple(values["statistics_norms"]),
            "level_statistics": levels,
            "in_vain": tuple(tuple(map(ClientReport.of, rows)) for rows in values["in_vain"]),
            "numbers": Numbers(given=map(Given.of, values.get("numbers", ()))).given,
            "dormant": None if dormant is None else ModelState.of(dormant, layout),
            "judged": None if judged is None else Structure.from_bits(judged, layout.widths),
            "personal": None if personal is None else Personal.of(personal, layout, model),
        }
        return ServerState(**{**values, **read})

    def as_begun(self, before: "ServerState") -> "ServerState":
        """Returns the state after a round of which nothing counts, without units that came back for it."""
        return replace(self, model=before.model, moments=before.moments)

    def undone(self, before: "ServerState") -> "ServerState":
        """Returns the state after a round whose model is not to count, nor what the optimiser made of it."""
        kept = {"dormant": before.dormant, "level_statistics": before.level_statistics}
        return replace(self, model=before.model, moments=(), personal=before.personal, **kept)


@dataclass(frozen=True)
class Outcome:
    """What a round comes to beside its model.

    Attributes:
        rows: One per client sampled, by partition id.
        votes: `Reconciliation.votes`; empty where clients do not prune, or the model stays.
        sources: Digests of the structures of the updates that the model is made of; none where it stays.
    """

    rows: tuple[ClientReport, ...] = ()
    votes: Shares = field(default_factory=dict)
    sources: frozenset[str] = frozenset()

    @property
    def valid(self) -> tuple[ClientReport, ...]:
        """The rows of those whose updates count."""
        return tuple(row for row in self.rows if row.status == "ok")
