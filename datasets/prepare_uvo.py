#!/usr/bin/env python
"""Makes the two COCO instances JSON files on which UVO is scored, from a UVO validation JSON.

    python datasets/prepare_uvo.py --json UVO_VAL.json --uvo DIR [--frames DIR/frames]

UVO's files have COCO's format. Written to DIR/annotations:
  uvo_sparse_val_coco80.json        objects of COCO's 80 classes alone; the classes "other ..." are removed, as U2Seg does
  uvo_sparse_val_cls_agnostic.json  every object, as one class, as CutLER does
Frames that are not below --frames are left out and counted (some videos are gone); the first file is skipped where the source has
only the class "object".
"""

import argparse
from pathlib import Path

from u2seg.data.conversion import require_tree, write_instances
from u2seg.stages import read_json


def prepare(json: Path, uvo: Path, frames: Path) -> list[Path]:
    """Returns the COCO JSON files that it writes.

    Args:
        json: UVO's validation annotations.
        uvo: folder that gets ``annotations``.
        frames: folder of the frames, as the JSON names them.

    Raises:
        DatasetFilesError: no frame is there.
    """
    content = read_json(json)
    images = [image for image in content["images"] if (frames / image["file_name"]).is_file()]
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
    folder, one = uvo / "annotations", [{"id": 1, "name": "object"}]
    written = [write_instances(folder / "uvo_sparse_val_cls_agnostic.json", images, agnostic, one)]
    named = [c for c in content["categories"] if not c["name"].lower().startswith(("other", "object"))]
    if named:
        ids = {category["id"] for category in named}
        of_coco = [annotation for annotation in annotations if annotation["category_id"] in ids]
        written.append(write_instances(folder / "uvo_sparse_val_coco80.json", images, of_coco, named))
    return written


def main() -> None:
    """Runs the conversion and prints the files that it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--uvo", type=Path, required=True)
    parser.add_argument("--frames", type=Path)
    arguments = parser.parse_args()
    for path in prepare(arguments.json, arguments.uvo, arguments.frames or arguments.uvo / "frames"):
        print(path)


if __name__ == "__main__":
    main()
