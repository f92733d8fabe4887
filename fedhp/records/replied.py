"""What a client's update says of it in the record."""

from dataclasses import replace

from fedhp.model.layout import Layout
from fedhp.records.rows import ClientReport
from fedhp.training.update import Said


def succeeded(row: ClientReport, said: Said, layout: Layout) -> ClientReport:
    """Returns a client's row with what its update says; what it cost to send stays as it is."""
    is_whole = said.held == said.assigned
    return replace(
        row,
        status="ok",
        failure="",
        num_examples=said.num_examples,
        params_sent=row.params_received if is_whole else layout.num_parameters(said.held.counts),
        units_pruned=said.assigned.num_units() - said.held.num_units(),
        statistics=said.statistics,
    )
