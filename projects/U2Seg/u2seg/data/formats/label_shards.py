"""Panoptic labels in Parquet shards: what the panoptic stage writes for each group of images, and what training may read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from u2seg.data.formats.parquet_files import read_rows
from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import atomic_path, read_json
from u2seg.utils.image_io import tar_place
from u2seg.utils.manifest import MANIFEST, is_complete, stage_settings

_COLUMNS = (
    *("image_id", "file_name", "height", "width", "png_name", "segments", "instances", "void_share"),
    "png_places",
)
# First byte and size, in the tar beside the shard, of an image's panoptic PNG and of its stuff PNG.
PngPlaces = tuple[int, int, int, int]


@dataclass(frozen=True)
class ImageLabels:
    """The labels of one image, as rows of COCO's files.

    Attributes:
        image: ``id``, ``file_name``, ``height`` and ``width``.
        panoptic: the annotation of a panoptic JSON.
        instances: the annotations of an instances JSON, without ``id``, which numbers those of all images.
        void_share: share of pixels, 0..1, that belong to no segment.
        png_places: where its PNGs lie in a tar; None where they are files.
    """

    image: dict[str, Any]
    panoptic: dict[str, Any]
    instances: list[dict[str, Any]] = field(default_factory=list)
    void_share: float = 0.0
    png_places: PngPlaces | None = None


def write_label_shard(path: str | Path, labels: Sequence[ImageLabels]) -> None:
    """Writes the labels of a group of images to one Parquet file, whole or not at all; equal labels give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    segment = pa.struct({"id": pa.int32(), "category_id": pa.int32(), "area": pa.int64(), "bbox": pa.list_(pa.int32())})
    instance = pa.struct(
        {
            "category_id": pa.int32(),
            "counts": pa.binary(),
            "area": pa.int64(),
            "bbox": pa.list_(pa.float64()),
            "score": pa.float64(),
        }
    )
    instances = [
        [{**row, "counts": row["segmentation"]["counts"].encode("ascii")} for row in one.instances] for one in labels
    ]
    table = pa.table(
        {
            "image_id": pa.array([one.image["id"] for one in labels], pa.int64()),
            "file_name": pa.array([one.image["file_name"] for one in labels], pa.string()),
            "height": pa.array([one.image["height"] for one in labels], pa.int32()),
            "width": pa.array([one.image["width"] for one in labels], pa.int32()),
            "png_name": pa.array([one.panoptic["file_name"] for one in labels], pa.string()),
            "segments": pa.array([one.panoptic["segments_info"] for one in labels], pa.list_(segment)),
            "instances": pa.array(instances, pa.list_(instance)),
            "void_share": pa.array([one.void_share for one in labels], pa.float64()),
            "png_places": pa.array([one.png_places for one in labels], pa.list_(pa.int64())),
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_label_shard(path: str | Path) -> list[ImageLabels]:
    """Returns what :func:`write_label_shard` was given.

    Raises:
        FileNotFoundError, ValueError: see :func:`u2seg.data.formats.parquet_files.read_rows`.
    """
    return [_labels(row) for row in read_rows(path, list(_COLUMNS))]


def iter_labels(shards: Sequence[Path]) -> Iterator[ImageLabels]:
    """Yields the labels of all images of some shards, one shard in memory at a time."""
    for path in shards:
        yield from read_label_shard(path)


def png_tar(shard: Path) -> Path:
    """Returns the path of the tar that holds the PNGs of a shard."""
    return shard.with_suffix(".tar")


def png_places(shard: Path, labels: ImageLabels) -> tuple[str, str] | None:
    """Returns the paths by which ``read_stored_array`` reads an image's panoptic and stuff PNG; None where they are files."""
    if labels.png_places is None:
        return None
    name, (start, size, stuff_start, stuff_size) = labels.panoptic["file_name"], labels.png_places
    tar = png_tar(shard)
    return tar_place(tar, start, size, name), tar_place(tar, stuff_start, stuff_size, name)


def label_shards(directory: str | Path) -> list[Path]:
    """Returns the shards of a finished panoptic stage, in order; none where its labels are COCO's files, or not finished."""
    directory = Path(directory)
    if not is_complete(directory) or read_json(directory / MANIFEST).get("stage") != "panoptic":
        return []
    return sorted(directory.glob("shard-*.parquet"))


def label_space_of_shards(directory: str | Path) -> LabelSpace:
    """Returns the classes of a panoptic stage's labels, which its manifest counts."""
    settings = stage_settings(directory)
    return LabelSpace.of_clusters(settings["things"], settings["stuff"])


def _labels(row: dict[str, Any]) -> ImageLabels:
    image_id, size = row["image_id"], [row["height"], row["width"]]
    return ImageLabels(
        image={"id": image_id, "file_name": row["file_name"], "height": row["height"], "width": row["width"]},
        panoptic={
            "image_id": image_id,
            "file_name": row["png_name"],
            "segments_info": [{**segment, "iscrowd": 0} for segment in row["segments"]],
        },
        instances=[
            {
                "image_id": image_id,
                "category_id": instance["category_id"],
                "segmentation": {"size": size, "counts": instance["counts"].decode("ascii")},
                "area": instance["area"],
                "bbox": instance["bbox"],
                "iscrowd": 0,
                "score": instance["score"],
            }
            for instance in row["instances"]
        ],
        void_share=row["void_share"],
        png_places=row["png_places"] and tuple(row["png_places"]),
    )
