"""The stage that gives every pixel a semantic cluster."""

from pathlib import Path

from tqdm import tqdm

from u2seg.features import feature_settings
from u2seg.label_space import MAX_STUFF
from u2seg.masks.records import iter_shards
from u2seg.registry import get_registered
from u2seg.semantics.maps import write_semantic_shard
from u2seg.semantics.providers import SEMANTIC_PROVIDER_REGISTRY
from u2seg.stages import close_stage, file_digest, is_complete, open_stage, settings_digest, shard_path


def make_semantics(cfg, images: Path, masks: Path, output: Path) -> Path:
    """Returns ``output``, filled with one semantic map for every picture that the mask stage could read.

    Args:
        cfg: reads ``SEMANTICS`` and ``FEATURES``.
        images: the picture folder.
        masks: folder of the mask stage; gives the list of pictures, and where things lie.
        output: folder to fill.
    """
    if cfg.SEMANTICS.NUM_CLUSTERS > MAX_STUFF:
        raise ValueError(
            f"SEMANTICS.NUM_CLUSTERS is {cfg.SEMANTICS.NUM_CLUSTERS}, but an 8-bit PNG holds at most {MAX_STUFF}"
        )
    make_provider = get_registered(SEMANTIC_PROVIDER_REGISTRY, cfg.SEMANTICS.PROVIDER, "SEMANTICS.PROVIDER")
    settings = {key.lower(): value for key, value in cfg.SEMANTICS.items()}
    settings["centroids"] = cfg.SEMANTICS.CENTROIDS and file_digest(cfg.SEMANTICS.CENTROIDS)
    settings["features"] = feature_settings(cfg)
    open_stage(output, "semantics", {**settings, "masks": settings_digest(masks)})
    if is_complete(output):
        return output
    provider = make_provider(cfg, images, masks, output)
    provider.fit()
    pictures = 0
    for index, records in enumerate(tqdm(iter_shards(masks), desc="semantic maps", unit="shards")):
        path = shard_path(output, index)
        if not path.is_file():
            write_semantic_shard(path, provider.label(records))
        pictures += sum(record.error is None for record in records)
    close_stage(output, {"pictures": pictures})
    return output
