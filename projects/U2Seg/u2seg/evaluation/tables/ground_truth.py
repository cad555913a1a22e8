"""Ground truth in COCO's formats, one image at a time, in joint category labels."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.data.formats.coco_schema import image_sizes, read_instances_json, read_panoptic_json
from u2seg.evaluation.tables.image_tables import MapSegment, Regions
from u2seg.structures.coco_segmentation import segmentation_mask
from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import confined_path


def joint_labels(categories: list[dict], space: LabelSpace) -> dict[int, int]:
    """Returns dataset id -> joint category label for COCO ``categories``; without ``isthing`` all are things.

    A space with a single thing class is class-agnostic: all things are that class.

    Raises:
        ValueError: a category that is not in ``space``.
    """
    agnostic = space.num_things == 1
    known = {*space.stuff_dataset_ids, *space.thing_dataset_ids}
    foreign = [c["id"] for c in categories if c["id"] not in known and not (agnostic and c.get("isthing", 1))]
    if foreign:
        raise ValueError(
            f"the annotation file has categories with ids {foreign[:10]}, which the dataset's classes lack; its panoptic and "
            "instance files must have the same categories"
        )
    stuff = {identifier: space.num_things + index for index, identifier in enumerate(space.stuff_dataset_ids)}
    labels = {}
    for category in categories:
        identifier = category["id"]
        if category.get("isthing", 1):
            labels[identifier] = 0 if agnostic else space.thing_contiguous_ids[identifier]
        else:
            labels[identifier] = stuff[identifier]
    return labels


class PanopticGroundTruth:
    """The panoptic ground truth of a dataset: COCO panoptic JSON and PNGs."""

    def __init__(self, panoptic_json: str | Path, directory: str | Path, space: LabelSpace | None = None):
        """Reads the JSON.

        Args:
            panoptic_json: COCO panoptic JSON.
            directory: of its PNGs.
            space: the classes; None takes them from the JSON.

        Raises:
            ValueError: the file is no COCO panoptic JSON; the message names the row and the field.
        """
        content = read_panoptic_json(panoptic_json)
        self.path = Path(panoptic_json)
        self.space = space or LabelSpace.of_coco_categories(content["categories"])
        self.annotations = {annotation["image_id"]: annotation for annotation in content["annotations"]}
        self._labels = joint_labels(content["categories"], self.space)
        self._directory = Path(directory)

    def read(self, image_id: int) -> tuple[np.ndarray, list[MapSegment]]:
        """Returns the map, int32 (height, width), and the segments of one image.

        Raises:
            ValueError: the JSON has no annotation for it, or its PNG cannot be read.
        """
        if image_id not in self.annotations:
            raise ValueError(
                f"{self.path} has no annotation for image {image_id}; it has {len(self.annotations)} others"
            )
        annotation = self.annotations[image_id]
        segments = [
            MapSegment(
                id=info["id"],
                label=self._labels[info["category_id"]],
                score=float(info.get("score", 1.0)),
                crowd=bool(info.get("iscrowd", 0)),
                area=info.get("area"),
            )
            for info in annotation["segments_info"]
        ]
        return read_panoptic_png(confined_path(self._directory, annotation["file_name"], self.path)), segments


class InstanceGroundTruth:
    """The instance ground truth of a dataset: COCO instances JSON."""

    def __init__(self, json_file: str | Path, space: LabelSpace | None = None):
        """Reads the JSON.

        Args:
            json_file: COCO instances JSON.
            space: the classes; None takes the JSON's categories as things.

        Raises:
            ValueError: the file is no COCO instances JSON, or some of its annotations have masks and others do not; the message
                names the row and the field.
        """
        content = read_instances_json(json_file)
        self.path = Path(json_file)
        things = [{**category, "isthing": 1} for category in content["categories"]]
        self.space = space or LabelSpace.of_coco_categories(things)
        labels = joint_labels(things, self.space)
        self.sizes = image_sizes(json_file, content)
        self._by_image = defaultdict(list)
        # ``ignore`` is not looked at: pycocotools overwrites it with ``iscrowd``.
        for annotation in content["annotations"]:
            self._by_image[annotation["image_id"]].append((labels[annotation["category_id"]], annotation))
        with_mask = [bool(annotation.get("segmentation")) for annotation in content["annotations"]]
        self.has_masks = any(with_mask)
        if self.has_masks and not all(with_mask):
            raise ValueError(
                f"{json_file}: annotations[{with_mask.index(False)}] has no segmentation, annotations[{with_mask.index(True)}] has one; "
                "either all annotations need a mask, or none may have one"
            )

    def read(self, image_id: int) -> Regions:
        """Returns the instances of one image; none where the JSON lists none.

        Raises:
            ValueError: the JSON does not list the image.
        """
        if image_id not in self.sizes:
            raise ValueError(f"{self.path} has no image {image_id}; it has {len(self.sizes)} others")
        rows = self._by_image.get(image_id, [])
        height, width = self.sizes[image_id]
        masks = None
        if self.has_masks:
            decoded = [segmentation_mask(annotation["segmentation"], (height, width)) for _, annotation in rows]
            masks = np.array(decoded, bool).reshape(-1, height, width)
        return Regions(
            labels=np.array([label for label, _ in rows], np.int64),
            boxes_xywh=np.array([annotation["bbox"] for _, annotation in rows], np.float64).reshape(-1, 4),
            masks=masks,
            crowds=np.array([bool(annotation.get("iscrowd", 0)) for _, annotation in rows], bool),
            areas=np.array([annotation["area"] for _, annotation in rows], np.float64),
        )
