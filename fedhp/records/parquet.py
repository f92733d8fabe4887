"""Tables that grow by a part per round, and are readable at any time.

A Parquet file without its footer cannot be read, and rewriting a whole file every round costs time
quadratic in the rounds. So while a run goes on, a table is a *folder* of part files, one per
round, each written under a hidden name, which readers skip, and renamed when complete; Parquet
readers take such a folder as one table. A killed run leaves it so. On a machine of two cores a part
takes 1 ms to write, and ``pandas.read_parquet`` reads 500 parts of 20 rows in 0.6 s, 1,000 parts of
100 rows in 0.9 s.

When the run ends, the parts are merged, streaming, into one file of the same name: a single file is
easier to copy, and quicker to read.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from fedhp.files.atomic import onto_disk, replacing
from fedhp.training.figures import Column

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
# What a column may be once another program has written the table anew.
_KINDS = {
    int: (pa.types.is_integer, pa.types.is_floating, pa.types.is_null),  # pandas' own where some are missing
    float: (pa.types.is_integer, pa.types.is_floating, pa.types.is_null),
    str: (pa.types.is_string, pa.types.is_large_string, pa.types.is_null),
}
_ROW_GROUP = 65_536


class PartedTable:
    """A table written part by part; empty, but readable, from the start.

    Args:
        path: Where the table is read from.
        columns: The columns by name; any may hold nulls.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        self._path = path
        self._schema = _schema(columns)
        path.mkdir(exist_ok=True)
        if not (path / _part(0)).exists():
            self.write(0, [])

    @classmethod
    def going_on(cls, path: Path, columns: Mapping[str, Column], rounds: int) -> "PartedTable":
        """Opens a table, at whatever moment its writer was killed, and leaves the first rounds in it."""
        if not path.is_dir():
            _into_parts(path, columns, rounds)
        _merged(path).unlink(missing_ok=True)
        for part in path.glob("part-*.parquet"):
            if part.name >= _part(rounds):
                part.unlink()
        return cls(path, columns)

    def write(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes part number ``part`` at once, or not at all; replaces the part if it exists."""
        table = pa.Table.from_pylist(list(rows), schema=self._schema)
        _write(self._path / _part(part), table)

    def merge(self) -> None:
        """Replaces the folder of parts by one file; afterwards nothing more can be written."""
        merged = _merged(self._path)
        with replacing(merged) as unfinished, pq.ParquetWriter(unfinished, self._schema) as writer:
            for table in self._row_groups():
                writer.write_table(table)
        parts = self._path.rename(_parts(self._path))
        merged.replace(self._path)
        shutil.rmtree(parts)

    def _row_groups(self) -> Iterator[pa.Table]:
        """Yields the rows in large tables: a row group per round would be slow to read."""
        batches, num_rows = [], 0
        for batch in ds.dataset(self._path, schema=self._schema, format="parquet").to_batches():
            batches.append(batch)
            num_rows += batch.num_rows
            if num_rows >= _ROW_GROUP:
                yield pa.Table.from_batches(batches, schema=self._schema)
                batches, num_rows = [], 0
        yield pa.Table.from_batches(batches, schema=self._schema)


def parts_onto_disk(path: Path, parts: Iterable[int]) -> None:
    """Waits until these parts of a table that goes on would outlive a power failure."""
    for part in parts:
        onto_disk(path / _part(part))
    onto_disk(path)


def rows(path: Path, columns: Mapping[str, Column], rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table's first rounds, of those that are there, in order."""
    if complete := files(path)[0]:
        data = _dataset(complete, columns)
        for batch in data.to_batches(filter=ds.field("round") < rounds):
            yield from batch.to_pylist()


def write_table(path: Path, columns: Mapping[str, Column], values: Mapping[str, Sequence[Any]]) -> None:
    """Writes a table that is known as a whole, column by column, at once or not at all."""
    _write(path, pa.table(dict(values), schema=_schema(columns)))


def mistyped(paths: Sequence[Path], columns: Mapping[str, Column]) -> str | None:
    """Says which column of a table's files holds something else than it should; None where none does."""
    for path in paths:
        for field in pq.read_schema(path):
            column = columns.get(field.name)
            if column is not None and not any(is_kind(field.type) for is_kind in _KINDS[column.kind]):
                return f"column '{field.name}' of {path.name} holds {field.type}, not {_TYPES[column.kind]}"
    return None


def files(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files that hold the table at ``path``, at whatever moment its writer was killed.

    Returns:
        The files, in order, none where there is no table; and the parts that are damaged: a machine that
        loses power may leave the latest parts empty.
    """
    if path.is_dir():
        complete = {part: _is_complete(part) for part in sorted(path.glob("part-*.parquet"))}
        return [part for part in complete if complete[part]], [p for p in complete if not complete[p]]
    # Between the two renames of a merge, the merged file is all that there is.
    return [file for file in (path, _merged(path)) if file.exists()][:1], []


def _into_parts(path: Path, columns: Mapping[str, Column], rounds: int) -> None:
    """Makes a folder of parts of a merged table, which reads however this is cut short, or of none."""
    parts = _parts(path)
    shutil.rmtree(parts, ignore_errors=True)  # what a merge or this has left
    parts.mkdir()
    if complete := files(path)[0]:
        data = _dataset(complete, columns)
        for number in range(rounds):
            _write(parts / _part(number), data.to_table(filter=ds.field("round") == number))
    if path.exists():
        path.rename(_merged(path))
    parts.rename(path)


def _dataset(complete: Sequence[Path], columns: Mapping[str, Column]) -> ds.Dataset:
    return ds.dataset([str(file) for file in complete], schema=_schema(columns), format="parquet")


def _schema(columns: Mapping[str, Column]) -> pa.Schema:
    return pa.schema([(name, _TYPES[column.kind]) for name, column in columns.items()])


def _write(final: Path, table: pa.Table) -> None:
    with replacing(final) as unfinished:
        pq.write_table(table, unfinished)


def _is_complete(part: Path) -> bool:
    try:
        pq.read_metadata(part)
    except (OSError, ValueError):
        return False
    return True


def _part(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _parts(path: Path) -> Path:
    """Returns where a table's parts are, before they take its place and after a merged file took it."""
    return path.with_name(f".{path.name}.parts")


def _merged(path: Path) -> Path:
    """Returns where a table's parts are merged before the result takes their place."""
    return path.with_name(f".{path.name}.merged")
