"""The recipe: images in, a directory of panoptic pseudo-labels out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from u2seg.config import check_config
from u2seg.pseudo_labels.clusters.cluster_names import forget_outdated_names
from u2seg.pseudo_labels.image_source import DirectorySource, Images, open_source
from u2seg.pseudo_labels.launchers import Launcher, LocalLauncher
from u2seg.pseudo_labels.lost_images import count_put_back
from u2seg.pseudo_labels.masks.mask_stage import reopen_failures
from u2seg.pseudo_labels.phases import STAGES, LabelRun, Phase, rounds_of
from u2seg.pseudo_labels.worker import Worker
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


def make_pseudo_labels(
    cfg: CfgNode,
    images: Images,
    output: str | Path,
    *,
    stages: Sequence[str] = STAGES,
    num_workers: int = 1,
    sample_patches: bool = False,
    launcher: Callable[[CfgNode, LabelRun], Launcher] | None = None,
) -> Path:
    """Returns ``output``, filled with the pseudo-labels of ``images``.

    Args:
        cfg: a configuration with this project's keys.
        images: directory tree of images, a list, or tar shards; see ``u2seg.pseudo_labels.image_source.open_source``.
        output: directory to fill: one subdirectory a stage, ``manifest.json``, ``failures.json``.
        stages: which to run, a subset of ``STAGES``; what a stage needs must be there or be run with it.
        num_workers: processes that share every stage, one GPU each where there are several; the labels do not depend on it.
        sample_patches: whether the mask stage samples patches for a semantic stage that is run later; where both are run it does.
        launcher: who runs the workers, a class of ``u2seg.pseudo_labels.launchers`` with its own settings bound; None: ``num_workers``
            processes of this machine.

    Raises:
        ValueError: an unknown stage, no worker, or ``output`` lies in ``images``.
        FileNotFoundError: a stage was asked for whose input is not there.
        u2seg.utils.manifest.StageMismatchError: ``output`` was made with other settings.
        u2seg.utils.manifest.TooManyFailuresError: a stage could not read a larger share of the images than ``MASKS.MAX_FAILURES``.
        u2seg.utils.write_errors.WriteError: the disk is full, or ``output`` is read-only or was deleted.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    run = _opened_run(cfg, images, output, stages, sample_patches=sample_patches)
    if launcher is None:
        launcher = Launcher if num_workers == 1 else lambda cfg, run: LocalLauncher(cfg, run, num_workers)
    with clear_write_errors(run.output), launcher(cfg, run) as launched:
        if launched.leads:
            remove_partial_files(run.output)
        launched.plan()
        try:
            for phase in (phase for phases in rounds_of(run) for phase in phases):
                phase.check_inputs(run)
                if not phase.is_done(run):
                    launched.make(phase)
                launched.finish(phase)
        except TooManyFailuresError:
            _write_failures(run)
            raise
        if launched.leads:
            _write_failures(run)
            _write_summary(run.output)
    return run.output


def make_worker_share(
    cfg: CfgNode,
    images: Images,
    output: str | Path,
    worker: Worker,
    *,
    stages: Sequence[str] = STAGES,
) -> list[str]:
    """Makes one worker's share of the round of phases that is next, for a scheduler that only starts commands.

    :func:`finalize` closes the round when all workers have ended; then workers make the next one.

    Args:
        cfg: a configuration with this project's keys.
        images: as for :func:`make_pseudo_labels`; all workers must see the same.
        output: directory of the labels, which the workers share.
        worker: whose shards are made.
        stages: as for :func:`make_pseudo_labels`.

    Returns:
        The names of the phases of the round; empty if all are finished.

    Raises:
        ValueError: an unknown stage, or ``output`` lies in ``images``.
        FileNotFoundError: a stage was asked for whose input is not there.
        u2seg.utils.manifest.StageMismatchError: ``output`` was made with other settings.
        u2seg.utils.write_errors.WriteError: as for :func:`make_pseudo_labels`.
    """
    run = _opened_run(cfg, images, output, stages)
    with clear_write_errors(run.output):
        _check_closed(cfg, run)
        phases = _next_round(run)
        for phase in phases:
            phase.check_inputs(run)
            phase.make(cfg, run, worker)
    return [phase.name for phase in phases]


