"""Tables of a run: Parquet files that any reader of Parquet opens."""

import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.objects import Objects


def write_table(run: Objects, key: str, table: pa.Table, *, group_rows: int | None = None) -> None:
    """Write one table; with `group_rows`, one Parquet row group for each so many rows."""
    run.put(key, to_bytes(table, group_rows=group_rows))


def to_bytes(table: pa.Table, *, group_rows: int | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=group_rows)
    return sink.getvalue()


def from_bytes(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    return pq.ParquetFile(io.BytesIO(data)).read(columns=columns)


def read_table(run: Objects, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Raises FileNotFoundError."""
    return pq.ParquetFile(run.reader(key)).read(columns=columns)


def table_schema(run: Objects, key: str) -> pa.Schema:
    """Raises FileNotFoundError."""
    return pq.ParquetFile(run.reader(key)).schema_arrow


def read_group(run: Objects, key: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group: of the catalogue, one shard. Raises FileNotFoundError."""
    return pq.ParquetFile(run.reader(key)).read_row_group(group, columns=columns)


def each_group(run: Objects, key: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups one behind the other, holding one in memory. Raises FileNotFoundError."""
    file = pq.ParquetFile(run.reader(key))
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=columns)


def concatenate(run: Objects, key: str, parts: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write the parts one behind the other, a row group each, holding one in memory; returns the rows."""
    rows = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for part in parts:
                rows += part.num_rows
                if part.num_rows:
                    writer.write_table(part)
        run.put_file(key, path)
    return rows
