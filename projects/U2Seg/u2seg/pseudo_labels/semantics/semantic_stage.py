"""The stage that gives every pixel a semantic cluster."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from u2seg.data.formats.mask_shards import count_records, mask_shards, read_shard, summarize_shard
from u2seg.data.formats.semantic_shards import semantic_shard_names, write_semantic_shard
from u2seg.features import feature_settings
from u2seg.pseudo_labels.image_source import Images, open_source
from u2seg.pseudo_labels.lost_images import report_lost_images
from u2seg.pseudo_labels.patch_sample import remove_patch_samples
from u2seg.pseudo_labels.semantics import region_kmeans as _region_kmeans  # noqa: F401 - registers the provider
from u2seg.pseudo_labels.semantics.learned.learned_providers import remove_trained_head
from u2seg.pseudo_labels.semantics.semantic_providers import SEMANTIC_PROVIDER_REGISTRY
from u2seg.pseudo_labels.worker import Worker
from u2seg.structures.label_space import MAX_STUFF
from u2seg.utils.files import read_json, short_file_digest
from u2seg.utils.hub_files import local_file
from u2seg.utils.kmeans import CENTROIDS
from u2seg.utils.manifest import (
    MANIFEST,
    TooManyFailuresError,
    check_stage,
    close_stage,
    is_complete,
    keys_read_by,
    open_stage,
    require_shards,
    settings_digest,
    settings_key,
    shard_path,
    shard_slices,
    stage_settings,
)
from u2seg.utils.progress import Progress
from u2seg.utils.registry import get_registered

_FITTED = ".fitted"  # begins the name of an empty file: the provider has learned
_NOT_IN_MANIFEST = ("CACHE_MIB", "CHECKPOINT_PERIOD", "NUM_THREADS")


def open_semantics(cfg: CfgNode, masks: Path, output: Path, *, clean: bool = True) -> dict:
    """Opens the stage's directory and returns its settings.

    Args:
        cfg: reads ``SEMANTICS`` and ``FEATURES``.
        masks: directory of the mask stage.
        output: of this stage.
        clean: see ``u2seg.utils.manifest.open_stage``.

    Raises:
        ValueError: more clusters than an 8-bit PNG can hold.
        UnknownNameError: an unknown provider; the message lists those there are.
    """
    if cfg.SEMANTICS.NUM_CLUSTERS > MAX_STUFF:
        raise ValueError(
            f"SEMANTICS.NUM_CLUSTERS is {cfg.SEMANTICS.NUM_CLUSTERS}, but an 8-bit PNG holds at most {MAX_STUFF}"
        )
    provider = get_registered(SEMANTIC_PROVIDER_REGISTRY, cfg.SEMANTICS.PROVIDER, "SEMANTICS.PROVIDER")
    # Single keys are every provider's, sections those of the providers that declare them.
    declared = keys_read_by(provider)
    settings = {
        key.lower(): value
        for key, value in cfg.SEMANTICS.items()
        if not isinstance(value, CfgNode) or declared is None or f"SEMANTICS.{key}" in declared
    }
    settings["centroids"] = cfg.SEMANTICS.CENTROIDS and short_file_digest(cfg.SEMANTICS.CENTROIDS)
    if "learned" in settings:
        # Neither how much is kept in memory nor how often a checkpoint is written changes a map by more than rounding.
        learned = {key.lower(): value for key, value in cfg.SEMANTICS.LEARNED.items() if key not in _NOT_IN_MANIFEST}
        weights = learned["weights"] and short_file_digest(local_file(learned["weights"]))
        settings["learned"] = {**learned, "weights": weights}
    settings["features"] = feature_settings(cfg)
    settings["masks"] = settings_digest(masks)
    open_stage(output, "semantics", settings, clean=clean)
    return settings


def sample_patches(cfg: CfgNode, images: Images, masks: Path, output: Path, worker: Worker) -> None:
    """Makes one worker's share of the sample from which the provider learns, if it learns from one.

    Args:
        cfg: reads ``SEMANTICS`` and ``FEATURES``.
        images: the images.
        masks: directory of the mask stage.
        output: of this stage.
        worker: whose shards are sampled.
    """
    open_semantics(cfg, masks, output, clean=False)
    if is_fitted(output):
        return
    provider = _provider(cfg, images, masks, output)
    if not hasattr(provider, "sample") or not provider.needs_sample():
        return
    shards = mask_shards(masks)
    own = worker.share(len(shards))
    with Progress(sum(count_records(shards[index]) for index in own), "sampling patches", transient=True) as bar:
        for index in own:
            records = read_shard(shards[index])
            provider.sample(index, records)
            bar.update(len(records))


def fit_semantics(cfg: CfgNode, images: Images, masks: Path, output: Path) -> None:
    """Lets the provider learn from the samples of all workers; does nothing where it has learned.

    Args:
        cfg: reads ``SEMANTICS`` and ``FEATURES``.
        images: the images.
        masks: directory of the mask stage.
        output: of this stage.
    """
    open_semantics(cfg, masks, output)
    if not is_fitted(output):
        _provider(cfg, images, masks, output).fit()
        _fitted_path(output).touch()


def is_fitted(output: Path) -> bool:
    """Returns whether :func:`fit_semantics` came to its end in a stage's directory."""
    return is_complete(output) or ((output / MANIFEST).is_file() and _fitted_path(output).is_file())


