"""Makes a COCO instances JSON of LVIS v1's validation set, for class-agnostic scores, in one of two forms.

    u2seg prepare lvis --lvis DIR/lvis_v1_val.json --output DIR/lvis_v1_val_cocofied.json --categories coco
    u2seg prepare lvis --lvis DIR/lvis_v1_val.json --output DIR/lvis_v1_val_coco_format.json

With ``--categories coco`` only objects of COCO's 80 categories are kept, matched by WordNet synset: the set that CutLER calls
``lvis1.0_cocofied_val`` and scores with 100 detections an image. Without it, all 1203 categories, which need LVIS' 300 detections.
The two give different scores; never compare one with the other.

LVIS' own file names no image file and no crowd. Images get their path below COCO's directory from ``coco_url`` (some of LVIS' are
COCO's training images). LVIS does not annotate every object of an image: only AR is comparable with fully annotated sets.
"""

import argparse
from pathlib import Path
from urllib.parse import urlparse

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from u2seg.data.formats.coco_schema import read_instances_json
from u2seg.data.formats.coco_writer import write_instances

DATASETS = {
    "lvis_v1_cocofied_val_boxes_masks": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/coco",
        "INSTANCES_JSON": "datasets/lvis/lvis_v1_val_cocofied.json",
        "PREPARED_BY": "u2seg prepare lvis --categories coco",
    },
    "lvis_v1_val_boxes_masks": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/coco",
        "INSTANCES_JSON": "datasets/lvis/lvis_v1_val_coco_format.json",
        "PREPARED_BY": "u2seg prepare lvis",
    },
}

# WordNet synsets of COCO's categories where they are not "<name>.n.01". LVIS v1 has no frankfurters, so that COCO's hot dogs have no
# object. Source: the LVIS authors' list of COCO's synsets, as Detectron2's prepare_cocofied_lvis.py has it.
_SYNSETS = {
    "fire hydrant": "fireplug.n.01",
    "cow": "beef.n.01",
    "handbag": "bag.n.04",
    "tie": "necktie.n.01",
    "suitcase": "bag.n.06",
    "skis": "ski.n.01",
    "sports ball": "ball.n.06",
    "kite": "kite.n.03",
    "wine glass": "wineglass.n.01",
    "bowl": "bowl.n.03",
    "banana": "banana.n.02",
    "hot dog": "frank.n.02",
    "donut": "doughnut.n.02",
    "cake": "cake.n.03",
    "couch": "sofa.n.01",
    "potted plant": "pot.n.04",
    "toilet": "toilet.n.02",
    "tv": "television_receiver.n.01",
    "mouse": "mouse.n.04",
    "remote": "remote_control.n.01",
    "keyboard": "computer_keyboard.n.01",
    "cell phone": "cellular_telephone.n.01",
    "microwave": "microwave.n.02",
    "toaster": "toaster.n.02",
    "refrigerator": "electric_refrigerator.n.01",
    "teddy bear": "teddy.n.01",
    "hair drier": "hand_blower.n.01",
}


def coco_synsets() -> dict[str, dict]:
    """Returns synset -> COCO's category (``id``, ``name``), for its 80 categories of things."""
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    return {_SYNSETS.get(c["name"], f"{c['name'].replace(' ', '_')}.n.01"): c for c in things}


def prepare(lvis: Path, output: Path, categories: str = "lvis") -> Path:
    """Returns the COCO JSON that it writes.

    Args:
        lvis: LVIS v1's annotations.
        output: the file to write.
        categories: "lvis" for all 1203, "coco" for the objects of COCO's 80.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not LVIS'.
    """
    content = read_instances_json(lvis)
    for kind, rows, key in (("image", content["images"], "coco_url"), ("category", content["categories"], "synset")):
        lacking = next((row["id"] for row in rows if not isinstance(row.get(key), str)), None)
        if lacking is not None:
            raise ValueError(f"{lvis} is not an LVIS v1 file: {kind} {lacking} has no {key}")
    images = [
        {key: image[key] for key in ("id", "height", "width")}
        | {"file_name": "/".join(urlparse(image["coco_url"]).path.split("/")[-2:])}
        for image in content["images"]
    ]
    keys = ("image_id", "category_id", "bbox", "area", "segmentation")
    annotations = [{**{key: a[key] for key in keys}, "iscrowd": 0} for a in content["annotations"]]
    kept = [{"id": category["id"], "name": category["name"]} for category in content["categories"]]
    if categories == "coco":
        by_synset = coco_synsets()
        new = {c["id"]: by_synset[c["synset"]]["id"] for c in content["categories"] if c["synset"] in by_synset}
        annotations = [{**a, "category_id": new[a["category_id"]]} for a in annotations if a["category_id"] in new]
        kept = sorted(by_synset.values(), key=lambda category: category["id"])
    return write_instances(output, images, annotations, kept)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--lvis", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--categories", choices=("lvis", "coco"), default="lvis", help="whose categories (default lvis)"
    )


run = prepare
