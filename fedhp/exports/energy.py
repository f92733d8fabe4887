"""What the processor's packages took, where the system tells: Intel's and AMD's counters under Linux."""

from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


class EnergyCounter:
    """Adds up the energy of all packages between two looks; other processes' work is in it.

    Args:
        powercap: Where Linux tells of it.
    """

    def __init__(self, powercap: Path = _POWERCAP) -> None:
        found = sorted(powercap.glob("intel-rapl:[0-9]*"))
        self._packages = [one for one in found if one.name.count(":") == 1]  # :0:1 is a part of package :0

    def read(self) -> tuple[int, ...] | None:
        """Returns each package's count in microjoules; None where there is none that may be read."""
        try:
            return tuple(int((one / "energy_uj").read_text()) for one in self._packages) or None
        except (OSError, ValueError):  # of root alone on most systems
            return None

    def between(self, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> int | None:
        """Returns the microjoules between two readings; None where a counter is unknown or began anew."""
        if before is None or after is None or any(b > a for b, a in zip(before, after, strict=True)):
            return None
        return sum(after) - sum(before)
