"""Single stages of a label run as one process makes them, in directories that a test chooses."""

from pathlib import Path

from detectron2.config import CfgNode
from u2seg.pseudo_labels.clusters import cluster_stage
from u2seg.pseudo_labels.image_source import Images
from u2seg.pseudo_labels.semantics import semantic_stage
from u2seg.pseudo_labels.worker import Worker


def make_clusters(cfg: CfgNode, images: Images, masks: Path, output: Path) -> Path:
    """Returns ``output``, filled by the cluster stage."""
    cluster_stage.sample_vectors(cfg, images, masks, output, Worker())
    cluster_stage.fit_centroids(cfg, masks, output)
    cluster_stage.assign_clusters(cfg, images, masks, output, Worker())
    cluster_stage.finish_clusters(cfg, images, masks, output)
    return output


def make_semantics(cfg: CfgNode, images: Images, masks: Path, output: Path) -> Path:
    """Returns ``output``, filled by the semantic stage."""
    semantic_stage.sample_patches(cfg, images, masks, output, Worker())
    semantic_stage.fit_semantics(cfg, images, masks, output)
    semantic_stage.label_shards(cfg, images, masks, output, Worker())
    semantic_stage.finish_semantics(cfg, images, masks, output)
    return output
