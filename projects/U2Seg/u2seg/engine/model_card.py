"""The model card of a training: data, recipe, scores and limits, from the files of its directory."""

import json
from pathlib import Path

from u2seg.checkpoint.checkpointer import iterations_behind, last_checkpoint
from u2seg.config.config_file import read_config_file
from u2seg.evaluation.score_table import format_table
from u2seg.utils.files import read_json

# Formats whose files hold no human label: photos alone, and labels that were made from photos alone.
UNLABELED_FORMATS = ("images", "pseudo_labels")
KNN_ACCURACY = "pass/knn_accuracy"

_CONFIG, _RUN, _TRAINING = "config.yaml", "run.json", "training.json"


def model_card(run_directory: str | Path, name: str, *, license_id: str = "other") -> str:
    """Returns the text of a model card, Markdown with the Hub's front matter.

    Everything comes from the files that a training leaves behind; no path of this machine is in the card.

    Args:
        run_directory: ``OUTPUT_DIR`` of a training, with ``config.yaml``; the scores are those of ``inference/*/metrics.json``, and
            for pretraining the last k-NN accuracy.
        name: of the model, the card's title.
        license_id: license of the weights, as the Hub spells it, for example "cc-by-4.0".

    Raises:
        FileNotFoundError: the directory holds no training.
    """
    run = Path(run_directory)
    if not (run / _CONFIG).is_file():
        raise FileNotFoundError(
            f"{run} holds no training: expected its {_CONFIG}; give the OUTPUT_DIR of `u2seg train`"
        )
    cfg = read_config_file(run / _CONFIG)
    sections = [
        _front_matter(cfg, license_id),
        f"# {name}\n\n{_summary(cfg)}",
        f"## Data\n\n{_data(cfg)}",
        f"## Recipe\n\n{_recipe(cfg, run)}",
        f"## Scores\n\n{_scores(run)}",
        f"## Limits\n\n{_limits(cfg)}",
        f"## Use\n\n{_use(cfg)}",
    ]
    return "\n\n".join(sections) + "\n"


def is_detector(cfg: dict) -> bool:
    """Returns whether a configuration describes a model that segments images, and not the pretraining of a backbone.

    Args:
        cfg: the values of a run's ``config.yaml``.
    """
    return bool(cfg["MODEL"]["MASK_ON"]) and not cfg["MODEL"]["META_ARCHITECTURE"].endswith("Pretrainer")


def _front_matter(cfg: dict, license_id: str) -> str:
    task = "image-segmentation" if is_detector(cfg) else "image-feature-extraction"
    tags = ["u2seg", *(["unsupervised"] if not _labeled_sets(cfg) else [])]
    lines = [f"license: {license_id}", "library_name: detectron2", f"pipeline_tag: {task}", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


def _summary(cfg: dict) -> str:
    kind = "An image segmentation model" if is_detector(cfg) else "A backbone for image features"
    labeled = _labeled_sets(cfg)
    labels = "without any human label" if not labeled else f"with the labels of {', '.join(labeled)}"
    architecture, backbone = cfg["MODEL"]["META_ARCHITECTURE"], cfg["MODEL"]["BACKBONE"]["NAME"]
    return f"{kind} (`{architecture}`, `{backbone}`), trained {labels} by U2Seg for Detectron2."


def _labeled_sets(cfg: dict) -> list[str]:
    """Returns the training sets whose labels may come from people: all that are not described as unlabeled."""
    return [name for name in cfg["DATASETS"]["TRAIN"] if _format_of(cfg, name) not in UNLABELED_FORMATS]


def _format_of(cfg: dict, name: str) -> str:
    return cfg["DATASETS"].get("BY_PATH", {}).get(name, {}).get("FORMAT", "registered elsewhere")


def _data(cfg: dict) -> str:
    rows = [f"- `{name}` (format `{_format_of(cfg, name)}`)" for name in cfg["DATASETS"]["TRAIN"]]
    return "Trained on:\n\n" + "\n".join(rows or ["- no dataset is named"])


def _recipe(cfg: dict, run: Path) -> str:
    solver = cfg["SOLVER"]
    made_with = read_json(run / _RUN) if (run / _RUN).is_file() else {}
    weights = Path(str(cfg["MODEL"]["WEIGHTS"])).name
    rows = {
        "start": f"`{weights}`" if weights else "random weights",
        "iterations": _iterations(solver["MAX_ITER"], run),
        "images in a batch": solver["IMS_PER_BATCH"],
        "optimizer": f"{solver['OPTIMIZER']}, learning rate {solver['BASE_LR']:g}",
        "averaged weights": f"decay {solver['EMA']['DECAY']:g}" if solver["EMA"]["ENABLED"] else "no",
        "seed": made_with.get("seed", cfg["SEED"]),
        "versions": ", ".join(f"{key} {made_with[key]}" for key in ("u2seg", "torch") if key in made_with) or "unknown",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())])


