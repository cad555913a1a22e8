"""New labels from a model's own predictions and the labels that it was trained on: what a round of self-training begins with.

Source: CutLER, section 3.3 and its README (thresholds, IoU rule); U2Seg, figure 2, which draws the loop without describing it.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from pycocotools import mask as mask_utils

from u2seg.checkpoint import load_weights
from u2seg.data import build_mapper, label_space_of
from u2seg.data.dataset_mapper import read_semantic_target
from u2seg.data.datasets.registration import DatasetFiles, files_of
from u2seg.data.formats.coco_panoptic import (
    panoptic_annotation,
    write_panoptic_png,
    write_stuff_png,
)
from u2seg.data.formats.label_directory import PANOPTIC_DIRECTORY, STUFF_DIRECTORY
from u2seg.data.formats.label_shards import ImageLabels, iter_labels, label_shards, write_label_shard
from u2seg.modeling import build_model
from u2seg.pseudo_labels.panoptic.panoptic_merge import void_share
from u2seg.pseudo_labels.panoptic.panoptic_stage import PanopticRule, count_labels, write_json_files
from u2seg.structures import IGNORE_LABEL, LabelSpace, pairwise_mask_iou
from u2seg.utils.files import confined_path, list_digest, read_json, short_file_digest, write_json
from u2seg.utils.hub_files import local_file
from u2seg.utils.image_io import ImageReadError, stored_name
from u2seg.utils.manifest import (
    FAILURES,
    Failure,
    TooManyFailuresError,
    close_stage,
    is_complete,
    open_stage,
    report_failures,
    shard_path,
    shard_slices,
)
from u2seg.utils.progress import Progress
from u2seg.utils.registry import NamedRegistry, get_registered

logger = logging.getLogger(__name__)

_PARTS_DIRECTORY = ".parts"  # labels and failures of finished image groups, until all are done

LABEL_MERGE_REGISTRY = NamedRegistry("LABEL_MERGE")
"""How an image's predictions and old labels become its new labels: from (predictions, labels, ``SELF_TRAINING``, the round's score
threshold), the first two and the result :class:`Objects` of one image."""


@dataclass(frozen=True)
class Objects:
    """Instances of one image.

    Attributes:
        masks: bool (N, H, W).
        classes: int64 (N,), contiguous.
        scores: float32 (N,), 0..1.
    """

    masks: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def __getitem__(self, keep: np.ndarray | list[int]) -> "Objects":
        return Objects(self.masks[keep], self.classes[keep], self.scores[keep])

    def __len__(self) -> int:
        return len(self.masks)


LabelMerge = Callable[[Objects, Objects, CfgNode, float], Objects]


def relabel(cfg: CfgNode, output: Path, score_thresh: float) -> Path:
    """Returns ``output``, filled with new labels of the first training set: the model's predictions, and old labels beside them.

    Every process labels its share of the images. An image that cannot be read is recorded in ``panoptic/failures.json`` with the
    reason, and gets no label.

    Args:
        cfg: complete; ``MODEL.WEIGHTS`` predicts.
        output: directory to fill; its ``panoptic`` subdirectory takes the files, as in a label run.
        score_thresh: from which a prediction becomes a label, 0..1.

    Raises:
        ValueError: the training set has no labels.
        TooManyFailuresError: a larger share of the images than ``MASKS.MAX_FAILURES`` cannot be read; put them back and go on.
    """
    name = cfg.DATASETS.TRAIN[0]
    settings, rule = cfg.SELF_TRAINING, PanopticRule.from_config(cfg)
    merge = get_registered(LABEL_MERGE_REGISTRY, settings.MERGE, "SELF_TRAINING.MERGE")
    records, directory = DatasetCatalog.get(name), output / "panoptic"
    space = label_space_of(name)
    if space is None:
        raise ValueError(
            f"DATASETS.TRAIN: {name!r} has no labels; self-training starts from a dataset of FORMAT pseudo_labels"
        )
    old_files = files_of(name, cfg.DATASETS.BY_PATH[name])
    made_by = {
        "weights": short_file_digest(local_file(cfg.MODEL.WEIGHTS)),
        "score_thresh": score_thresh,
        "merge": settings.MERGE,
        "max_iou": settings.MAX_IOU,
        "confirm_thresh": settings.CONFIRM_THRESH,
        "flip": settings.FLIP,
        "new_semantics": settings.NEW_SEMANTICS,
        "shard_size": settings.SHARD_SIZE,
        "panoptic": asdict(rule),
        "images": list_digest(Path(record["file_name"]).relative_to(old_files.images).as_posix() for record in records),
        "labels": _labels_digest(old_files),
    }
    if comm.is_main_process():
        open_stage(directory, "self-training labels", made_by)
    comm.synchronize()
    if is_complete(directory):
        if comm.is_main_process():
            shutil.rmtree(directory / _PARTS_DIRECTORY, ignore_errors=True)  # a kill at the very end leaves it
        return output
    slices = shard_slices(len(records), settings.SHARD_SIZE)
    parts = [shard_path(directory / _PARTS_DIRECTORY, index) for index in range(len(slices))]
    mine = [i for i in range(comm.get_rank(), len(parts), comm.get_world_size()) if not parts[i].is_file()]
    if mine:
        relabeler = _Relabeler(
            model=_load_model(cfg),
            mapper=build_mapper(cfg, False),
            settings=settings,
            merge=merge,
            score_thresh=score_thresh,
            rule=rule,
            space=space,
            old_files=old_files,
            directory=directory,
        )
    with contextlib.ExitStack() as stack:
        bar = None
        if comm.is_main_process():
            bar = stack.enter_context(Progress(sum(len(records[slices[i]]) for i in mine), "new labels"))
        for index in mine:
            group = records[slices[index]]
            labels, failures = relabeler.label(group if bar is None else bar.track(group))
            # The labels last: a part that is there is finished.
            write_json(_failures_path(parts[index]), failures)
            write_label_shard(parts[index], labels)
    comm.synchronize()
    if comm.is_main_process():
        _finish(directory, parts, space, len(records), cfg.MASKS.MAX_FAILURES)
    comm.synchronize()
    return output


def _labels_digest(files: DatasetFiles) -> str:
    """Returns a digest of the files that a training set's labels are read from; what the PNGs hold follows from them."""
    shards = [] if files.label_shards is None else label_shards(files.label_shards)
    json_files = [path for path in (files.panoptic_json, files.instances_json) if path is not None]
    return list_digest(short_file_digest(path) for path in (*shards, *json_files))


