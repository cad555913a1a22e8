"""Makes the two COCO instances JSON files on which UVO is scored, one from each of UVO v1.0's validation sets.

    u2seg prepare uvo dense --json UVO_video_val_dense_with_label.json --uvo DIR [--frames DIR/uvo_videos_dense_frames]
    u2seg prepare uvo sparse --json UVO_frame_val.json --uvo DIR [--frames DIR/uvo_videos_sparse_frames]

``dense``: the videos whose every frame is annotated, the only ones with class labels. The JSON has the video format of
YouTube-VIS: a video lists ``file_names``, an object has ``segmentations``, one a frame, None where it is not seen. Every frame
becomes an image, every mask an object. Objects of COCO's 80 classes alone are kept; the classes "other ..." are removed, as U2Seg
does. Writes DIR/annotations/uvo_dense_val_coco80.json.

``sparse``: single frames of many videos, in COCO's format, without classes: every object is one, as CutLER scores. Writes
DIR/annotations/uvo_sparse_val_cls_agnostic.json.

Frames that are not below --frames are left out and counted (some videos are gone).

Source: Wang et al., Unidentified Video Objects, ICCV 2021, and its version 1.0.
"""

import argparse
from pathlib import Path

from pycocotools import mask as mask_utils

from u2seg.data.formats.coco_schema import read_instances_json, read_video_json
from u2seg.data.formats.coco_writer import image_record, write_instances
from u2seg.data.formats.expected_files import require_tree
from u2seg.structures.coco_segmentation import segmentation_rle
from u2seg.utils.files import confined_path

FRAMES = {"dense": "uvo_videos_dense_frames", "sparse": "uvo_videos_sparse_frames"}
OUTPUTS = {"dense": "uvo_dense_val_coco80.json", "sparse": "uvo_sparse_val_cls_agnostic.json"}
DATASETS = {
    name: {
        "FORMAT": "evaluation_only",
        "IMAGES": f"datasets/uvo/{FRAMES[kind]}",
        "INSTANCES_JSON": f"datasets/uvo/annotations/{OUTPUTS[kind]}",
        "PREPARED_BY": f"u2seg prepare uvo {kind}",
    }
    for name, kind in (("uvo_dense_val", "dense"), ("uvo_sparse_val_cls_agnostic", "sparse"))
}
DOWNLOAD = "Extract UVO's frames (sites.google.com/view/unidentified-video-object)."


def frames_of_videos(content: dict) -> tuple[list[dict], list[dict]]:
    """Returns COCO's ``images`` and ``annotations`` of a JSON in video format, images numbered from 1 in the videos' order.

    Boxes and areas are taken from the masks, since not every file has them.

    Args:
        content: from :func:`~u2seg.data.formats.coco_schema.read_video_json`.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    places: dict[tuple[int, int], dict] = {}
    for video in content["videos"]:
        for frame, name in enumerate(video["file_names"]):
            images.append(image_record(len(images) + 1, name, video["height"], video["width"]))
            places[video["id"], frame] = images[-1]
    for track in content["annotations"]:
        for frame, segmentation in enumerate(track["segmentations"]):
            if segmentation:
                annotations.append(_annotation(places[track["video_id"], frame], track, segmentation))
    return images, annotations


def _annotation(image: dict, track: dict, segmentation: dict | list) -> dict:
    rle = segmentation_rle(segmentation, (image["height"], image["width"]))
    if isinstance(rle["counts"], bytes):
        rle["counts"] = rle["counts"].decode("ascii")
    return {
        "image_id": image["id"],
        "category_id": track["category_id"],
        "iscrowd": track.get("iscrowd", 0),
        "segmentation": rle,
        "area": float(mask_utils.area(rle)),
        "bbox": mask_utils.toBbox(rle).tolist(),
    }


def prepare_dense(json: Path, uvo: Path, frames: Path) -> Path:
    """Returns the COCO JSON of the dense set that it writes: objects of COCO's 80 classes.

    Args:
        json: ``UVO_video_val_dense_with_label.json``.
        uvo: directory that gets ``annotations``.
        frames: directory of the frames, as the JSON names them.

    Raises:
        DatasetFilesError: no frame is there.
        ValueError: the JSON has another format, or only the class "object".
    """
    content = read_video_json(json)
    images, annotations = frames_of_videos(content)
    named = [c for c in content["categories"] if not c["name"].lower().startswith(("other", "object"))]
    if not named:
        raise ValueError(
            f"{json} has no class but {', '.join(c['name'] for c in content['categories'])}: it is the file without labels; expected "
            "UVO_video_val_dense_with_label.json"
        )
    ids = {category["id"] for category in named}
    of_coco = [annotation for annotation in annotations if annotation["category_id"] in ids]
    return _write(uvo / "annotations" / OUTPUTS["dense"], images, of_coco, named, frames, json)


def prepare_sparse(json: Path, uvo: Path, frames: Path) -> Path:
    """Returns the COCO JSON of the sparse set that it writes: every object, as one class.

    Args:
        json: ``UVO_frame_val.json``.
        uvo: directory that gets ``annotations``.
        frames: directory of the frames, as the JSON names them.

    Raises:
        DatasetFilesError: no frame is there.
        ValueError: the JSON is not in COCO's format.
    """
    content = read_instances_json(json)
    agnostic = [{**a, "category_id": 1, "iscrowd": a.get("iscrowd", 0)} for a in content["annotations"]]
    one = [{"id": 1, "name": "object"}]
    return _write(uvo / "annotations" / OUTPUTS["sparse"], content["images"], agnostic, one, frames, json)


def _write(
    path: Path, images: list[dict], annotations: list[dict], categories: list[dict], frames: Path, json: Path
) -> Path:
    """Writes the images of ``json`` that are there, with their annotations."""
    there = [image for image in images if confined_path(frames, image["file_name"], json).is_file()]
    if not there:
        first = images[0]["file_name"] if images else "VIDEO/FRAME.png"
        require_tree(frames, {first: "the first of the frames"}, DOWNLOAD)
    print(f"{len(there)} of {len(images)} frames found below {frames}")
    kept = {image["id"] for image in there}
    return write_instances(path, there, [a for a in annotations if a["image_id"] in kept], categories)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("kind", choices=sorted(FRAMES))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--uvo", type=Path, required=True)
    parser.add_argument("--frames", type=Path)


def run(kind: str, json: Path, uvo: Path, frames: Path | None) -> Path:
    """Returns the file that :func:`prepare_dense` or :func:`prepare_sparse` writes; frames are looked for below ``uvo``."""
    return {"dense": prepare_dense, "sparse": prepare_sparse}[kind](json, uvo, frames or uvo / FRAMES[kind])
