"""What the mask stage writes and every later stage reads: one record an image, in Parquet shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from u2seg.data.formats.parquet_files import count_rows, read_rows
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import atomic_path, confined_name
from u2seg.utils.manifest import Failure

_COLUMNS = (
    *("image_id", "file_name", "height", "width", "rle_counts", "scores", "cut_values", "refined_ious", "embeddings"),
    "error",
)


def write_shard(path: str | Path, records: list[ImageMasks]) -> None:
    """Writes records to one Parquet file, whole or not at all; equal records give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "image_id": pa.array([r.image_id for r in records], pa.int64()),
            "file_name": pa.array([r.file_name for r in records], pa.string()),
            "height": pa.array([r.height for r in records], pa.int32()),
            "width": pa.array([r.width for r in records], pa.int32()),
            "rle_counts": pa.array([list(r.rle_counts) for r in records], pa.list_(pa.binary())),
            "scores": pa.array([r.scores.tolist() for r in records], pa.list_(pa.float32())),
            "cut_values": pa.array([r.cut_values.tolist() for r in records], pa.list_(pa.float32())),
            "refined_ious": pa.array([r.refined_ious.tolist() for r in records], pa.list_(pa.float32())),
            "embeddings": pa.array([r.embeddings.ravel().tolist() for r in records], pa.list_(pa.float32())),
            "error": pa.array([r.error for r in records], pa.string()),
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_shard(path: str | Path) -> list[ImageMasks]:
    """Returns the records of one shard, in the order in which they were written.

    Raises:
        u2seg.utils.files.UnsafeNameError: an image's name leads out of the image directory.
        FileNotFoundError, ValueError: see :func:`u2seg.data.formats.parquet_files.read_rows`.
    """
    return [_record(row, path) for row in read_rows(path, list(_COLUMNS))]


def iter_shards(directory: str | Path) -> Iterator[list[ImageMasks]]:
    """Yields the records of a mask directory, shard by shard, ordered by image."""
    for path in mask_shards(directory):
        yield read_shard(path)


def mask_shards(directory: str | Path) -> list[Path]:
    """Returns the paths of a mask directory's shards, in order."""
    return sorted(Path(directory).glob("shard-*.parquet"))


def count_records(path: str | Path) -> int:
    """Returns how many images a shard holds; only the end of the file is read."""
    return count_rows(path)


def iter_records(directory: str | Path) -> Iterator[ImageMasks]:
    """Yields the records of all shards of a mask directory, one shard in memory at a time, ordered by image."""
    for records in iter_shards(directory):
        yield from records


@dataclass(frozen=True)
class ShardSummary:
    """What a mask shard holds, without its masks: the columns that a closing count needs.

    Attributes:
        file_names: of the images, in order.
        errors: of the images, in order; None for one that could be read.
        num_masks: in all images.
    """

    file_names: list[str]
    errors: list[str | None]
    num_masks: int

    @property
    def failures(self) -> list[Failure]:
        """The images that could not be read."""
        return [Failure(name, error) for name, error in zip(self.file_names, self.errors) if error is not None]


def summarize_shard(path: str | Path) -> ShardSummary:
    """Returns what a shard holds; masks and embeddings stay on the disk."""
    # The scores are the smallest column with one entry a mask.
    rows = read_rows(path, ["file_name", "error", "scores"])
    return ShardSummary(
        [row["file_name"] for row in rows], [row["error"] for row in rows], sum(len(row["scores"]) for row in rows)
    )


class ListedImage(NamedTuple):
    """An image of a mask stage, without its masks: its file name, relative to the image directory, and its size in pixels."""

    file_name: str
    height: int
    width: int


def iter_readable_images(directory: str | Path) -> Iterator[ListedImage]:
    """Yields the images that a mask stage could read, in order, one shard's in memory at a time; masks stay on the disk."""
    for path in mask_shards(directory):
        for row in read_rows(path, ["file_name", "height", "width", "error"]):
            if row["error"] is None:
                yield ListedImage(row["file_name"], row["height"], row["width"])


def _record(row: dict, path: str | Path) -> ImageMasks:
    count = len(row["rle_counts"])
    flat = np.asarray(row["embeddings"], np.float32)
    return ImageMasks(
        image_id=row["image_id"],
        file_name=confined_name(row["file_name"], path),
        height=row["height"],
        width=row["width"],
        rle_counts=tuple(row["rle_counts"]),
        scores=np.asarray(row["scores"], np.float32),
        cut_values=np.asarray(row["cut_values"], np.float32),
        refined_ious=np.asarray(row["refined_ious"], np.float32),
        embeddings=flat.reshape(count, -1) if count else np.zeros((0, 0), np.float32),
        error=row["error"],
    )
