"""The phases of a label run, in order. A phase is a function of a worker, and one that closes it.

A phase makes one file for each shard of the plan. The file is its own record: a worker that is repeated makes what is missing. When
all files are there, one process finishes the phase. The phases of one round need nothing of one another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from u2seg.pseudo_labels.clusters import cluster_stage
from u2seg.pseudo_labels.clusters.cluster_names import forget_outdated_names
from u2seg.pseudo_labels.masks import mask_stage
from u2seg.pseudo_labels.panoptic import panoptic_stage
from u2seg.pseudo_labels.semantics import semantic_stage
from u2seg.pseudo_labels.semantics.semantic_providers import SEMANTIC_PROVIDER_REGISTRY
from u2seg.pseudo_labels.worker import Worker
from u2seg.utils.image_io import ImageSource
from u2seg.utils.kmeans import CENTROIDS
from u2seg.utils.manifest import is_complete

STAGES = ("masks", "clusters", "semantics", "panoptic")
# Stages that must be finished before.
_NEEDS: dict[str, tuple[str, ...]] = {
    "masks": (),
    "clusters": ("masks",),
    "semantics": ("masks",),
    "panoptic": ("masks", "clusters", "semantics"),
}


@dataclass(frozen=True)
class LabelRun:
    """Where a run reads and writes.

    Attributes:
        images: source of the images.
        output: directory of the labels.
        stages: which are run, a subset of ``STAGES``.
        sample_patches: whether the mask stage samples patches for the semantic stage, although that is not run here.
    """

    images: ImageSource
    output: Path
    stages: tuple[str, ...] = STAGES
    sample_patches: bool = False

    def __getitem__(self, stage: str) -> Path:
        """Returns the directory of a stage."""
        return self.output / stage


@dataclass(frozen=True)
class Phase:
    """A part of a stage.

    Attributes:
        name: of the phase, unique.
        stage: to which it belongs.
        make: makes one worker's shards.
        finish: closes the phase, or refuses to if shards are missing; called again, it checks the settings and changes nothing.
        has_result: whether it was finished; None: if its stage was.
    """

    name: str
    stage: str
    make: Callable[[CfgNode, LabelRun, Worker], None]
    finish: Callable[[CfgNode, LabelRun], None]
    has_result: Callable[[LabelRun], bool] | None = None

    def is_done(self, run: LabelRun) -> bool:
        """Returns whether the phase was finished."""
        return is_complete(run[self.stage]) if self.has_result is None else self.has_result(run)

    def check_inputs(self, run: LabelRun) -> None:
        """Checks that the stages which the phase needs are there.

        Raises:
            FileNotFoundError: one is missing; the message names it.
        """
        for needed in _NEEDS[self.stage]:
            if not is_complete(run[needed]):
                raise FileNotFoundError(
                    f"the {self.stage} stage needs a finished {needed} stage in {run[needed]}; run it first (--stages {needed})"
                )


def rounds_of(run: LabelRun) -> list[list[Phase]]:
    """Returns the phases of a run's stages, round by round."""
    chosen = [[phase for phase in phases if phase.stage in run.stages] for phases in _ROUNDS]
    return [phases for phases in chosen if phases]


def phase_named(name: str) -> Phase:
    """Returns the phase of that name, for a process that was given the name alone."""
    return next(phase for phases in _ROUNDS for phase in phases if phase.name == name)


def _make_masks(cfg: CfgNode, run: LabelRun, worker: Worker) -> None:
    mask_stage.make_mask_shards(cfg, run.images, run["masks"], worker, _samples_directory(cfg, run))


def _samples_directory(cfg: CfgNode, run: LabelRun) -> Path | None:
    """Returns where the mask stage leaves patches for the semantic stage; None where it needs no sample."""
    if not (run.sample_patches or "semantics" in run.stages):
        return None
    # A provider may be a function, which declares nothing.
    if not getattr(SEMANTIC_PROVIDER_REGISTRY.get(cfg.SEMANTICS.PROVIDER), "samples_patches", False):
        return None
    has_centroids = cfg.SEMANTICS.CENTROIDS or (run["semantics"] / CENTROIDS).is_file()
    return None if has_centroids else run["semantics"]


def _finish_panoptic(cfg: CfgNode, run: LabelRun) -> None:
    if not is_complete(run["panoptic"]):
        forget_outdated_names(run.output)
    panoptic_stage.finish_panoptic(cfg, run["masks"], run["clusters"], run["semantics"], run["panoptic"])


_ROUNDS = (
    (
        Phase(
            name="masks",
            stage="masks",
            make=_make_masks,
            finish=lambda cfg, run: mask_stage.finish_masks(cfg, run["masks"]),
        ),
    ),
    (
        Phase(
            name="cluster samples",
            stage="clusters",
            make=lambda cfg, run, worker: cluster_stage.sample_vectors(
                cfg, run.images, run["masks"], run["clusters"], worker
            ),
            finish=lambda cfg, run: cluster_stage.fit_centroids(cfg, run["masks"], run["clusters"]),
            has_result=lambda run: (run["clusters"] / CENTROIDS).is_file(),
        ),
        Phase(
            name="semantic samples",
            stage="semantics",
            make=lambda cfg, run, worker: semantic_stage.sample_patches(
                cfg, run.images, run["masks"], run["semantics"], worker
            ),
            finish=lambda cfg, run: semantic_stage.fit_semantics(cfg, run.images, run["masks"], run["semantics"]),
            has_result=lambda run: semantic_stage.is_fitted(run["semantics"]),
        ),
    ),
    (
        Phase(
            name="clusters",
            stage="clusters",
            make=lambda cfg, run, worker: cluster_stage.assign_clusters(
                cfg, run.images, run["masks"], run["clusters"], worker
            ),
            finish=lambda cfg, run: cluster_stage.finish_clusters(cfg, run.images, run["masks"], run["clusters"]),
        ),
        Phase(
            name="semantics",
            stage="semantics",
            make=lambda cfg, run, worker: semantic_stage.label_shards(
                cfg, run.images, run["masks"], run["semantics"], worker
            ),
            finish=lambda cfg, run: semantic_stage.finish_semantics(cfg, run.images, run["masks"], run["semantics"]),
        ),
    ),
    (
        Phase(
            name="panoptic",
            stage="panoptic",
            make=lambda cfg, run, worker: panoptic_stage.label_groups(
                cfg, run["masks"], run["clusters"], run["semantics"], run["panoptic"], worker
            ),
            finish=_finish_panoptic,
        ),
    ),
)
