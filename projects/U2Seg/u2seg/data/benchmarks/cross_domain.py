"""Makes a COCO instances JSON of Clipart1k, Watercolor2k or Comic2k, which have PASCAL VOC's layout.

    u2seg prepare cross_domain clipart --root DIR/clipart
    u2seg prepare cross_domain watercolor --root DIR/watercolor
    u2seg prepare cross_domain comic --root DIR/comic

The root holds Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/{train,test}.txt. Writes annotations/<name>_train_test.json:
train + test together are what CutLER scores. A further list, ``extra``, has labels of whole images and a dummy box of one pixel for
each: it cannot be scored and is not read. That pixels are counted from 1, as in VOC, is taken from those dummies and from the
authors' statement that the format is VOC's; the data were not at hand.

Source: Inoue et al., Cross-Domain Weakly-Supervised Object Detection through Progressive Domain Adaptation, CVPR 2018.
"""

import argparse
from pathlib import Path

from u2seg.data.formats.voc_xml import VOC_CLASSES, write_voc_boxes

DATASETS = {
    f"{registered}_train_test_boxes": {
        "FORMAT": "evaluation_only",
        "IMAGES": f"datasets/{name}/JPEGImages",
        "INSTANCES_JSON": f"datasets/{name}/annotations/{name}_train_test.json",
        "PREPARED_BY": f"u2seg prepare cross_domain {name}",
    }
    for name, registered in (("clipart", "clipart1k"), ("watercolor", "watercolor2k"), ("comic", "comic2k"))
}

BAM_CLASSES = ("bicycle", "bird", "car", "cat", "dog", "person")
CLASSES = {"clipart": VOC_CLASSES, "watercolor": BAM_CLASSES, "comic": BAM_CLASSES}
SPLITS = ("train", "test")


def prepare(name: str, root: Path) -> Path:
    """Returns the COCO JSON that it writes.

    Args:
        name: key of :data:`CLASSES`.
        root: the unpacked archive.

    Raises:
        DatasetFilesError: files are missing.
        ValueError: a file that is not a VOC annotation, or an object of an unknown class.
    """
    output = f"annotations/{name}_{'_'.join(SPLITS)}.json"
    remedy = f"Unpack the authors' {name}.zip (repository cross-domain-detection on GitHub), so that the directory holds these."
    return write_voc_boxes(root, SPLITS, CLASSES[name], output, remedy)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("name", choices=sorted(CLASSES))
    parser.add_argument("--root", type=Path, required=True)


run = prepare
