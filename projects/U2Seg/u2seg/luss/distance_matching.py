"""The bank of labeled embeddings for distance matching: one masked mean for each class that a labeled image shows."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor

from u2seg.luss.data.id_maps import LUSS_IGNORE, read_id_map
from u2seg.luss.data.semantic_mapper import LussSemanticMapper
from u2seg.luss.image_list import load_model
from u2seg.utils.files import atomic_path, remove_partial_files_beside
from u2seg.utils.kmeans import l2_normalize
from u2seg.utils.progress import track


def build_bank(cfg: CfgNode, output: str | Path) -> Path:
    """Writes the bank of ``DATASETS.TRAIN``'s images, which have masks (split ``train_semi``); returns its path.

    Args:
        cfg: completed; ``MODEL.WEIGHTS`` is the pretrained backbone.
        output: the ``.npz`` file, with ``features`` (float32 (M, C), length 1) and ``labels`` (int64 (M,)).

    Source: LUSS, distance matching: for each image and each of its ids, "other" included, the mean feature under the mask.
    """
    remove_partial_files_beside(output)
    model = load_model(cfg, "DistanceMatcher")
    mapper = LussSemanticMapper(cfg, False)
    features, labels = [], []
    records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    for record in track(records, "bank"):
        pixels = mapper(record)["image"][None].to(model.pixel_mean.device)
        with torch.no_grad():
            dense = model.dense_features(pixels)[0].cpu()
        means, ids = masked_means(dense, torch.from_numpy(read_id_map(record["sem_seg_file_name"])))
        features.append(means)
        labels.append(ids)
    if not features:
        raise ValueError("DATASETS.TRAIN is empty: distance matching needs ImageNet-S's train_semi split")
    with atomic_path(output) as temporary:
        np.savez(temporary, features=np.concatenate(features), labels=np.concatenate(labels))
    return Path(output)


def masked_means(features: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean feature of each id in an image, float32 (n, C) with rows of length 1, and the ids, int64 (n,).

    Args:
        features: float32 (C, h, w).
        labels: int (H, W), shrunk to the features by nearest neighbor; ids that vanish by that are left out, as is 1000.
    """
    small = F.interpolate(labels[None, None].float(), size=features.shape[1:], mode="nearest")[0, 0].long().flatten()
    ids = torch.unique(small)
    ids = ids[ids != LUSS_IGNORE]
    members = (small[None] == ids[:, None]).float()
    means = members @ features.flatten(1).T / members.sum(dim=1, keepdim=True)
    return l2_normalize(means.numpy()), ids.numpy()
