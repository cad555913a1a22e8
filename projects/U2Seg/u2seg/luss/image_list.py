"""The images of a LUSS stage: which they are, how they are loaded, which could not be."""

from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor, nn

from u2seg.checkpoint import AtomicCheckpointer
from u2seg.luss.data.image_batches import iter_image_batches
from u2seg.luss.data.semantic_mapper import read_for
from u2seg.modeling import build_model
from u2seg.utils.files import list_digest
from u2seg.utils.image_io import ImageReadError, content_digest
from u2seg.utils.manifest import Failure


class LussImageList:
    """The training images of a configuration, by number.

    Attributes:
        records: Detectron2's dicts.
        root: directory to which ``file_names`` are relative.
        file_names: POSIX, one for each record.
    """

    def __init__(self, cfg: CfgNode):
        """Lists the images of ``DATASETS.TRAIN``, whose datasets are registered.

        Raises:
            ValueError: no training set, or several without a common image directory.
        """
        names = list(cfg.DATASETS.TRAIN)
        roots = {MetadataCatalog.get(name).get("image_root") for name in names}
        if len(roots) != 1 or None in roots:
            raise ValueError(
                f"DATASETS.TRAIN must name datasets with one common image directory, got {names} with {roots}"
            )
        self.root = Path(roots.pop())
        self.records = [record for name in names for record in DatasetCatalog.get(name)]
        self.file_names = [Path(record["file_name"]).relative_to(self.root).as_posix() for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def settings(self) -> dict:
        """Returns what a stage's manifest should say of the images."""
        entries = [f"{name}\t{content_digest(self.root / name)}" for name in self.file_names]
        return {"count": len(self), "digest": list_digest(entries)}


def unreadable(images: LussImageList, kept: set[int]) -> list[Failure]:
    """Returns the images whose numbers are not among ``kept``, each with the reason why it cannot be read."""
    failures = []
    for number in range(len(images)):
        if number not in kept:
            try:
                read_for(images.records[number])
                failures.append(Failure(images.file_names[number], "could not be read when the stage ran"))
            except (ImageReadError, OSError) as error:
                failures.append(Failure(images.file_names[number], str(error)))
    return failures


def iter_batches(
    cfg: CfgNode, images: LussImageList, numbers: list[int], crop: int | None
) -> Iterator[tuple[list[int], Tensor]]:
    """Returns an iterator over batches of images, numbers and pixels (uint8 (B, 3, H, W)); see `iter_image_batches`.

    Args:
        cfg: ``LUSS`` and ``DATALOADER.NUM_WORKERS`` are used.
        images: all of them.
        numbers: of those wanted.
        crop: side of a central crop; None gives the whole images.
    """
    return iter_image_batches(
        images.records,
        numbers,
        resize=cfg.LUSS.RESIZE,
        crop=crop,
        batch_size=cfg.LUSS.BATCH_SIZE,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def load_model(cfg: CfgNode, architecture: str) -> nn.Module:
    """Returns the model ``architecture`` with ``MODEL.WEIGHTS``, in eval mode on ``MODEL.DEVICE``.

    Raises:
        ValueError: no weights are named.
        FileNotFoundError, CheckpointError: see :func:`u2seg.checkpoint.read_checkpoint`.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"{architecture} needs trained weights: set MODEL.WEIGHTS to the earlier stage's model_final.pth"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = architecture
    model = build_model(cfg)
    # Not all weights must be there: a pretrained network has no pixel attention yet.
    AtomicCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()
