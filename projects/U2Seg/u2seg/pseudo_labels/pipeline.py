"""The recipe: a directory of photos in, a directory of panoptic pseudo-labels out."""

import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from u2seg.config import check_config
from u2seg.pseudo_labels.clusters.cluster_names import forget_names
from u2seg.pseudo_labels.clusters.cluster_stage import make_clusters
from u2seg.pseudo_labels.masks import make_masks
from u2seg.pseudo_labels.masks.mask_stage import is_readable, make_mask_shards, reopen_failures
from u2seg.pseudo_labels.panoptic.panoptic_stage import make_panoptic_labels
from u2seg.pseudo_labels.semantics.semantic_stage import make_semantics
from u2seg.pseudo_labels.sharding import Worker, run_local_workers
from u2seg.utils.files import read_json, remove_partial_files, write_json
from u2seg.utils.manifest import (
    FAILURES,
    MANIFEST,
    StageMismatchError,
    TooManyFailuresError,
    discard_stage,
    is_complete,
)
from u2seg.utils.write_errors import clear_write_errors
from u2seg.version import __version__

logger = logging.getLogger(__name__)

STAGES = ("masks", "clusters", "semantics", "panoptic")


def make_pseudo_labels(
    cfg: CfgNode,
    images: str | Path,
    output: str | Path,
    *,
    stages: Sequence[str] = STAGES,
    max_failures: float | None = None,
    num_workers: int = 1,
) -> Path:
    """Returns ``output``, filled with the pseudo-labels of the photos below ``images``.

    Args:
        cfg: a configuration with this project's keys.
        images: directory tree of photos.
        output: directory to fill: one subdirectory a stage, ``manifest.json``, ``failures.json``.
        stages: which to run, a subset of ``STAGES``; what a stage needs must be there or be run with it.
        max_failures: largest share, 0..1, of photos that a stage may find unreadable; ``MASKS.MAX_FAILURES`` if None.
        num_workers: processes that share the mask stage, one GPU each where there are several; the labels do not depend on it.

    Raises:
        ValueError: an unknown stage, no worker, or ``output`` lies in ``images``.
        FileNotFoundError: a stage was asked for whose input is not there.
        u2seg.utils.manifest.StageMismatchError: ``output`` was made with other settings.
        u2seg.utils.manifest.TooManyFailuresError: too many photos could not be read.
        u2seg.utils.write_errors.WriteError: the disk is full, or ``output`` is read-only or was deleted.
    """
    check_config(cfg)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"unknown stages {unknown}; choose from {', '.join(STAGES)}")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    images, output = Path(images), Path(output)
    _require_apart(images, output)
    _check_root(output)
    masks, clusters, semantics, panoptic = (output / stage for stage in STAGES)
    remove_partial_files(output)

    if "masks" in stages and num_workers > 1 and not is_complete(masks):
        run_local_workers(make_mask_shards, cfg, images, masks, num_workers)
    with clear_write_errors(output):
        try:
            if "masks" in stages:
                make_masks(cfg, images, masks, max_failures=max_failures)
            if "clusters" in stages:
                _require(masks, for_stage="clusters")
                make_clusters(cfg, images, masks, clusters, max_failures=max_failures)
            if "semantics" in stages:
                _require(masks, for_stage="semantics")
                make_semantics(cfg, images, masks, semantics, max_failures=max_failures)
        except TooManyFailuresError:
            _write_failures(output)
            raise
        if "panoptic" in stages:
            for needed in (masks, clusters, semantics):
                _require(needed, for_stage="panoptic")
            if not is_complete(panoptic) and forget_names(output):
                logger.warning("The labels are made anew: the names that their clusters were given by hand are gone")
            make_panoptic_labels(cfg, masks, clusters, semantics, panoptic)
    if (masks / FAILURES).is_file():
        _write_failures(output)
    _write_summary(output)
    return output


def retry_failures(cfg: CfgNode, images: str | Path, output: str | Path) -> int:
    """Prepares finished labels for images that could not be read and have been repaired; :func:`make_pseudo_labels` then goes on.

    Only the mask shards that hold a repaired image are made again. Clusters, semantics and panoptic labels depend on all masks and
    are deleted, if an image was repaired or put back at all. The labels become those of a run that could read the images from the
    beginning.

    Args:
        cfg: the configuration that made the labels.
        images: directory tree of photos.
        output: directory of the labels.

    Returns:
        How many images were repaired.

    Raises:
        FileNotFoundError: there is no finished mask stage.
        u2seg.utils.manifest.StageMismatchError: other images changed too.
    """
    check_config(cfg)
    output = Path(output)
    _check_root(output)

    def discard_later_stages() -> None:
        for stage in STAGES[1:]:
            discard_stage(output / stage)

    repaired = reopen_failures(cfg, images, output / STAGES[0], discard_later_stages)
    lost = {row["file_name"] for stage in STAGES[1:] for row in _failures(output / stage)}
    put_back = sum(is_readable(Path(images) / name) for name in lost)
    if put_back:
        discard_later_stages()
    return repaired + put_back


def make_worker_masks(cfg: CfgNode, images: str | Path, output: str | Path, worker: Worker) -> Path:
    """Returns ``output``, in which one worker's share of the mask stage is made; :func:`make_pseudo_labels` then does the rest.

    Args:
        cfg: a configuration with this project's keys.
        images: directory tree of photos; all workers must see the same.
        output: directory of the labels, which the workers share.
        worker: whose shards are made.

    Raises:
        ValueError: ``output`` lies in ``images``.
        u2seg.utils.manifest.StageMismatchError: ``output`` was made with other settings.
    """
    check_config(cfg)
    images, output = Path(images), Path(output)
    _require_apart(images, output)
    _check_root(output)
    make_mask_shards(cfg, images, output / STAGES[0], worker)
    return output


def _require_apart(images: Path, output: Path) -> None:
    if output.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"the output directory {output} lies in the image directory {images}; its images would be taken for photos"
        )


def _check_root(output: Path) -> None:
    """Refuses a directory whose manifest is somebody else's, which the summary would overwrite."""
    path = output / MANIFEST
    if path.is_file() and "stages" not in read_json(path):
        raise StageMismatchError(f"{path} was not written by this command; choose another output directory")


def _require(directory: Path, for_stage: str) -> None:
    if not is_complete(directory):
        raise FileNotFoundError(
            f"the {for_stage} stage needs a finished {directory.name} stage in {directory}; run it first (--stages {directory.name})"
        )


def _failures(stage: Path) -> list[dict]:
    """Returns the rows of a stage's list of images that it could not read."""
    return read_json(stage / FAILURES) if (stage / FAILURES).is_file() else []


def _write_failures(output: Path) -> None:
    """Writes the list of all images that a stage could not read, each with the first reason."""
    rows: dict[str, dict] = {}
    for stage in STAGES:
        for row in _failures(output / stage):
            rows.setdefault(row["file_name"], row)
    write_json(output / FAILURES, [rows[name] for name in sorted(rows)])


def _write_summary(output: Path) -> None:
    """Writes the run's manifest: what each finished stage was made with and what it counted."""
    done = {stage: read_json(output / stage / MANIFEST) for stage in STAGES if is_complete(output / stage)}
    write_json(output / MANIFEST, {"version": __version__, "stages": done})
