"""What of a label run workers share, and in which order: phases, each a function of a worker, and one that closes it.

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
from u2seg.pseudo_labels.sharding import Worker
from u2seg.utils.image_io import ImageSource
from u2seg.utils.kmeans import CENTROIDS
from u2seg.utils.manifest import is_complete

STAGES = ("masks", "clusters", "semantics", "panoptic")


@dataclass(frozen=True)
class LabelRun:
    """Where a run reads and writes.

    Attributes:
        images: source of the images.
        output: directory of the labels.
        stages: which are run, a subset of ``STAGES``.
        max_failures: share of unreadable images, 0..1, that is tolerated; None: ``MASKS.MAX_FAILURES``.
        sample_patches: whether the mask stage samples patches for the semantic stage, although that is not run here.
    """

    images: ImageSource
    output: Path
    stages: tuple[str, ...] = STAGES
    max_failures: float | None = None
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
        is_done: whether it was finished.
        needs: stages that must be finished before.
    """

    name: str
    stage: str
    make: Callable[[CfgNode, LabelRun, Worker], None]
    finish: Callable[[CfgNode, LabelRun], None]
    is_done: Callable[[LabelRun], bool]
    needs: tuple[str, ...] = ()

    def check_inputs(self, run: LabelRun) -> None:
        """Checks that the stages which the phase needs are there.

        Raises:
            FileNotFoundError: one is missing; the message names it.
        """
        for needed in self.needs:
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
    is_next = run.sample_patches or "semantics" in run.stages
    provider = SEMANTIC_PROVIDER_REGISTRY.get(cfg.SEMANTICS.PROVIDER) if is_next else None
    wanted = getattr(provider, "samples_patches", False) and not cfg.SEMANTICS.CENTROIDS
    known = (run["semantics"] / CENTROIDS).is_file()
    samples = run["semantics"] if wanted and not known else None
    mask_stage.make_mask_shards(cfg, run.images, run["masks"], worker, samples)


def _finish_masks(cfg: CfgNode, run: LabelRun) -> None:
    mask_stage.finish_masks(cfg, run["masks"], max_failures=run.max_failures)


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
            finish=_finish_masks,
            is_done=lambda run: is_complete(run["masks"]),
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
            is_done=lambda run: (run["clusters"] / CENTROIDS).is_file(),
            needs=("masks",),
        ),
        Phase(
            name="semantic samples",
            stage="semantics",
            make=lambda cfg, run, worker: semantic_stage.sample_patches(
                cfg, run.images, run["masks"], run["semantics"], worker
            ),
            finish=lambda cfg, run: semantic_stage.fit_semantics(cfg, run.images, run["masks"], run["semantics"]),
            is_done=lambda run: semantic_stage.is_fitted(run["semantics"]),
            needs=("masks",),
        ),
    ),
    (
        Phase(
            name="clusters",
            stage="clusters",
            make=lambda cfg, run, worker: cluster_stage.assign_clusters(
                cfg, run.images, run["masks"], run["clusters"], worker
            ),
            finish=lambda cfg, run: cluster_stage.finish_clusters(
                cfg, run.images, run["masks"], run["clusters"], max_failures=run.max_failures
            ),
            is_done=lambda run: is_complete(run["clusters"]),
            needs=("masks",),
        ),
        Phase(
            name="semantics",
            stage="semantics",
            make=lambda cfg, run, worker: semantic_stage.label_shards(
                cfg, run.images, run["masks"], run["semantics"], worker
            ),
            finish=lambda cfg, run: semantic_stage.finish_semantics(
                cfg, run.images, run["masks"], run["semantics"], max_failures=run.max_failures
            ),
            is_done=lambda run: is_complete(run["semantics"]),
            needs=("masks",),
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
            is_done=lambda run: is_complete(run["panoptic"]),
            needs=("masks", "clusters", "semantics"),
        ),
    ),
)
