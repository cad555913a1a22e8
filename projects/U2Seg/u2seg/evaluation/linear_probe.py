"""The linear probe: how well a linear classifier that sees ground truth reads the codes of a head that never did.

It belongs to the evaluation alone. The probe is thrown away after it was scored, and its score is no unsupervised one.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from u2seg.data.datasets.coco_supercategories import semantic_groups
from u2seg.evaluation.metrics.semantic_scores import confusion_matrix, semantic_scores
from u2seg.evaluation.tables.ground_truth import PanopticGroundTruth
from u2seg.evaluation.tables.semantic_maps import images_by_stem, twins_error
from u2seg.features import resolve_device
from u2seg.pseudo_labels.semantics.learned.semantic_head import (
    PixelClusters,
    PixelSettings,
    build_head_extractor,
    load_semantic_head,
)
from u2seg.utils.external_sort import repeated_items
from u2seg.utils.image_io import ImageReadError, list_images, read_named_rgb
from u2seg.utils.progress import Progress

VOID = -1


class LabeledImages:
    """Images with the class of each pixel, in the order of their names.

    Attributes:
        class_names: COCO-Stuff-27's for COCO, as protocol "stego" has them; else those of the dataset.
    """

    def __init__(self, images: str | Path, gt_json: str | Path, gt_root: str | Path):
        """Pairs images with annotations by the bare name, without directory and suffix.

        Args:
            images: directory of the images.
            gt_json: COCO panoptic JSON.
            gt_root: its PNGs.

        Raises:
            ValueError: an annotation has no image, there is none, or a name stands for several images.
        """
        self._images, self._gt = Path(images), PanopticGroundTruth(gt_json, gt_root)
        lookup, self.class_names = semantic_groups(self._gt.space)
        self._lookup = np.array(lookup, np.int64)
        stems = images_by_stem(self._gt)
        wanted = [name for name in list_images(images) if Path(name).stem in stems]
        names = {Path(name).stem: name for name in wanted}
        if len(names) < len(wanted):
            raise twins_error(images, repeated_items(Path(name).stem for name in wanted))
        missing = sorted(stems.keys() - names.keys())
        if missing or not stems:
            raise ValueError(
                f"expected in {images} the image of each annotation of {gt_json}, at least one; {len(missing)} of {len(stems)} are "
                f"not there, for example {missing[:5]}"
            )
        self._pairs = [(names[stem], stems[stem]) for stem in sorted(stems)]

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image, uint8 (H, W, 3), and its classes, int64 (H, W), ``VOID`` where there is none.

        Raises:
            ImageReadError: the image cannot be read, or has another size than its ground truth.
        """
        name, image_id = self._pairs[number]
        gt_map, segments = self._gt.read(image_id)
        classes = np.full(gt_map.shape, VOID, np.int64)
        for segment in segments:
            if not segment.crowd:
                classes[gt_map == segment.id] = self._lookup[segment.label]
        image_rgb = read_named_rgb(self._images / name)
        if image_rgb.shape[:2] != gt_map.shape:
            raise ImageReadError(
                f"{self._images / name} has {image_rgb.shape[0]} x {image_rgb.shape[1]} pixels (height x width), its ground truth in "
                f"{self._gt.path} {gt_map.shape[0]} x {gt_map.shape[1]}"
            )
        return image_rgb, classes


def score_linear_probe(
    cfg: CfgNode,
    weights: str | Path,
    train: LabeledImages,
    scored: LabeledImages,
    *,
    iterations: int = 1000,
    batch_size: int = 16,
    base_lr: float = 5e-3,
) -> dict[str, float]:
    """Returns ``mIoU``, ``fwIoU``, ``mACC`` and ``pACC``, 0..100, of a linear classifier of a trained head's codes; no CRF.

    Args:
        cfg: reads ``SEMANTICS`` and ``FEATURES``.
        weights: the ``model_final.pth`` that the semantic stage left; it is not changed.
        train: on which the classifier is trained.
        scored: on which it is scored, of the same classes.
        iterations: of its training.
        batch_size: images in an iteration.
        base_lr: of Adam.

    Raises:
        ValueError: the two have different classes.

    Source: STEGO, section 4.1, and its released code, where the classifier is trained beside the head.
    """
    if train.class_names != scored.class_names:
        raise ValueError(
            f"the probe must be trained on the classes that are scored, {', '.join(scored.class_names[:5])}, ..., got "
            f"{', '.join(train.class_names[:5])}, ..."
        )
    device = resolve_device(cfg.FEATURES.DEVICE)
    head = load_semantic_head(cfg, weights, cfg.SEMANTICS.PROVIDER).to(device)
    extractor = build_head_extractor(cfg, cfg.SEMANTICS.LEARNED.MAP_SIZE)
    clusters = PixelClusters(extractor, head, PixelSettings.of_config(cfg))
    torch.manual_seed(cfg.SEMANTICS.SEED)  # the classifier's random weights
    classifier = nn.Conv2d(head.probe.clusters.shape[1], len(scored.class_names), 1).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), base_lr)
    rng = np.random.default_rng(cfg.SEMANTICS.SEED)
    with Progress(iterations, "linear probe", unit="iterations") as bar:
        for _ in range(iterations):
            pairs = [train.read(int(number)) for number in rng.integers(0, len(train), batch_size)]
            logits = classifier(clusters.codes([image for image, _ in pairs]))
            losses = [
                _cross_entropy(one, classes) for one, (_, classes) in zip(logits, pairs) if (classes != VOID).any()
            ]
            if losses:
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
            bar.update()
    confusion = sum(_confusions(clusters, classifier, scored))
    return semantic_scores(np.asarray(confusion)).summary()


def _cross_entropy(logits: Tensor, classes: np.ndarray) -> Tensor:
    """Returns the mean cross-entropy of an image's pixels; logits (K, rows, columns) are enlarged to classes (H, W)."""
    enlarged = _enlarged(logits, classes)
    return F.cross_entropy(enlarged[None], torch.from_numpy(classes)[None].to(logits.device), ignore_index=VOID)


def _enlarged(logits: Tensor, classes: np.ndarray) -> Tensor:
    return F.interpolate(logits[None], size=classes.shape, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def _confusions(clusters: PixelClusters, classifier: nn.Module, images: LabeledImages) -> Iterator[np.ndarray]:
    for number in range(len(images)):
        image, classes = images.read(number)
        found = _enlarged(classifier(clusters.codes([image]))[0], classes).argmax(dim=0).cpu().numpy()
        yield confusion_matrix(found.ravel(), classes.ravel(), np.ones(classes.size), len(images.class_names))
