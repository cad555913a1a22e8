"""The page that shows one run of the pipeline: scores beside those of its labels and of its upper bound, losses, images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog

from u2seg.config import setup_cfg
from u2seg.engine.end_to_end import CURVES, METRICS, TIMES, RunDirectories
from u2seg.evaluation import format_table
from u2seg.predictor import Predictor
from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import read_json
from u2seg.utils.progress import Progress
from u2seg.visualization.curves import training_curves
from u2seg.visualization.html_report import Row, Table, write_report
from u2seg.visualization.label_page import PanopticLabels, evenly_spaced, load_panoptic_labels
from u2seg.visualization.panoptic_drawing import contiguous_segments, draw_panoptic

PROTOCOL = "hungarian"  # clusters matched one to one, what is left over is wrong: the strictest
_MATCHED_NAMES = (
    f"The model knows clusters by number alone. Names of categories on predictions and pseudo-labels come from matching clusters to the "
    f"ground truth afterwards (protocol {PROTOCOL}); a cluster that was matched to nothing keeps its number."
)
CATEGORY_COLUMNS = ("PQ", "SQ", "RQ", "bbox_AP", "segm_AP", "IoU")
COLUMNS = (
    ("panoptic_seg", "PQ"),
    ("panoptic_seg", "SQ"),
    ("panoptic_seg", "RQ"),
    ("bbox", "AP"),
    ("bbox", "AP50"),
    ("segm", "AP"),
    ("segm", "AP50"),
    ("segm", "AR100"),
    ("sem_seg", "mIoU"),
    ("sem_seg", "pACC"),
)


def write_run_report(
    config_file: str,
    images: str | Path,
    output: str | Path,
    *,
    title: str,
    summary: str,
    opts: Sequence[str] = (),
    upper_bound: str | Path | None = None,
    num_rows: int = 12,
) -> Path:
    """Returns the page's path: tables, loss curves, and rows of image, pseudo-label, prediction and ground truth.

    Args:
        config_file: as for the run.
        images: as for the run: directory of training photos.
        output: as for the run.
        title: the page's heading.
        summary: what the run is, a paragraph.
        opts: as for the run.
        upper_bound: ``metrics.json`` of the same model trained on ground truth; a missing file leaves its row out.
        num_rows: images of the test set shown, evenly spaced; half as many of the training images.
    """
    directories = RunDirectories(Path(output))
    cfg = setup_cfg(config_file, [*opts, "MODEL.WEIGHTS", repr(str(directories.model / "model_final.pth"))])
    tables, label_map = [], None
    if cfg.DATASETS.TEST:  # without ground truth there are no scores, and clusters keep their numbers
        test_set = cfg.DATASETS.TEST[0]
        label_map = directories.model / "inference" / test_set / f"label_map_{PROTOCOL}.json"
        tables = [
            comparison_table(directories, test_set, upper_bound),
            category_table(directories, test_set),
            _full_table(directories, test_set),
        ]
        summary = f"{summary}\n\n{_MATCHED_NAMES}"
    predictor = Predictor(cfg, label_map=label_map)
    return write_report(
        directories.report,
        title=title,
        summary=summary,
        facts={f"seconds for {step}": seconds for step, seconds in read_json(directories.root / TIMES).items()},
        tables=tables,
        curves=training_curves(directories.model / CURVES),
        rows=_rows(cfg.DATASETS.TEST, predictor, Path(images), directories, num_rows),
    )


def comparison_rows(directories: RunDirectories, upper_bound: str | Path | None) -> dict[str, dict]:
    """Returns the scores, as ``metrics.json`` has them, of the run's labels, its model and, where it was run, the upper bound."""
    named = {
        "pseudo-labels of the same images": directories.test_label_scores / METRICS,
        "model trained on pseudo-labels": directories.root / METRICS,
        "same model trained on ground truth (upper bound)": upper_bound,
    }
    return {name: read_json(path) for name, path in named.items() if path and Path(path).is_file()}


