"""The data sets that this project is scored on without training on them, under ``$DETECTRON2_DATASETS`` (default ``datasets``).

Registering opens no file; files are checked when a set is loaded or scored. ``datasets/README.md`` shows every tree and which
script makes it. Sets that Detectron2 registers itself (``coco_2017_val``, ``coco_2017_val_panoptic_separated``) are scored by the
same evaluator.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from u2seg.data.conversion import require_tree
from u2seg.stages import read_json

EVALUATOR_TYPE = "u2seg_panoptic"  # name in u2seg.evaluation's EVALUATOR_REGISTRY


@dataclass(frozen=True)
class Benchmark:
    """Files of one data set, relative to the folder of all data sets; None where it has none of that kind.

    Attributes:
        images: folder of the pictures.
        instances: COCO instances JSON.
        panoptic: COCO panoptic JSON.
        panoptic_folder: folder of its PNGs.
        prepared_by: what makes the annotation files.
    """

    images: str
    instances: str | None
    panoptic: str | None = None
    panoptic_folder: str | None = None
    prepared_by: str = "They are COCO's own files (cocodataset.org)."


def _panoptic(root: str, split: str, images: str, script: str) -> Benchmark:
    annotations = f"{root}/annotations"
    return Benchmark(
        images,
        f"{annotations}/instances_{split}.json",
        f"{annotations}/panoptic_{split}.json",
        f"{root}/panoptic_{split}",
        f"Make the annotation files with datasets/{script}.",
    )


def _cross_domain(name: str) -> Benchmark:
    return Benchmark(
        f"{name}/JPEGImages",
        f"{name}/annotations/{name}_train_test.json",
        prepared_by=f"Make the annotation file with datasets/prepare_cross_domain.py {name}.",
    )


BENCHMARKS = {
    "coco_2017_val_universal": Benchmark(
        "coco/val2017",
        "coco/annotations/instances_val2017.json",
        "coco/annotations/panoptic_val2017.json",
        "coco/panoptic_val2017",
    ),
    "cocostuff27_val": Benchmark(
        "cocostuff27/val",
        None,
        "cocostuff27/annotations/panoptic_val.json",
        "cocostuff27/panoptic_val",
        "Make them with datasets/prepare_cocostuff27.py.",
    ),
    "uvo_sparse_val": Benchmark(
        "uvo/frames",
        "uvo/annotations/uvo_sparse_val_coco80.json",
        prepared_by="Make the annotation file with datasets/prepare_uvo.py.",
    ),
    "uvo_sparse_val_cls_agnostic": Benchmark(
        "uvo/frames",
        "uvo/annotations/uvo_sparse_val_cls_agnostic.json",
        prepared_by="Make the annotation file with datasets/prepare_uvo.py.",
    ),
    "voc_2007_trainval_test_boxes": Benchmark(
        "VOC2007/JPEGImages",
        "VOC2007/annotations/voc_2007_trainval_test.json",
        prepared_by="Make the annotation file with datasets/prepare_voc.py boxes.",
    ),
    "voc_2012_val_panoptic": _panoptic("VOC2012", "val", "VOC2012/JPEGImages", "prepare_voc.py segments"),
    "cityscapes_val_panoptic19": _panoptic(
        "cityscapes/panoptic19", "val", "cityscapes/leftImg8bit/val", "prepare_cityscapes.py --classes 19"
    ),
    "cityscapes_val_panoptic27": _panoptic(
        "cityscapes/panoptic27", "val", "cityscapes/leftImg8bit/val", "prepare_cityscapes.py --classes 27"
    ),
    "kitti_trainval_boxes": Benchmark(
        "kitti/training/image_2",
        "kitti/annotations/kitti_trainval.json",
        prepared_by="Make the annotation file with datasets/prepare_kitti.py.",
    ),
    "lvis_v1_val_boxes_masks": Benchmark(
        "coco",
        "lvis/lvis_v1_val_coco_format.json",
        prepared_by="Make the annotation file with datasets/prepare_lvis.py.",
    ),
    "objects365_v2_val_boxes": Benchmark(
        "objects365/val",
        "objects365/annotations/objects365_v2_val.json",
        prepared_by="Make the annotation file with datasets/prepare_objects365.py.",
    ),
    "clipart1k_train_test_boxes": _cross_domain("clipart"),
    "watercolor2k_train_test_boxes": _cross_domain("watercolor"),
    "comic2k_train_test_boxes": _cross_domain("comic"),
    "openimages_v6_val_boxes": Benchmark(
        "openimages/validation",
        "openimages/annotations/openimages_v6_val.json",
        prepared_by="Make the annotation file with datasets/prepare_openimages.py.",
    ),
}


def register_benchmarks() -> None:
    """Makes every set of :data:`BENCHMARKS` known to Detectron2's catalogues; those known already stay as they are."""
    known = set(DatasetCatalog.list())
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    for name, benchmark in BENCHMARKS.items():
        if name not in known:
            DatasetCatalog.register(name, functools.partial(load_benchmark, name, root))
            paths = {
                "image_root": benchmark.images,
                "json_file": benchmark.instances,
                "panoptic_json": benchmark.panoptic,
                "panoptic_root": benchmark.panoptic_folder,
            }
            set_paths = {key: str(root / path) for key, path in paths.items() if path}
            MetadataCatalog.get(name).set(evaluator_type=EVALUATOR_TYPE, benchmark_root=str(root), **set_paths)


def load_benchmark(name: str, root: str | Path) -> list[dict]:
    """Returns a set's pictures in Detectron2's standard form, without annotations: nothing may be trained on them.

    Args:
        name: key of :data:`BENCHMARKS`.
        root: folder of all data sets.

    Raises:
        DatasetFilesError: files are missing; the message shows the expected tree and names the script that makes it.
    """
    require_benchmark(name, root)
    benchmark = BENCHMARKS[name]
    images = read_json(Path(root) / (benchmark.instances or benchmark.panoptic))["images"]
    folder = Path(root) / benchmark.images
    return [
        {
            "file_name": str(folder / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
        }
        for image in sorted(images, key=lambda image: image["id"])
    ]


def require_benchmark(name: str, root: str | Path) -> None:
    """Checks that a set's files are there; does nothing for names that are not in :data:`BENCHMARKS`.

    Raises:
        DatasetFilesError: as :func:`load_benchmark`.
    """
    if name not in BENCHMARKS:
        return
    benchmark = BENCHMARKS[name]
    expected = {f"{benchmark.images}/": "pictures"}
    if benchmark.instances:
        expected[benchmark.instances] = "COCO instance annotations"
    if benchmark.panoptic:
        expected |= {benchmark.panoptic: "COCO panoptic annotations", f"{benchmark.panoptic_folder}/": "panoptic PNGs"}
    remedy = "See datasets/README.md; $DETECTRON2_DATASETS names the folder."
    require_tree(root, expected, f"Data set {name!r} needs them. {benchmark.prepared_by} {remedy}")


register_benchmarks()
