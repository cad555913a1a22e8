"""Makes the two COCO instances JSON files on which UVO is scored, from a UVO validation JSON.

    u2seg prepare uvo --json UVO_VAL.json --uvo DIR [--frames DIR/frames]

UVO's files have COCO's format. Written to DIR/annotations:
  uvo_sparse_val_coco80.json        objects of COCO's 80 classes alone; the classes "other ..." are removed, as U2Seg does
  uvo_sparse_val_cls_agnostic.json  every object, as one class, as CutLER does
Frames that are not below --frames are left out and counted (some videos are gone); the first file is skipped where the source has
only the class "object".
"""

import argparse
from pathlib import Path

from u2seg.data.formats.coco_writer import require_tree, write_instances
from u2seg.utils.files import confined_path, read_json

DATASETS = {
    name: {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/uvo/frames",
        "INSTANCES_JSON": f"datasets/uvo/annotations/{file_name}",
        "PREPARED_BY": "u2seg prepare uvo",
    }
    for name, file_name in (
        ("uvo_sparse_val", "uvo_sparse_val_coco80.json"),
        ("uvo_sparse_val_cls_agnostic", "uvo_sparse_val_cls_agnostic.json"),
    )
}


def prepare(json: Path, uvo: Path, frames: Path) -> list[Path]:
    """Returns the COCO JSON files that it writes.

    Args:
        json: UVO's validation annotations.
        uvo: directory that gets ``annotations``.
        frames: directory of the frames, as the JSON names them.

    Raises:
        DatasetFilesError: no frame is there.
    """
    content = read_json(json)
    images = [image for image in content["images"] if confined_path(frames, image["file_name"], json).is_file()]
    if not images:
        first = content["images"][0]["file_name"] if content["images"] else "VIDEO/FRAME.png"
        require_tree(
            frames,
            {first: "the first of the frames"},
            "Extract UVO's frames (sites.google.com/view/unidentified-video-object).",
        )
    kept = {image["id"] for image in images}
    print(f"{len(images)} of {len(content['images'])} frames found below {frames}")
    annotations = [{**a, "iscrowd": a.get("iscrowd", 0)} for a in content["annotations"] if a["image_id"] in kept]
    agnostic = [{**annotation, "category_id": 1} for annotation in annotations]
    directory, one = uvo / "annotations", [{"id": 1, "name": "object"}]
    written = [write_instances(directory / "uvo_sparse_val_cls_agnostic.json", images, agnostic, one)]
    named = [c for c in content["categories"] if not c["name"].lower().startswith(("other", "object"))]
    if named:
        ids = {category["id"] for category in named}
        of_coco = [annotation for annotation in annotations if annotation["category_id"] in ids]
        written.append(write_instances(directory / "uvo_sparse_val_coco80.json", images, of_coco, named))
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--uvo", type=Path, required=True)
    parser.add_argument("--frames", type=Path)


def run(json: Path, uvo: Path, frames: Path | None) -> list[Path]:
    """Returns the files that :func:`prepare` writes; frames are looked for in ``uvo/frames`` unless they are named."""
    return prepare(json, uvo, frames or uvo / "frames")
