"""The dataset mapper of panoptic training: from a dataset dict to what Detectron2's models take."""

from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from u2seg.data.copy_paste import CopyPaste, build_copy_paste
from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.data.training_sample import Sample, boxes_of_masks, segment_targets, to_instances
from u2seg.structures import IGNORE_LABEL, semantic_target
from u2seg.structures.coco_segmentation import segmentation_mask
from u2seg.utils.image_io import ImageReadError, read_named_rgb, read_stored_array
from u2seg.utils.registry import NamedRegistry, get_registered
from u2seg.utils.seeding import seed_random

DATASET_MAPPER_REGISTRY = NamedRegistry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Dataset mappers, chosen by ``INPUT.DATASET_MAPPER_NAME``; an entry is called as ``(cfg, is_train)``
and returns a function from a dataset dict to a training or test sample, as Detectron2's
``DatasetMapper`` does.
"""


@DATASET_MAPPER_REGISTRY.register()
class PanopticMapper:
    """Maps a dataset dict to a sample of image, instances and semantic target.

    The output equals stock ``DatasetMapper``'s with ``MASK_FORMAT: bitmask``, but for boxes given
    as integers, which that one truncates to whole pixels when it scales them. Beyond it: images are
    read by :func:`u2seg.utils.image_io.read_image_rgb`, so that training sees exactly the pixels
    that label making saw; the semantic target is derived from the panoptic PNG where no stuff PNG
    exists; and copy-paste may add instances of a second image.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        recompute_boxes: bool = False,
        copy_paste: CopyPaste | None = None,
        num_semantic: int = IGNORE_LABEL,
    ):
        """Keeps the settings.

        Args:
            is_train: whether targets are wanted beside the image.
            augmentations: applied in order to image and targets.
            image_format: "RGB" or "BGR", the order of the channels in the output.
            recompute_boxes: draw boxes tight around the masks: a crop leaves less of an object than
                of its box.
            copy_paste: pastes instances of the dict's ``copy_paste_source``; None: never.
            num_semantic: values that a semantic target may have, 0..num_semantic-1, beside 255.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT must be RGB or BGR, got {image_format!r}")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.recompute_boxes = recompute_boxes
        self.copy_paste = copy_paste
        self.num_semantic = num_semantic

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Returns the constructor's arguments from a configuration."""
        if cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE != IGNORE_LABEL:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}; expected {IGNORE_LABEL}, which the targets of "
                "INPUT.DATASET_MAPPER_NAME PanopticMapper hold where nothing is known"
            )
        paste = is_train and cfg.INPUT.COPY_PASTE.ENABLED
        crop = is_train and cfg.INPUT.CROP.ENABLED
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if crop:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "recompute_boxes": crop,
            "copy_paste": build_copy_paste(cfg) if paste else None,
            "num_semantic": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Returns the dict with ``image`` (uint8 (3, H, W)) and, in training, ``instances`` and ``sem_seg`` (int64 (H, W)).

        The dict given stays as it is. Its key ``copy_paste_source``, a second dataset dict, is what
        copy-paste draws on; where that one has an ``augmentation_seed``, its augmentation draws
        from it.

        Raises:
            ImageReadError: the image cannot be read, or has not the annotated size; the message names it.
            ValueError: a label file cannot be read or does not fit the image; the message names it.
        """
        kept = {key: value for key, value in dataset_dict.items() if key not in _CONSUMED}
        if not self.is_train:
            image = self._read(dataset_dict)
            kept.setdefault("height", image.shape[0])
            kept.setdefault("width", image.shape[1])
            augmented = T.AugInput(image)
            self.augmentations(augmented)
            return {**kept, "image": _to_tensor(augmented.image)}
        sample = self.load(dataset_dict)
        source = dataset_dict.get("copy_paste_source")
        if self.copy_paste is not None and source is not None:
            # A function, since most of the time's cost is in decoding an image that may not be
            # pasted from.
            sample = self.copy_paste(sample, lambda: self._load_source(source))
        packed = {**kept, "image": _to_tensor(sample.image), "instances": to_instances(sample)}
        if sample.sem_seg is not None:
            packed["sem_seg"] = torch.from_numpy(sample.sem_seg.astype(np.int64))
        return packed

    def load(self, dataset_dict: dict) -> Sample:
        """Returns an image and its targets, decoded and augmented."""
        image = self._read(dataset_dict)
        sem_seg = read_semantic_target(dataset_dict)
        if sem_seg is not None:
            self._require_classes(sem_seg, dataset_dict)
        augmented = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(augmented)
        annotations = [a for a in dataset_dict.get("annotations", ()) if not a.get("iscrowd", 0)]
        size = augmented.image.shape[:2]
        drawn = [segmentation_mask(annotation["segmentation"], image.shape[:2]) for annotation in annotations]
        moved = [transforms.apply_segmentation(mask) for mask in drawn]
        masks = np.stack(moved).astype(bool) if moved else np.zeros((0, *size), bool)
        return Sample(
            image=augmented.image,
            masks=masks,
            boxes_xyxy=boxes_of_masks(masks) if self.recompute_boxes else _boxes(annotations, transforms, size),
            classes=np.array([a["category_id"] for a in annotations], np.int64),
            sem_seg=augmented.sem_seg,
            scores=_scores(annotations),
        )

    def _require_classes(self, sem_seg: np.ndarray, dataset_dict: dict) -> None:
        """Refuses values that no class has: the loss would end in an error that names no file, on a GPU in one that ends CUDA."""
        # One more makes 255 the smallest value, so that the largest of the others is found without a copy of them.
        largest = int((sem_seg + np.uint8(1)).max(initial=0)) - 1
        if largest >= self.num_semantic:
            path = dataset_dict.get("sem_seg_file_name", dataset_dict.get("pan_seg_file_name"))
            raise ValueError(
                f"{path} holds the id {largest}; expected 0..{self.num_semantic - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES - 1) and "
                f"{IGNORE_LABEL} where nothing is known"
            )

    def _load_source(self, source: dict) -> Sample:
        if "augmentation_seed" in source:
            seed_random(source["augmentation_seed"])
        return self.load(source)

    def _read(self, dataset_dict: dict) -> np.ndarray:
        path = dataset_dict["file_name"]
        image = read_named_rgb(path)
        wanted = dataset_dict.get("height", image.shape[0]), dataset_dict.get("width", image.shape[1])
        if image.shape[:2] != wanted:
            raise ImageReadError(
                f"{path} has (height, width) {image.shape[:2]}, its annotation says {wanted}; the labels were made from another image"
            )
        return image if self.image_format == "RGB" else np.ascontiguousarray(image[:, :, ::-1])


# What training's targets are made from, of no use behind the mapper and costly to send between
# processes.
_CONSUMED = ("annotations", "sem_seg_file_name", "pan_seg_file_name", "segments_info", "copy_paste_source")


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
    """Returns the dataset mapper that the configuration names.

    Raises:
        UnknownNameError: no mapper of that name; the message lists those that are registered.
    """
    mapper = get_registered(DATASET_MAPPER_REGISTRY, cfg.INPUT.DATASET_MAPPER_NAME, "INPUT.DATASET_MAPPER_NAME")
    return mapper(cfg, is_train)


def read_semantic_target(dataset_dict: dict) -> np.ndarray | None:
    """Returns the semantic target of an image, uint8 (H, W), from its stuff PNG or its panoptic PNG; None where it has neither.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it cannot be read, or has another size than the image; the message names it.
    """
    if "sem_seg_file_name" in dataset_dict:
        path = dataset_dict["sem_seg_file_name"]
        target = read_stored_array(path)
        if target.ndim != 2 or target.dtype != np.uint8:
            raise ValueError(f"{path} must be an 8-bit map of ids, got {target.dtype} of shape {target.shape}")
    elif "pan_seg_file_name" in dataset_dict:
        path = dataset_dict["pan_seg_file_name"]
        target = semantic_target(read_panoptic_png(path), segment_targets(dataset_dict["segments_info"]))
    else:
        return None
    wanted = dataset_dict.get("height", target.shape[0]), dataset_dict.get("width", target.shape[1])
    if target.shape != wanted:
        raise ValueError(f"{path} has (height, width) {target.shape}, its image {wanted}; it belongs to another image")
    return target


def _scores(annotations: list[dict]) -> np.ndarray | None:
    """Returns the confidence of each pseudo-label, float32 (N,); None where no label has one."""
    if not any("score" in annotation for annotation in annotations):
        return None
    return np.array([annotation.get("score", 1.0) for annotation in annotations], np.float32)


def _boxes(annotations: list[dict], transforms: T.TransformList, size: tuple[int, int]) -> np.ndarray:
    if not annotations:
        return np.zeros((0, 4))
    boxes = np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations], np.float64)
    height, width = size
    return np.minimum(transforms.apply_box(boxes).clip(min=0), (width, height, width, height))


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
