"""How what is known of devices looks in a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedhp.exports.measured_table import measured_table
from fedhp.sizes import at_least, format_size

if TYPE_CHECKING:
    from fedhp.deployment.check import DeviceCheck
    from fedhp.deployment.listing import Seen
    from fedhp.deployment.measuring import DeviceMeasured


def show_check(found: "DeviceCheck") -> None:
    """Prints what a device has, and what it can train."""
    table = Table(show_header=False, title="this device", title_justify="left")
    for row in _facts(found):
        table.add_row(*row)
    _console().print(table)
    columns = ("batch", "parameters", "share", "memory", "units")  # short, or units break at 80 columns
    title = f"what fits into {format_size(found.budget_bytes)}"
    fits = Table(*columns, title=title, title_justify="left", header_style="bold")
    for part in found.parts:
        units = ", ".join(f"{group} {count}" for group, count in part.counts.items())
        numbers = str(part.batch), f"{part.parameters:,}", f"{part.share:.0%}", format_size(part.bytes)
        fits.add_row(*numbers, units)
    _console().print(fits)


def show_devices(seen: "Sequence[Seen]") -> None:
    """Prints the devices of a server."""
    table = Table("device", "state", "last seen", "class", "budget", "last failure", header_style="bold")
    for device in seen:
        budget = "" if device.memory_bytes is None else format_size(device.memory_bytes)
        name = device.name or str(device.node)
        table.add_row(name, device.state, device.last_seen, device.device_class, budget, device.last_failure)
    _console().print(table)


def show_measured(told: "Sequence[DeviceMeasured]") -> None:
    """Prints what devices have measured, a row each and file; before it, what could not be."""
    for one in told:
        failures = one.found.failures.values() if one.found else [one.failure]
        for why in failures:
            _console().print(f"{one.device}: {why}", soft_wrap=True)
    rows = [((one.device, file.file), file) for one in told if one.found for file in one.found.files]
    if rows:
        _console().print(measured_table(rows, ("device", "file")))


def _facts(found: "DeviceCheck") -> Sequence[tuple[str, str]]:
    room = found.room
    limit = "none" if room.limit is None else f"{_size(room.limit)}, of which {_size(room.left)} are left"
    return (
        ("machine", f"{found.machine}; {found.cores} cores"),
        ("trains with", f"{found.runtime}, {found.threads} thread{'s' * (found.threads > 1)}"),
        ("limit of its control group", limit),
        ("memory available", _size(room.available)),
        ("this process, after training", _size(found.process_bytes)),
        ("disk left", _size(found.disk_bytes)),
        ("samples", found.samples),
        ("speed", f"{found.samples_per_second:,.0f} samples/s, {found.step_milliseconds:.2f} ms a step"),
        ("all of the model would take", _size(found.full_bytes)),
        ("proposed budget", _proposal(found)),
    )


def _proposal(found: "DeviceCheck") -> str:
    """Says it as an option takes it and as other sizes are shown, and whether less would do."""
    if not found.proposed_bytes:
        return "none"
    enough = found.full_bytes <= found.proposed_bytes
    less = f"; all of this model trains with {at_least(found.full_bytes)}" if enough else ""
    return f"{at_least(found.proposed_bytes)} ({format_size(found.proposed_bytes)}){less}"


def _size(size: int | None) -> str:
    return "not known" if size is None else format_size(size)


def _console() -> Console:
    return Console(highlight=False, emoji=False, markup=False)  # as wide as the terminal is now