def comparison_table(directories: RunDirectories, test_set: str, upper_bound: str | Path | None) -> Table:
    """Returns the table that holds the run's scores beside those of its labels and of its upper bound."""
    rows = [
        [name, *(scores.get(task, {}).get(PROTOCOL, {}).get(metric) for task, metric in COLUMNS)]
        for name, scores in comparison_rows(directories, upper_bound).items()
    ]
    return Table(
        title="Scores",
        header=["", *(metric.replace("_", " ") for _, metric in COLUMNS)],
        rows=rows,
        note=f"Dataset {test_set}; protocol {PROTOCOL}, fitted on the scored images themselves, as the literature does.",
    )


def category_table(directories: RunDirectories, test_set: str) -> Table:
    """Returns the model's scores by category, the best first; those that score 0 are not left to the mean, but named."""
    path = directories.model / "inference" / test_set / "per_category.json"
    scores = read_json(path).get(PROTOCOL, {})
    # A detector without ground truth for stuff has AP alone.
    first = "PQ" if any("PQ" in row for row in scores.values()) else "segm_AP"
    ordered = sorted(scores.items(), key=lambda item: (-item[1].get(first, -1.0), item[0]))
    missed = [name for name, row in ordered if row.get(first) == 0]
    note = f"Dataset {test_set}; protocol {PROTOCOL}. A category without ground truth there is left out, an empty cell is not defined."
    if missed:
        note += f" {len(missed)} of {len(ordered)} categories have {first} 0: {', '.join(missed)}."
    return Table(
        title="The model by category",
        header=["", *(name.replace("_", " ") for name in CATEGORY_COLUMNS)],
        rows=[[name, *(row.get(metric) for metric in CATEGORY_COLUMNS)] for name, row in ordered],
        note=note,
    )


def _full_table(directories: RunDirectories, test_set: str) -> Table:
    return Table(
        title="The model under every protocol",
        text=format_table(read_json(directories.root / METRICS)),
        note=f"Dataset {test_set}; label maps fitted on the scored images themselves.",
    )


@dataclass(frozen=True)
class _Shown:
    """An image on the page: its row, and how well the prediction agrees with the reference, 0..1."""

    row: Row
    agreement: float


def segment_agreement(reference_map: np.ndarray, predicted_map: np.ndarray) -> float:
    """Returns how well a panoptic map's segments are found again in another: 0 not at all, 1 exactly; classes do not count.

    It is the mean, weighted by area, of each reference segment's best IoU with a predicted segment; 1 where there is no reference
    segment.

    Args:
        reference_map: int (H, W), segment ids, 0 void; void pixels are left out.
        predicted_map: int (H, W), segment ids, 0 void.
    """
    known = reference_map != 0
    if not known.any():
        return 1.0
    references, reference = np.unique(reference_map[known], return_inverse=True)
    predictions, predicted = np.unique(predicted_map[known], return_inverse=True)
    counts = np.zeros((len(references), len(predictions)), np.int64)
    np.add.at(counts, (reference, predicted), 1)
    areas = counts.sum(1)
    unions = areas[:, None] + counts.sum(0)[None] - counts
    ious = np.where(predictions[None] != 0, counts / unions, 0.0)
    return float((ious.max(1) * areas).sum() / areas.sum())


