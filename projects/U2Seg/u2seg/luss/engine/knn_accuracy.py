"""k-NN accuracy of a backbone, monitored while PASS pretrains it.

The only place where classes come near this training: nothing learns from them, and the weights are the same with and without it.
"""

import logging
import os

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import TrainerBase, hooks
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from u2seg.data import register_datasets
from u2seg.engine import HOOK_REGISTRY
from u2seg.luss.data.image_batches import iter_image_batches
from u2seg.luss.modeling.knn import knn_accuracy

logger = logging.getLogger(__name__)

# The models whose backbone is being learned; the recipe's later stages do not change it.
PRETRAINERS = ("PASSPretrainer", "DenseContrastPretrainer")


def monitored_datasets(cfg: CfgNode) -> list[str]:
    """Returns the datasets that ``LUSS.KNN`` names, once each; none where the backbone is not being learned.

    The recipe gives all stages the same keys, and only the first one changes the backbone that is monitored.

    Raises:
        ValueError: there is something to classify and no bank.
    """
    settings = cfg.LUSS.KNN
    if cfg.MODEL.META_ARCHITECTURE not in PRETRAINERS:
        return []
    if settings.TEST and not settings.TRAIN:
        raise ValueError(
            f"LUSS.KNN.TEST names {', '.join(settings.TEST)}, but LUSS.KNN.TRAIN, the bank that votes, is empty: name its datasets"
        )
    return list(dict.fromkeys((*settings.TRAIN, *settings.TEST)))


def build_knn_monitor(cfg: CfgNode) -> "KnnMonitor | None":
    """Returns what monitors the k-NN accuracy; None where ``LUSS.KNN`` names no dataset, or one whose images have no class.

    Args:
        cfg: completed; ``LUSS.KNN`` names the datasets, which are registered here where ``DATASETS.BY_PATH`` describes them.

    Raises:
        ValueError: a dataset that is named is not registered, or there is something to classify and no bank.
    """
    names = monitored_datasets(cfg)
    if not names:
        return None
    by_path = cfg.DATASETS.BY_PATH
    register_datasets(by_path, [name for name in names if name not in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)])
    unknown = [name for name in names if name not in DatasetCatalog.list()]
    if unknown:
        raise ValueError(
            f"LUSS.KNN names {', '.join(unknown)}, which nobody registered; describe it in DATASETS.BY_PATH "
            f"({', '.join(sorted(by_path)) or 'empty'})"
        )
    bank = _classes_of_images(cfg.LUSS.KNN.TRAIN)
    queries = _classes_of_images(cfg.LUSS.KNN.TEST) if cfg.LUSS.KNN.TEST else bank
    if len(bank) < 2 or not queries:
        logger.warning(
            "No k-NN accuracy will be monitored: the images of %s have no class (%d of the bank have one, %d of those to classify). "
            "LUSS.KNN needs datasets of format class_directories (one directory for each class) or imagenet_s (train, train_semi).",
            ", ".join(monitored_datasets(cfg)),
            len(bank),
            len(queries),
        )
        return None
    return KnnMonitor(cfg, bank, queries)


@HOOK_REGISTRY.register("KnnAccuracy")
def build_knn_hook(cfg: CfgNode, trainer: TrainerBase) -> hooks.EvalHook | None:
    """Returns the hook that computes k-NN accuracy every ``TEST.EVAL_PERIOD`` iterations and at the end; None where nothing is named.

    Args:
        cfg: completed; ``LUSS.KNN`` names the datasets.
        trainer: whose model is monitored, with the weights that would be scored.
    """
    monitor = build_knn_monitor(cfg)
    if monitor is None:
        return None

    def compute() -> dict:
        with trainer.scored_weights():
            return monitor(trainer.model)

    return hooks.EvalHook(cfg.TEST.EVAL_PERIOD, compute)


