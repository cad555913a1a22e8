"""Reading of the Parquet files that pass between stages; an error names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_rows(path: str | Path, columns: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of a Parquet file, each with the given columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or lacks a column.
    """
    import pyarrow.parquet as pq

    with _clear_errors(path):
        table = pq.read_table(path, columns=columns)
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise ValueError(
            f"{path} lacks {', '.join(lacking)}; expected a file that an earlier stage of this program wrote"
        )
    return table.to_pylist()


def count_rows(path: str | Path) -> int:
    """Returns how many rows a Parquet file has; only its end is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged.
    """
    import pyarrow.parquet as pq

    with _clear_errors(path):
        return pq.read_metadata(path).num_rows


@contextmanager
def _clear_errors(path: str | Path) -> Iterator[None]:
    import pyarrow as pa

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is missing: it was deleted or moved after it was made; put it back, or delete {Path(path).parent} to make it anew"
        )
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path} is damaged: {reason}; delete {Path(path).parent} to make it anew") from error
