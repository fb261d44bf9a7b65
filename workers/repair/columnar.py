"""Inventories that S3 wrote as Parquet or ORC: the same rows as in CSV, by columns.

A file is read by the parts that it consists of (row groups, stripes), and of these only the columns
that are needed, so memory does not grow with the file. pyarrow is an extra, as nothing else takes
it: ``audiofuse[inventory]``.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audiofuse.core.errors import ConfigurationError

BATCH = 4096  # rows that are made Python's at once
# S3's names of columns in these formats, by its names in CSV.
COLUMNS = {
    "Key": "key", "LastModifiedDate": "last_modified_date", "ETag": "e_tag", "Size": "size",
    "IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker",
}  # fmt: skip


def columns_in(schema: str) -> list[str]:
    """Return which columns a manifest's schema names, as they are called in CSV."""
    words = set(re.findall(r"\w+", schema))
    return [name for name, column in COLUMNS.items() if column in words]


def check_readable(format_: str) -> None:
    """Raise ``ConfigurationError`` where pyarrow is missing."""
    try:
        import pyarrow as pa  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            f"{error}, which reads {format_}: pip install 'audiofuse[inventory]', "
            "or have S3 write inventories as CSV"
        ) from error


def rows_of(path: Path, format_: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, by CSV's names; ``LastModifiedDate`` is Unix time in ms.

    Raises ``OSError`` or ``ValueError`` where it is no such file, or has other columns.
    """
    import pyarrow as pa  # noqa: PLC0415 - an extra

    names = [COLUMNS[each] for each in columns]
    try:
        for batch in _parquet(path, names) if format_ == "Parquet" else _orc(path, names):
            values = {}
            for name, column in zip(columns, names, strict=True):
                array = batch.column(column)
                if name == "LastModifiedDate":  # ORC's is of no zone, and means UTC
                    array = array.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
                values[name] = array.to_pylist()
            for row in zip(*values.values(), strict=True):
                yield dict(zip(columns, row, strict=True))
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(str(error)) from error


def _parquet(path: Path, names: list[str]) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - an extra

    with ParquetFile(path) as file:
        yield from file.iter_batches(BATCH, columns=names)


def _orc(path: Path, names: list[str]) -> Iterator[Any]:
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow.orc import ORCFile  # noqa: PLC0415 - an extra

    with pa.OSFile(str(path)) as opened:
        file = ORCFile(opened)
        for number in range(file.nstripes):
            stripe = file.read_stripe(number, columns=names)
            for first in range(0, stripe.num_rows, BATCH):
                yield stripe.slice(first, BATCH)
