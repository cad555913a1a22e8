"""Self-training: a model's own confident predictions join the pseudo-labels that it was trained on, and training goes on.

Source: CutLER, section 3.3 and its README (thresholds, IoU rule); U2Seg, figure 2, which draws the loop without describing it.
"""

import logging
from pathlib import Path

from detectron2.config import CfgNode

from u2seg.engine import training_record
from u2seg.engine.trainer import train_and_record
from u2seg.modeling.build import complete_config
from u2seg.pseudo_labels.relabel import relabel

logger = logging.getLogger(__name__)


def self_train(cfg: CfgNode, output: str | Path, rounds: int) -> Path:
    """Returns the last round's checkpoint, after ``rounds`` rounds of labeling and training.

    ``output/round-N/labels`` holds the labels of round N in the format of :func:`u2seg.pseudo_labels.pipeline.make_pseudo_labels`, and
    ``output/round-N/model`` its training. Killed and called again, it goes on inside the round where it was.

    Args:
        cfg: complete; its first training set is one of format ``pseudo_labels``, ``MODEL.WEIGHTS`` the model trained on it, and
            ``SOLVER`` the schedule of one round.
        output: directory to fill.
        rounds: at least 1.

    Raises:
        ValueError: the training set is of another format, or there is no model to start from.
        u2seg.utils.manifest.StageMismatchError: ``output`` was made with other settings.
        u2seg.engine.training_record.TrainingMismatchError: a round's model was trained with other settings.
    """
    name = cfg.DATASETS.TRAIN[0]
    description = cfg.DATASETS.BY_PATH.get(name)
    if description is None or description.FORMAT != "pseudo_labels" or len(cfg.DATASETS.TRAIN) != 1:
        raise ValueError(
            "self-training needs one training set of format pseudo_labels in DATASETS.BY_PATH, got "
            f"{', '.join(cfg.DATASETS.TRAIN)}{'' if description is None else f' ({description.FORMAT})'}"
        )
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("self-training starts from a trained model: MODEL.WEIGHTS FILE")
    cfg = cfg.clone()
    for number in range(1, rounds + 1):
        directory = Path(output) / f"round-{number}"
        thresholds = cfg.SELF_TRAINING.SCORE_THRESH
        labels = relabel(cfg, directory / "labels", float(thresholds[min(number, len(thresholds)) - 1]))
        cfg.defrost()
        cfg.DATASETS.BY_PATH[name].ROOT = str(labels)
        cfg.OUTPUT_DIR = str(directory / "model")
        complete_config(cfg)
        cfg.freeze()
        _train(cfg)
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(directory / "model" / "model_final.pth")
    return Path(cfg.MODEL.WEIGHTS)


def _train(cfg: CfgNode) -> None:
    training_record.refuse_other_training(cfg)
    if training_record.is_finished(cfg):
        logger.info(f"{cfg.OUTPUT_DIR} is trained and scored already")
        return
    train_and_record(cfg, resume=True)
