"""Reading of the Parquet files that pass between stages; an error names the file."""

from pathlib import Path
from typing import Any


def read_rows(path: str | Path, columns: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of a Parquet file, each with the given columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is missing: it was deleted or moved after it was made; put it back, or delete {Path(path).parent} to make it anew"
        )
    try:
        table = pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path} is damaged: {reason}; delete {Path(path).parent} to make it anew") from error
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise ValueError(
            f"{path} lacks {', '.join(lacking)}; expected a file that an earlier stage of this program wrote"
        )
    return table.to_pylist()