def _fitted_path(output: Path) -> Path:
    return output / f"{_FITTED}-{settings_key(stage_settings(output))}"


def label_shards(cfg: CfgNode, images: Images, masks: Path, output: Path, worker: Worker) -> None:
    """Makes the maps of one worker's shards; for :class:`PatchKMeans` this is a second forward pass over every image.

    An image that was damaged or removed since its masks were made gets no map.

    Args:
        cfg: reads ``SEMANTICS`` and ``FEATURES``.
        images: the images.
        masks: directory of the mask stage.
        output: of this stage, in which the provider has learned.
        worker: whose shards are labeled.
    """
    settings = open_semantics(cfg, masks, output, clean=False)
    shards = mask_shards(masks)
    own = worker.share(len(shards))
    missing = [index for index in own if not shard_path(output, index).is_file()]
    if not missing:
        return
    provider = _provider(cfg, images, masks, output)
    counts = {index: count_records(shards[index]) for index in own}
    total = sum(counts.values())
    with Progress(total, "semantic maps", initial=total - sum(counts[index] for index in missing)) as bar:
        for index in missing:
            records = read_shard(shards[index])
            readable = [record for record in records if record.error is None]
            maps = {}
            for piece in shard_slices(len(readable), cfg.FEATURES.BATCH_SIZE):
                maps.update(provider.label(readable[piece]))
                bar.update(len(readable[piece]))
            check_stage(output, "semantics", settings)
            write_semantic_shard(shard_path(output, index), maps)
            bar.update(len(records) - len(readable))


def finish_semantics(cfg: CfgNode, images: Images, masks: Path, output: Path) -> None:
    """Closes the stage, and records the images that were lost since their masks were made.

    Args:
        cfg: reads ``SEMANTICS`` and ``MASKS.MAX_FAILURES``.
        images: the images; the lost ones are read again for the reason.
        masks: directory of the mask stage.
        output: of this stage.

    Raises:
        IncompleteStageError: a shard was not labeled; the message names it.
        TooManyFailuresError: too many images were lost; put them back and go on.
    """
    open_semantics(cfg, masks, output)
    if not is_complete(output):
        shards = mask_shards(masks)
        require_shards(output, len(shards))
        num_images, lost = 0, []
        for index, shard in enumerate(shards):
            names, summary = semantic_shard_names(shard_path(output, index)), summarize_shard(shard)
            num_images += len(names)
            readable = zip(summary.file_names, summary.errors)
            lost += [name for name, error in readable if error is None and name not in names]
        total = read_json(masks / MANIFEST)["counts"]["images"]
        try:
            report_lost_images(open_source(images), lost, output, total, cfg.MASKS.MAX_FAILURES)
        except TooManyFailuresError:
            _forget_what_was_learned(output, len(shards))
            raise
        close_stage(output, {"images": num_images, **({"lost_images": lost} if lost else {})})
    # With what another run on the same directory left behind.
    remove_patch_samples(output)
    _remove_marks(output)


def _forget_what_was_learned(output: Path, num_shards: int) -> None:
    """Deletes the maps, and what was learned without the images that are lost."""
    for path in (*(shard_path(output, index) for index in range(num_shards)), output / CENTROIDS):
        path.unlink(missing_ok=True)
    remove_trained_head(output)
    _remove_marks(output)


def _remove_marks(output: Path) -> None:
    for path in output.glob(f"{_FITTED}-*"):
        path.unlink(missing_ok=True)


def _provider(cfg: CfgNode, images: Images, masks: Path, output: Path) -> Any:
    make = get_registered(SEMANTIC_PROVIDER_REGISTRY, cfg.SEMANTICS.PROVIDER, "SEMANTICS.PROVIDER")
    return make(cfg, open_source(images), masks, output)