class KnnMonitor:
    """Accuracy of a weighted k-NN classifier on the features of whole images.

    Called by Detectron2's ``EvalHook`` in all processes; each computes the features of its share, the main one votes. It changes
    nothing: the model is in eval mode meanwhile, no gradient and no random number is drawn, nothing is kept.

    Source: DINO (Caron et al., ICCV 2021), k-NN evaluation, with the features of LUSS's clustering: short side, central crop.
    """

    def __init__(self, cfg: CfgNode, bank: dict[str, tuple[dict, str]], queries: dict[str, tuple[dict, str]]):
        """Chooses the images.

        Args:
            cfg: ``LUSS`` and ``DATALOADER.NUM_WORKERS`` are used.
            bank: image file -> Detectron2's dict and the name of its class; at least two.
            queries: likewise, those to classify; at least one.
        """
        self._cfg = cfg
        limit, seed = cfg.LUSS.KNN.MAX_IMAGES, cfg.LUSS.SEED
        bank, queries = _drawn(bank, limit, seed), _drawn(queries, limit, seed)
        # Datasets number their classes each in its own way: names are compared.
        names = sorted({name for _, name in (*bank.values(), *queries.values())})
        label = {name: index for index, name in enumerate(names)}
        both = {**bank, **queries}  # an image in both is computed once
        row = {file_name: index for index, file_name in enumerate(both)}
        self._records = [record for record, _ in both.values()]
        self._num_classes = len(names)
        self._bank, self._queries = (
            np.array([(row[file_name], label[name]) for file_name, (_, name) in some.items()], np.int64)
            for some in (bank, queries)
        )

    def __call__(self, model: torch.nn.Module) -> dict[str, dict[str, float]]:
        """Returns ``{"pass": {"knn_accuracy": share}}``, 0..1, and logs it; empty in processes but the main one.

        Args:
            model: a `PASSPretrainer`, or one in ``DistributedDataParallel``.

        Raises:
            RuntimeError: of the images that could be read, too few are left to vote.
        """
        if isinstance(model, DistributedDataParallel):
            model = model.module
        own, own_features = self._features(model)
        numbers = np.sort(np.concatenate([np.array(some, np.int64) for some in comm.all_gather(own)]))
        # Of each image among the features; -1: it could not be read.
        place = np.full(len(self._records), -1, np.int64)
        place[numbers] = np.arange(len(numbers))
        bank, queries = (some[place[some[:, 0]] >= 0] for some in (self._bank, self._queries))
        if len(bank) < 2 or not len(queries):
            raise RuntimeError(
                f"k-NN accuracy: {len(bank)} of {len(self._bank)} images of the bank and {len(queries)} of {len(self._queries)} to "
                "classify can be read; at least 2 and 1 are needed. Put the files back, or leave LUSS.KNN.TRAIN empty."
            )
        numbers, features = self._gathered(own, own_features)
        if not comm.is_main_process():
            return {}
        in_bank = np.full(len(self._records), -1, np.int64)
        in_bank[bank[:, 0]] = np.arange(len(bank))
        on_device = torch.from_numpy(features).to(model.device)
        accuracy = knn_accuracy(
            on_device[place[bank[:, 0]]],
            _tensor(bank[:, 1], model),
            on_device[place[queries[:, 0]]],
            _tensor(queries[:, 1], model),
            self._cfg.LUSS.KNN.K,
            self._cfg.LUSS.KNN.TEMPERATURE,
            own=_tensor(in_bank[queries[:, 0]], model),
        )
        unreadable = len(self._records) - len(numbers)
        logger.info(
            "k-NN accuracy %.4f (k = %d): %d images against %d, %d classes, the largest %.4f of them%s. For monitoring only.",
            accuracy,
            self._cfg.LUSS.KNN.K,
            len(queries),
            len(bank),
            self._num_classes,
            np.bincount(queries[:, 1]).max() / len(queries),
            f"; {unreadable} could not be read" if unreadable else "",
        )
        return {"pass": {"knn_accuracy": accuracy}}

    def _features(self, model: torch.nn.Module) -> tuple[list[int], np.ndarray]:
        """Returns the numbers of this process's images that can be read, and their features, float32 (n, C)."""
        own = list(range(comm.get_rank(), len(self._records), comm.get_world_size()))
        batches = iter_image_batches(
            self._records,
            own,
            resize=self._cfg.LUSS.RESIZE,
            crop=self._cfg.LUSS.CENTER_CROP,
            batch_size=self._cfg.LUSS.BATCH_SIZE,
            num_workers=self._cfg.DATALOADER.NUM_WORKERS,
        )
        kept, features = [], [np.zeros((0, 1), np.float32)]
        with inference_context(model), torch.no_grad():
            for numbers, pixels in batches:
                kept += numbers
                features.append(model.image_features(pixels.to(model.device)).cpu().numpy())
        return kept, np.concatenate(features[1:] or features)

    @staticmethod
    def _gathered(numbers: list[int], features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what all processes have, by image number, in the main process; nothing of use in the others."""
        parts = [part for part in comm.gather((numbers, features)) if part[0]] or [(numbers, features)]
        all_numbers = np.concatenate([np.array(some, np.int64) for some, _ in parts])
        order = np.argsort(all_numbers)
        return all_numbers[order], np.concatenate([some for _, some in parts])[order]


def _classes_of_images(names: tuple[str, ...]) -> dict[str, tuple[dict, str]]:
    """Returns image file -> Detectron2's dict and class name, for the images of some datasets that have a class."""
    found: dict[str, tuple[dict, str]] = {}
    for name in names:
        classes = MetadataCatalog.get(name).get("image_classes")
        for record in DatasetCatalog.get(name) if classes else ():
            if "image_class" in record:
                # By the file that a link leads to, so that an image with two names does not vote for itself.
                found.setdefault(os.path.realpath(record["file_name"]), (record, classes[record["image_class"]]))
    return found


def _drawn(images: dict, limit: int, seed: int) -> dict:
    """Returns at most ``limit`` of the images, the same for the same seed, in their order; all for limit 0."""
    if not limit or len(images) <= limit:
        return images
    chosen = np.random.default_rng(seed).choice(len(images), limit, replace=False)
    entries = list(images.items())
    return dict(entries[index] for index in np.sort(chosen))


def _tensor(values: np.ndarray, model: torch.nn.Module) -> torch.Tensor:
    return torch.from_numpy(values).to(model.device)