def finalize(
    cfg: CfgNode,
    images: Images,
    output: str | Path,
    *,
    stages: Sequence[str] = STAGES,
) -> list[str]:
    """Closes the round of phases that workers have made: merges counts and failures, finds centroids.

    Args:
        cfg: a configuration with this project's keys.
        images: as for :func:`make_pseudo_labels`.
        output: directory of the labels.
        stages: as for :func:`make_pseudo_labels`.

    Returns:
        The names of the phases that are next; empty if the labels are complete.

    Raises:
        u2seg.utils.manifest.IncompleteStageError: shards are missing; the message names them, and nothing is closed.
        u2seg.utils.manifest.StageMismatchError: ``output`` was made with other settings or from other images.
        u2seg.utils.manifest.TooManyFailuresError: as for :func:`make_pseudo_labels`.
        u2seg.utils.write_errors.WriteError: as for :func:`make_pseudo_labels`.
    """
    run = _opened_run(cfg, images, output, stages)
    launcher = Launcher(cfg, run)
    with clear_write_errors(run.output):
        if (run["masks"] / MANIFEST).is_file():
            launcher.plan()
        _check_closed(cfg, run)
        try:
            for phase in _next_round(run):
                phase.check_inputs(run)
                launcher.finish(phase)
        finally:
            _write_failures(run)
        _write_summary(run.output)
    return [phase.name for phase in _next_round(run)]


def retry_failures(cfg: CfgNode, images: Images, output: str | Path) -> int:
    """Prepares labels for images that could not be read and have been repaired; :func:`make_pseudo_labels` then goes on.

    Only the mask shards that hold a repaired image are made again. Clusters, semantics and panoptic labels depend on all masks and
    are deleted, if an image was repaired or put back at all. The labels become those of a run that could read the images from the
    beginning.

    Args:
        cfg: the configuration that made the labels.
        images: as for :func:`make_pseudo_labels`.
        output: directory of the labels.

    Returns:
        How many images were repaired.

    Raises:
        FileNotFoundError: no mask stage was begun.
        u2seg.utils.manifest.StageMismatchError: other images changed too, or the settings did.
        u2seg.utils.write_errors.WriteError: as for :func:`make_pseudo_labels`.
    """
    check_config(cfg)
    output = Path(output)
    _check_root(output)

    def discard_later_stages() -> None:
        # What depends on others first: the lost images of a stage are known as long as something is made from it.
        for stage in reversed(STAGES[1:]):
            discard_stage(output / stage)
        forget_outdated_names(output)

    source = open_source(images)
    with clear_write_errors(output):
        lost = {row["file_name"] for stage in STAGES[1:] for row in _failures(output / stage)}
        # Before shards are deleted, which list such images too.
        put_back = count_put_back(source, output / STAGES[0], lost)
        repaired = reopen_failures(cfg, source, output / STAGES[0], discard_later_stages)
        if put_back:
            discard_later_stages()
    return repaired + put_back


def _opened_run(
    cfg: CfgNode, images: Images, output: str | Path, stages: Sequence[str], *, sample_patches: bool = False
) -> LabelRun:
    check_config(cfg)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"unknown stages {unknown}; choose from {', '.join(STAGES)}")
    run = LabelRun(open_source(images), Path(output), tuple(stages), sample_patches)
    # A list names its images, so that those of the output are not among them.
    if isinstance(run.images, DirectorySource) and run.images.root is not None:
        _require_apart(run.images.root, run.output)
    _check_root(run.output)
    return run


def _check_closed(cfg: CfgNode, run: LabelRun) -> None:
    """Refuses settings with which finished phases were not made; see :meth:`Phase.finish`."""
    for phase in (phase for phases in rounds_of(run) for phase in phases):
        if phase.is_done(run):
            phase.finish(cfg, run)


def _next_round(run: LabelRun) -> list[Phase]:
    """Returns the phases of the first round that is not finished, without those of it that are."""
    open_phases = ([phase for phase in phases if not phase.is_done(run)] for phases in rounds_of(run))
    return next((phases for phases in open_phases if phases), [])


def _require_apart(images: Path, output: Path) -> None:
    if output.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"the output directory {output} lies in the image directory {images}; its PNGs would be labeled too"
        )


def _check_root(output: Path) -> None:
    """Refuses a directory whose manifest is somebody else's, which the summary would overwrite."""
    path = output / MANIFEST
    if path.is_file() and "stages" not in read_json(path):
        raise StageMismatchError(f"{path} was not written by this command; choose another output directory")


def _failures(stage: Path) -> list[dict]:
    """Returns the rows of a stage's list of images that it could not read."""
    return read_json(stage / FAILURES) if (stage / FAILURES).is_file() else []


def _write_failures(run: LabelRun) -> None:
    """Writes the list of all images that a stage could not read, each with the first reason, if the mask stage got that far."""
    if not (run["masks"] / FAILURES).is_file():
        return
    rows: dict[str, dict] = {}
    for stage in STAGES:
        for row in _failures(run[stage]):
            rows.setdefault(row["file_name"], row)
    write_json(run.output / FAILURES, [rows[name] for name in sorted(rows)])


def _write_summary(output: Path) -> None:
    """Writes the run's manifest: what each finished stage was made with and what it counted."""
    done = {stage: read_json(output / stage / MANIFEST) for stage in STAGES if is_complete(output / stage)}
    write_json(output / MANIFEST, {"version": __version__, "stages": done})
