"""PASCAL VOC's box annotations, one XML file an image, which other datasets have taken over."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from u2seg.data.formats.coco_writer import box_annotation, image_record, write_instances
from u2seg.data.formats.expected_files import require_tree
from u2seg.utils.files import confined_name
from u2seg.utils.progress import track

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def write_voc_boxes(
    root: str | Path,
    splits: Sequence[str],
    classes: Sequence[str],
    output: str | Path,
    remedy: str,
    *,
    difficult_as_crowd: bool = False,
) -> Path:
    """Returns the COCO instances JSON, without masks, that it writes from a tree of VOC's layout.

    Args:
        root: directory with ``Annotations/*.xml``, ``JPEGImages/*.jpg`` and ``ImageSets/Main/SPLIT.txt``.
        splits: names of the lists in ``ImageSets/Main``, joined; images are numbered from 1 in their order.
        classes: names; the first becomes category 1.
        output: the JSON, relative to ``root``.
        remedy: what to do about missing files.
        difficult_as_crowd: whether objects marked difficult become crowds, which cost nothing; else they are objects like others.

    Raises:
        DatasetFilesError: files are missing.
        ValueError: a file that is not a VOC annotation, or an object of an unknown class.
    """
    root = Path(root)
    lists = {f"ImageSets/Main/{split}.txt": f"names of {split}" for split in splits}
    require_tree(root, {"Annotations/": "XML files", "JPEGImages/": "images", **lists}, remedy)
    names = [confined_name(name, root / path) for path in lists for name in (root / path).read_text().split()]
    images, annotations = [], []
    for image_id, name in enumerate(track(names, "annotations"), 1):
        size, objects = read_voc_xml(root / "Annotations" / f"{name}.xml", classes)
        images.append(image_record(image_id, f"{name}.jpg", *size))
        annotations += [
            box_annotation(image_id, label + 1, box, crowd=difficult_as_crowd and difficult)
            for label, box, difficult in objects
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return write_instances(root / output, images, annotations, categories)


def read_voc_xml(
    path: str | Path, classes: Sequence[str]
) -> tuple[tuple[int, int], list[tuple[int, tuple[float, ...], bool]]]:
    """Returns an image's (height, width), and the objects that one of VOC's XML files lists; their parts are not objects.

    Each object is (index of its class, box as x, y, width, height in pixels counted from 0, whether it is marked difficult).

    Raises:
        ValueError: the file is not a VOC annotation, or holds an object of an unknown class.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = int(root.findtext("size/height", "")), int(root.findtext("size/width", ""))
        rows = [
            (
                item.findtext("name", ""),
                [float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")],
                item.findtext("difficult", "0").strip() == "1",
            )
            for item in root.iter("object")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(
            f"{path} is not a VOC annotation ({error}); expected XML with size (width, height) and objects (name, bndbox); unpack "
            "it again"
        ) from error
    unknown = sorted({name for name, *_ in rows} - set(classes))
    if unknown:
        raise ValueError(f"{path} holds an object of class {unknown[0]!r}; expected one of {', '.join(classes)}")
    # VOC counts pixels from 1 and includes the last one.
    return size, [
        (classes.index(name), (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1), difficult)
        for name, (x0, y0, x1, y1), difficult in rows
    ]
