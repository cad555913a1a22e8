"""Class-agnostic masks as a COCO instances JSON with one category: what the mask stage found, for other tools."""

from pathlib import Path

from pycocotools import mask as mask_utils

from u2seg.data.formats.coco_writer import image_record, write_instances
from u2seg.data.formats.mask_shards import iter_records
from u2seg.utils.files import read_json
from u2seg.utils.manifest import MANIFEST

OBJECT = {"id": 1, "name": "object", "supercategory": "object", "isthing": 1}


def find_mask_directory(labels: str | Path) -> Path:
    """Returns the mask stage's directory.

    Args:
        labels: a label directory, which holds it as ``masks``, or the mask directory itself.

    Raises:
        FileNotFoundError: there are no masks.
    """
    for directory in (Path(labels), Path(labels) / "masks"):
        manifest = directory / MANIFEST
        stage = read_json(manifest).get("stage") if manifest.is_file() else "masks"
        if stage == "masks" and any(directory.glob("shard-*.parquet")):
            return directory
    raise FileNotFoundError(
        f"{labels} holds no masks: expected a label directory with masks/, or a mask directory with shard-*.parquet"
    )


def write_class_agnostic(labels: str | Path, output: str | Path) -> tuple[int, int]:
    """Writes the masks of a label directory as a COCO instances JSON.

    Annotations have a run-length ``segmentation`` and, besides COCO's own entries, the mask's ``score``, 0..1. Images without a mask
    are listed; images that could not be read are not.

    Args:
        labels: a label directory or a mask directory, finished or not.
        output: the JSON file.

    Returns:
        The numbers of images and of masks.

    Raises:
        FileNotFoundError: there are no masks.
    """
    images, annotations = [], []
    for record in iter_records(find_mask_directory(labels)):
        if record.error is not None:
            continue
        images.append(image_record(record.image_id, record.file_name, record.height, record.width))
        for rle, score in zip(record.rles(), record.scores.tolist()):
            annotations.append(
                {
                    "image_id": record.image_id,
                    "category_id": OBJECT["id"],
                    "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
                    "bbox": mask_utils.toBbox(rle).tolist(),
                    "area": int(mask_utils.area(rle)),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    write_instances(output, images, annotations, [OBJECT])
    return len(images), len(annotations)