def _finish(directory: Path, parts: list[Path], space: LabelSpace, total: int, max_failures: float) -> None:
    """Writes the files for all images from the rows of the groups."""
    failures_of = {part: [Failure(**failure) for failure in read_json(_failures_path(part))] for part in parts}
    failures = [failure for group in failures_of.values() for failure in group]
    if failures or (directory / FAILURES).is_file():  # of an attempt before images were put back
        try:
            report_failures(directory, failures, total, max_failures, ", or put them back and run again")
        except TooManyFailuresError:
            # These groups are labeled again when their images are back.
            for part in (part for part, group in failures_of.items() if group):
                part.unlink()
            raise
    if failures:
        logger.warning(
            "%d images cannot be read and get no new labels; they are listed in %s", len(failures), directory
        )
    write_json_files(directory, lambda: iter_labels(parts), space)
    close_stage(directory, count_labels(iter_labels(parts)))
    shutil.rmtree(directory / _PARTS_DIRECTORY)


def _failures_path(part: Path) -> Path:
    return part.with_suffix(".json")


@LABEL_MERGE_REGISTRY.register()
def predictions_first(new: Objects, old: Objects, settings: CfgNode, score_thresh: float) -> Objects:
    """Returns confident predictions, best first, then the old labels that none of them explains: those with no mask IoU of
    ``MAX_IOU`` or more. Old masks are replaced, so it helps a model whose masks are better than its labels'.

    Source: CutLER, section 3.3 (confident predictions; old masks with IoU below 0.5 are added).
    """
    new = _mask_nms(new[new.scores >= score_thresh], settings.MAX_IOU)
    return _concatenate(new, old[~_overlaps_any(old, new, settings.MAX_IOU)])


@LABEL_MERGE_REGISTRY.register()
def confirmed_labels_first(new: Objects, old: Objects, settings: CfgNode, score_thresh: float) -> Objects:
    """Returns the old labels that the model sees as well, then confident predictions of objects that they lack.

    An old label is confirmed by a prediction of any class that scores ``CONFIRM_THRESH`` or more and has a mask IoU of ``MAX_IOU`` or
    more with it; it keeps its mask, which a CRF has fitted to the image and a mask head of 28 x 28 cells has not. In the panoptic map
    a smaller new mask still lies before it.

    Source: ours.
    """
    seen = new[new.scores >= settings.CONFIRM_THRESH]
    old = old[_overlaps_any(old, seen, settings.MAX_IOU)]
    new = _mask_nms(new[new.scores >= score_thresh], settings.MAX_IOU)
    return _concatenate(new[~_overlaps_any(new, old, settings.MAX_IOU)], old)


def _mask_nms(objects: Objects, max_iou: float) -> Objects:
    """Returns the objects, best first, without those whose mask IoU with a better one reaches ``max_iou``."""
    objects = objects[np.argsort(-objects.scores, kind="stable")]
    among = pairwise_mask_iou(objects.masks, objects.masks)
    kept: list[int] = []
    for index in range(len(objects)):
        if not (among[index, kept] >= max_iou).any():
            kept.append(index)
    return objects[kept]


def _overlaps_any(objects: Objects, others: Objects, iou: float) -> np.ndarray:
    """Returns bool (N,): which objects have a mask IoU of at least ``iou`` with one of the others."""
    return np.any(pairwise_mask_iou(objects.masks, others.masks) >= iou, axis=1)


