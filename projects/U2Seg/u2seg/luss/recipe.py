"""PASS from images to scores: pretraining, pixel attention, clusters, pseudo-labels, fine-tuning; each stage once."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import launch

from u2seg.config import setup_cfg
from u2seg.engine import continue_training
from u2seg.luss.clustering import cluster_images
from u2seg.luss.pixel_labels import write_pseudo_labels
from u2seg.modeling import complete_config
from u2seg.utils.kmeans import CENTROIDS

logger = logging.getLogger(__name__)

STAGES = ("pretrain", "attention", "clusters", "labels", "finetune")
FINAL = "model_final.pth"


@dataclass(frozen=True)
class Run:
    """One run of the recipe.

    Attributes:
        configs: beginning of the configurations' names, for example ``LUSS/pass_R18_s50``; ``_pretrain.yaml``,
            ``_attention.yaml`` and ``_finetune.yaml`` follow.
        output: directory of all stages.
        opts: KEY VALUE ... for every stage.
        num_gpus: processes of the training stages, one a GPU; without a GPU the CPU is used.
    """

    configs: str
    output: Path
    opts: tuple = ()
    num_gpus: int = 1

    def directory(self, stage: str) -> Path:
        """Returns the directory of a stage."""
        return self.output / stage

    def weights(self, stage: str) -> Path:
        """Returns the final checkpoint of a training stage."""
        return self.directory(stage) / FINAL


def run_pass(run: Run, stages: tuple[str, ...] = STAGES) -> Path:
    """Runs the stages in order, skipping those that are done and going on with one that was interrupted.

    Args:
        run: what to run.
        stages: those wanted, of ``STAGES``.

    Returns:
        The run's directory: ``pretrain/``, ``attention/``, ``clusters/``, ``labels/``, ``finetune/``.

    Raises:
        FileNotFoundError: a stage that was left out has not run before.
        ValueError: an unknown stage.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"unknown stages {', '.join(unknown)}; there are {', '.join(STAGES)}")
    for stage in STAGES:
        if stage in stages:
            logger.info("%s: %s", stage, run.directory(stage))
            _STEPS[stage](run)
    return run.output


def _pretrain(run: Run) -> None:
    _train(run, "pretrain", ())


def _attention(run: Run) -> None:
    _train(run, "attention", ("MODEL.WEIGHTS", str(_needed(run.weights("pretrain")))))


def _clusters(run: Run) -> None:
    cluster_images(_attention_cfg(run), run.directory("clusters"))


def _labels(run: Run) -> None:
    centroids = _needed(run.directory("clusters") / CENTROIDS)
    write_pseudo_labels(_attention_cfg(run, "LUSS.CENTROIDS", str(centroids)), run.directory("labels"))


def _finetune(run: Run) -> None:
    labels = _needed(run.directory("labels"))
    # The images are those that were labeled, wherever the fine-tuning's own configuration looks for them.
    images = MetadataCatalog.get(_attention_cfg(run).DATASETS.TRAIN[0]).image_root
    key = "DATASETS.BY_PATH.pass_labels"
    # Fine-tuning starts from the pretrained network, not from the attention stage [LUSS].
    _train(
        run,
        "finetune",
        (
            *("MODEL.WEIGHTS", str(_needed(run.weights("pretrain")))),
            # Quoted, since a directory called 2024 is not a number.
            *(f"{key}.ROOT", repr(str(labels)), f"{key}.IMAGES", repr(str(images))),
        ),
    )


_STEPS: dict[str, Callable[[Run], None]] = {
    "pretrain": _pretrain,
    "attention": _attention,
    "clusters": _clusters,
    "labels": _labels,
    "finetune": _finetune,
}


def _train(run: Run, stage: str, opts: tuple) -> None:
    """Trains a stage, or goes on with its last checkpoint; one that is trained and scored is not repeated."""
    opts = (*run.opts, *opts, "OUTPUT_DIR", str(run.directory(stage)))
    try:
        launch(continue_training, run.num_gpus, dist_url="auto", args=(f"{run.configs}_{stage}.yaml", opts))
    finally:
        _close_logs()


def _close_logs() -> None:
    """Takes away the handlers that Detectron2 set up for one run's directory, or the next stage's log would go there too."""
    for name in ("detectron2", "fvcore", "u2seg"):
        one = logging.getLogger(name)
        one.propagate = True
        for handler in list(one.handlers):
            one.removeHandler(handler)


def _attention_cfg(run: Run, *opts: str) -> CfgNode:
    cfg = setup_cfg(
        f"{run.configs}_attention.yaml", [*run.opts, "MODEL.WEIGHTS", str(_needed(run.weights("attention"))), *opts]
    )
    return complete_config(cfg)


def _needed(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the earlier stages first ({', '.join(STAGES)})")
    return path
