"""The stage that gives every pixel a semantic cluster."""

from pathlib import Path

from detectron2.config import CfgNode

from u2seg.data.formats.mask_shards import iter_shards
from u2seg.data.formats.semantic_shards import semantic_shard_names, write_semantic_shard
from u2seg.features import feature_settings
from u2seg.pseudo_labels.lost_images import report_lost_images
from u2seg.pseudo_labels.semantics.semantic_providers import SEMANTIC_PROVIDER_REGISTRY
from u2seg.structures.label_space import MAX_STUFF
from u2seg.utils.files import read_json, short_file_digest
from u2seg.utils.manifest import (
    MANIFEST,
    close_stage,
    is_complete,
    open_stage,
    settings_digest,
    shard_path,
    shard_slices,
)
from u2seg.utils.progress import Progress
from u2seg.utils.registry import get_registered

_NOT_IN_MANIFEST = ("CACHE_MIB", "CHECKPOINT_PERIOD", "NUM_THREADS")


def make_semantics(cfg: CfgNode, images: Path, masks: Path, output: Path, *, max_failures: float | None = None) -> Path:
    """Returns ``output``, filled with one semantic map for every image that the mask stage could read.

    An image that was damaged or removed since its masks were made is recorded with the reason and gets no map.

    Args:
        cfg: reads ``SEMANTICS`` and ``FEATURES``.
        images: the image directory.
        masks: directory of the mask stage; gives the list of images, and where things lie.
        output: directory to fill.
        max_failures: share, 0..1, of images that may be lost; ``MASKS.MAX_FAILURES`` if None.

    Raises:
        TooManyFailuresError: too many images were lost; put them back and go on.
    """
    if cfg.SEMANTICS.NUM_CLUSTERS > MAX_STUFF:
        raise ValueError(
            f"SEMANTICS.NUM_CLUSTERS is {cfg.SEMANTICS.NUM_CLUSTERS}, but an 8-bit PNG holds at most {MAX_STUFF}"
        )
    make_provider = get_registered(SEMANTIC_PROVIDER_REGISTRY, cfg.SEMANTICS.PROVIDER, "SEMANTICS.PROVIDER")
    # A section that is named like another provider is that one's alone.
    others = {name for name, _ in SEMANTIC_PROVIDER_REGISTRY} - {cfg.SEMANTICS.PROVIDER}
    settings = {key.lower(): value for key, value in cfg.SEMANTICS.items() if key not in others}
    settings["centroids"] = cfg.SEMANTICS.CENTROIDS and short_file_digest(cfg.SEMANTICS.CENTROIDS)
    # Neither how much is kept in memory nor how often a checkpoint is written changes a map by more than rounding.
    learned = {key.lower(): value for key, value in cfg.SEMANTICS.LEARNED.items() if key not in _NOT_IN_MANIFEST}
    settings["learned"] = {**learned, "weights": learned["weights"] and short_file_digest(learned["weights"])}
    settings["features"] = feature_settings(cfg)
    open_stage(output, "semantics", {**settings, "masks": settings_digest(masks)})
    if is_complete(output):
        return output
    provider = make_provider(cfg, images, masks, output)
    provider.fit()
    num_images, total = 0, read_json(masks / MANIFEST)["counts"]["images"]
    lost: list[str] = []
    done = sum(len(records) for i, records in enumerate(iter_shards(masks)) if shard_path(output, i).is_file())
    with Progress(total, "semantic maps", initial=done) as bar:
        for index, records in enumerate(iter_shards(masks)):
            path = shard_path(output, index)
            readable = [record for record in records if record.error is None]
            if not path.is_file():
                maps = {}
                for piece in shard_slices(len(readable), cfg.FEATURES.BATCH_SIZE):
                    maps.update(provider.label(readable[piece]))
                    bar.update(len(readable[piece]))
                write_semantic_shard(path, maps)
                bar.update(len(records) - len(readable))
            names = semantic_shard_names(path)
            num_images += len(names)
            lost += [record.file_name for record in readable if record.file_name not in names]
    report_lost_images(images, lost, output, total, cfg.MASKS.MAX_FAILURES if max_failures is None else max_failures)
    close_stage(output, {"images": num_images, **({"lost_images": lost} if lost else {})})
    return output
