"""What a client's update says of it in the record."""

from dataclasses import replace

from fedhp.model.layout import Layout
from fedhp.records.rows import ClientReport
from fedhp.training.update import Update


def succeeded(row: ClientReport, update: Update, layout: Layout) -> ClientReport:
    """Returns a client's row with what its update says; what it cost to send stays as it is."""
    return replace(
        row,
        status="ok",
        failure="",
        num_examples=update.num_examples,
        params_sent=layout.num_parameters(update.state.structure.counts),
        units_pruned=update.assigned.num_units() - update.state.structure.num_units(),
        statistics=update.statistics,
    )
