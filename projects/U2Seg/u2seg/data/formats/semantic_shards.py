"""What the semantic stage writes and the merge reads: one map of stuff clusters an image, as PNG bytes in Parquet shards."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from u2seg.data.formats.parquet_files import read_rows
from u2seg.utils.files import atomic_path


def write_semantic_shard(path: str | Path, maps: dict[str, np.ndarray]) -> None:
    """Writes maps, whole or not at all.

    Args:
        path: of the shard.
        maps: image's file name -> uint8 (H, W), 0-based cluster ids, 255 where unknown.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "file_name": pa.array(list(maps), pa.string()),
            "png": pa.array([_encode(semantic) for semantic in maps.values()], pa.binary()),
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="none")  # PNG is compressed already


def read_semantic_shard(path: str | Path) -> dict[str, np.ndarray]:
    """Returns what ``write_semantic_shard`` was given.

    Raises:
        FileNotFoundError, ValueError: see :func:`u2seg.data.formats.parquet_files.read_rows`.
    """
    rows = read_rows(path, ["file_name", "png"])
    return {row["file_name"]: np.asarray(Image.open(io.BytesIO(row["png"]))) for row in rows}


def semantic_shard_names(path: str | Path) -> set[str]:
    """Returns the file names of the images whose maps a shard holds."""
    return {row["file_name"] for row in read_rows(path, ["file_name"])}


def iter_semantic_maps(directory: str | Path) -> Iterator[dict[str, np.ndarray]]:
    """Yields the maps of a semantic directory, shard by shard."""
    for path in sorted(Path(directory).glob("shard-*.parquet")):
        yield read_semantic_shard(path)


def _encode(semantic: np.ndarray) -> bytes:
    if semantic.dtype != np.uint8 or semantic.ndim != 2:
        raise ValueError(f"a semantic map must be uint8 (H, W), got {semantic.dtype} {semantic.shape}")
    buffer = io.BytesIO()
    Image.fromarray(semantic).save(buffer, format="PNG")
    return buffer.getvalue()