def _rows(
    test_sets: Sequence[str], predictor: Predictor, images: Path, directories: RunDirectories, num_rows: int
) -> list[Row]:
    """Returns the rows of the page: the best and the worst image beside each other, then all."""
    labels = load_panoptic_labels(directories.labels, images)
    gt = _panoptic_gt(test_sets[0]) if test_sets else None
    training = evenly_spaced(labels.annotations, num_rows // 2 if gt else num_rows)
    tested = evenly_spaced(gt.annotations, num_rows) if gt else []
    with Progress(len(tested) + len(training), "page") as bar:
        shown = [_test_row(annotation, gt, predictor, directories) for annotation in bar.track(tested) if gt]
        shown_training = [_training_row(annotation, labels, predictor) for annotation in bar.track(training)]
    hero = _best_and_worst(shown or shown_training, "ground truth" if shown else "pseudo-label")
    return [*hero, *(item.row for item in (*shown, *shown_training))]


def _best_and_worst(shown: Sequence[_Shown], reference: str) -> list[Row]:
    if len(shown) < 2:
        return []
    ordered = sorted(shown, key=lambda item: item.agreement)
    images = {}
    for name, item in (("best", ordered[-1]), ("worst", ordered[0])):
        for caption, image in item.row.images.items():
            if caption == "image" or caption.startswith("prediction"):
                images[f"{name}, {caption} (agreement {item.agreement:.2f})"] = image
    return [
        Row(
            f"The best and the worst of the {len(shown)} images below, by how well the segments of the {reference} are found again",
            images,
        )
    ]


def _training_row(annotation: dict, labels: PanopticLabels, predictor: Predictor) -> _Shown:
    image_rgb, label_map = labels.read(annotation)
    prediction = predictor(image_rgb)
    row = Row(
        f"training image {labels.file_names[annotation['image_id']]}",
        {
            "image": image_rgb,
            "pseudo-label": _draw_labels(labels, annotation, predictor),
            "prediction": predictor.draw(image_rgb, prediction),
        },
    )
    return _Shown(row, segment_agreement(label_map, prediction.panoptic_map))


def _test_row(annotation: dict, gt: PanopticLabels, predictor: Predictor, directories: RunDirectories) -> _Shown:
    has_own_labels = directories.test_labels.is_dir()
    labels = load_panoptic_labels(directories.test_labels if has_own_labels else directories.labels, gt.image_directory)
    # By file name: a ground truth numbers its images as it likes.
    label_of = {labels.file_names[row["image_id"]]: row for row in labels.annotations}
    name = gt.file_names[annotation["image_id"]]
    image_rgb, gt_map = gt.read(annotation)
    images = {"image": image_rgb}
    if name in label_of:
        images["pseudo-label, names by matching"] = _draw_labels(labels, label_of[name], predictor)
    prediction = predictor(image_rgb)
    images["prediction, names by matching"] = predictor.draw(image_rgb, prediction)
    images["ground truth"] = _draw(image_rgb, gt_map, annotation, gt)
    return _Shown(Row(f"test image {name}", images), segment_agreement(gt_map, prediction.panoptic_map))


def _panoptic_gt(test_set: str) -> PanopticLabels | None:
    """Returns a test set's panoptic ground truth; None where it has none."""
    metadata = MetadataCatalog.get(test_set)
    if not metadata.get("panoptic_json"):
        return None
    content = read_json(metadata.panoptic_json)
    return PanopticLabels(
        Path(metadata.panoptic_root),
        Path(metadata.image_root),
        {image["id"]: image["file_name"] for image in content["images"]},
        sorted(content["annotations"], key=lambda annotation: annotation["image_id"]),
        LabelSpace.of_coco_categories(content["categories"]),
    )


def _draw_labels(labels: PanopticLabels, annotation: dict, predictor: Predictor) -> np.ndarray:
    """Returns an image with its pseudo-labels, clusters named and colored as the predictor does."""
    image_rgb, panoptic_map = labels.read(annotation)
    segments = contiguous_segments(annotation["segments_info"], labels.space)
    return predictor.draw_segments(image_rgb, panoptic_map, segments)


def _draw(image_rgb: np.ndarray, panoptic_map: np.ndarray, annotation: dict, labels: PanopticLabels) -> np.ndarray:
    segments = contiguous_segments(annotation["segments_info"], labels.space)
    return draw_panoptic(
        image_rgb, panoptic_map, segments, labels.space.thing_names, ["things", *labels.space.stuff_names]
    )