def _concatenate(first: Objects, second: Objects) -> Objects:
    return Objects(*(np.concatenate([getattr(first, f), getattr(second, f)]) for f in ("masks", "classes", "scores")))


@dataclass(frozen=True)
class _Relabeler:
    """What labeling needs besides the images."""

    model: torch.nn.Module
    mapper: Callable[[dict], dict]
    settings: CfgNode
    merge: LabelMerge
    score_thresh: float
    rule: PanopticRule
    space: LabelSpace
    old_files: DatasetFiles
    directory: Path

    def label(self, records: Iterable[dict]) -> tuple[list[ImageLabels], list[dict]]:
        """Writes the PNGs of a group of images; returns its labels, and rows of ``failures.json`` for images that could not be read."""
        labels: list[ImageLabels] = []
        failures: list[dict] = []
        source = self.old_files.panoptic_json or self.old_files.label_shards
        assert source is not None, "a dataset of FORMAT pseudo_labels has one of them"
        old_pngs = self.old_files.panoptic_directory or source / PANOPTIC_DIRECTORY
        for record in records:
            image_id, shape = record["image_id"], {key: record[key] for key in ("height", "width")}
            name = Path(record["file_name"]).relative_to(self.old_files.images).as_posix()
            png = stored_name(record["pan_seg_file_name"], old_pngs)
            try:
                sample = self.mapper(record)
            except ImageReadError as error:
                failures.append({"file_name": name, "reason": str(error)})
                continue
            objects, semantic = self._targets(record, sample)
            panoptic, segments = self.rule.merge(objects.masks, objects.classes, semantic)
            write_panoptic_png(confined_path(self.directory / PANOPTIC_DIRECTORY, png, source), panoptic)
            write_stuff_png(
                confined_path(self.directory / STUFF_DIRECTORY, png, source), panoptic, segments, self.space
            )
            instances = self.rule.instances(
                image_id, objects.masks, objects.classes, objects.scores, (panoptic, segments), self.space
            )
            labels.append(
                ImageLabels(
                    image={"id": image_id, "file_name": name, **shape},
                    panoptic=panoptic_annotation(image_id, png, panoptic, segments, self.space),
                    instances=instances,
                    void_share=void_share(panoptic),
                )
            )
        return labels, failures

    def _targets(self, record: dict, sample: dict) -> tuple[Objects, np.ndarray]:
        """Returns an image's new instances, and its stuff clusters: int (H, W), 0-based, 255 where nothing is known."""
        new, semantic = _predict(self.model, sample, self.settings.FLIP)
        if not self.settings.NEW_SEMANTICS or semantic is None:
            semantic = read_semantic_target(record)
        objects = self.merge(new, _old_objects(record), self.settings, self.score_thresh)
        return objects, _stuff_clusters(semantic)


def _stuff_clusters(semantic: np.ndarray) -> np.ndarray:
    """Returns the 0-based stuff cluster of each pixel of a semantic target, 255 under "thing" and void: nothing is known there."""
    return np.where((semantic == 0) | (semantic == IGNORE_LABEL), IGNORE_LABEL, semantic.astype(np.int32) - 1)


def _old_objects(record: dict) -> Objects:
    annotations = record["annotations"]
    size = record["height"], record["width"]
    masks = [mask_utils.decode(a["segmentation"]).astype(bool) for a in annotations]
    return Objects(
        np.stack(masks) if masks else np.zeros((0, *size), bool),
        np.array([a["category_id"] for a in annotations], np.int64),
        np.array([a.get("score", 1.0) for a in annotations], np.float32),
    )


@torch.no_grad()
def _predict(model: torch.nn.Module, sample: dict, flip: bool) -> tuple[Objects, np.ndarray | None]:
    """Returns an image's predicted instances and its semantic target (uint8 (H, W)), None from a model without one."""
    output = model([sample])[0]
    objects, logits = _objects(output), output.get("sem_seg")
    if flip:
        mirrored = model([{**sample, "image": sample["image"].flip(2)}])[0]
        other = _objects(mirrored)
        objects = Objects(
            np.concatenate([objects.masks, other.masks[:, :, ::-1]]),
            np.concatenate([objects.classes, other.classes]),
            np.concatenate([objects.scores, other.scores]),
        )
        if logits is not None:
            logits = logits.softmax(0) + mirrored["sem_seg"].softmax(0).flip(2)
    return objects, None if logits is None else logits.argmax(dim=0).cpu().numpy().astype(np.uint8)


def _objects(output: dict) -> Objects:
    instances = output["instances"].to("cpu")
    return Objects(
        instances.pred_masks.numpy().astype(bool),
        instances.pred_classes.numpy(),
        instances.scores.numpy().astype(np.float32),
    )


def _load_model(cfg: CfgNode) -> torch.nn.Module:
    model = build_model(cfg)
    load_weights(model, cfg, cfg.MODEL.WEIGHTS)
    return model.eval()