def _iterations(planned: int, run: Path) -> str:
    """Returns how long a training took, or how far its last checkpoint had come."""
    if (run / _TRAINING).is_file() and read_json(run / _TRAINING).get("finished"):
        return str(planned)
    checkpoint = last_checkpoint(run)
    iterations = iterations_behind(checkpoint) if checkpoint else None
    done = f"{iterations} of {planned}" if iterations else f"{planned} planned"
    return f"{done}; this training has not finished"


def _scores(run: Path) -> str:
    blocks = []
    for path in sorted(run.glob("inference/*/metrics.json")):
        results = read_json(path)
        record = results.get("record", {})
        intervals = path.parent / "intervals.json"
        heading = (
            f"`{record.get('dataset', path.parent.name)}`: {record.get('images', 'unknown number of')} images, label maps fitted on "
            f"{_without_path(record.get('fitted_on', 'an unknown dataset'))}. Percentages."
        )
        blocks.append(f"{heading}\n\n{format_table(results, read_json(intervals) if intervals.is_file() else None)}")
    accuracy = _last_value(run / "metrics.json", KNN_ACCURACY)
    if accuracy is not None:
        blocks.append(f"k-NN accuracy of image features, monitored while training: {100 * accuracy:.1f} %.")
    return "\n\n".join(blocks) or "Not scored."


def _without_path(source: str) -> str:
    """Returns where a label map was fitted, without the directory in parentheses that the record may name."""
    start = source.find(" (")
    return source[:start] if start >= 0 and "/" in source[start:] else source


def _last_value(path: Path, key: str) -> float | None:
    """Returns the last value that a training wrote for a key, from Detectron2's lines of JSON; None where it wrote none."""
    found = None
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        found = json.loads(line).get(key, found)
    return found


def _limits(cfg: dict) -> str:
    limits = [
        "The scores above hold for those datasets and protocols. Score the model on your own images before you rely on it."
    ]
    if is_detector(cfg):
        limits.append(
            "The model predicts clusters, which have no names. A label map, fitted on some images with ground truth, gives them names."
        )
    if not _labeled_sets(cfg):
        limits.append(
            "What it takes for an object follows from the appearance of the training images alone. "
            "Parts and groups of objects are often taken for objects."
        )
    limits.append("The training images are not part of this model, and their rights remain with their owners.")
    return "\n".join(f"- {limit}" for limit in limits)


def _use(cfg: dict) -> str:
    if is_detector(cfg):
        command = "u2seg predict PHOTOS --config-file config.yaml --output predictions MODEL.WEIGHTS model.safetensors"
        return f"```bash\n{command}\n```"
    return (
        "As patch features for pseudo-labels:\n\n```bash\n"
        "u2seg labels PHOTOS --config-file quick_schedules/photos.yaml --output labels FEATURES.NAME ResNetFeatures \\\n"
        "  FEATURES.RESNET.CONFIG_FILE config.yaml FEATURES.RESNET.WEIGHTS model.safetensors \\\n"
        f"  FEATURES.RESNET.OUT_FEATURE {cfg['MODEL']['RESNETS']['OUT_FEATURES'][-1]}\n```"
    )
