"""An export in the terminal."""

from types import TracebackType

from rich.console import Console
from rich.table import Table

from fedhp.exports.result import Exported, ExportedFile
from fedhp.sizes import format_size


class Progress:
    """Shows what is being written, and in the end a table of it.

    Args:
        silent: Whether nothing is shown, for whoever reads what is printed.
    """

    def __init__(self, silent: bool = False) -> None:
        self._console = Console(quiet=silent, highlight=False, stderr=False)
        self._status = self._console.status("exporting")

    def __enter__(self) -> "Progress":
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def tell(self, what: str, outcome: ExportedFile | str) -> None:
        """Shows what became of a format and width: a file, or why there is none."""
        if isinstance(outcome, ExportedFile):
            self._status.update(f"exporting; {what} is verified")
        else:
            self._console.print(f"{what}: {outcome}", markup=False, soft_wrap=True)

    def show(self, done: Exported) -> None:
        """Shows all files in a table."""
        if not done.files:
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("file")
        for heading in ("size", "time", "agrees", "difference", "accuracy"):
            table.add_column(heading, justify="right")
        for one in done.files:
            found = one.agreement
            table.add_row(
                one.name,
                format_size(one.num_bytes),
                f"{one.microseconds:.1f} us",
                f"{100 * found.agreement:.1f}%",
                f"{found.largest_difference:.1g}",
                f"{100 * found.accuracy:.1f}%",
            )
        self._console.print(table)
        verified = done.files[0].agreement.num_samples
        self._console.print(f"verified on {verified:,} of {done.num_held_out:,} held-out samples")
        if (packed := done.compression or done.pattern) is not None:
            self._console.print(packed.said, markup=False, soft_wrap=True)
        for one in done.files:
            for remark in one.remarks:
                self._console.print(f"{one.name}: {remark}", markup=False, soft_wrap=True)
        self._console.print(f"export: {done.folder}", markup=False, soft_wrap=True)
