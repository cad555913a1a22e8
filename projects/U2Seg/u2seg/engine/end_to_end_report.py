"""The page that shows one run of the pipeline: scores beside those of its labels and of its upper bound, losses, images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from u2seg.config import setup_cfg
from u2seg.engine.end_to_end import CURVES, METRICS, TIMES, RunDirectories
from u2seg.evaluation import format_table
from u2seg.predictor import Predictor
from u2seg.utils.files import read_json
from u2seg.visualization.curves import training_curves
from u2seg.visualization.html_report import Row, Table, write_report
from u2seg.visualization.label_page import PanopticLabels, evenly_spaced, load_panoptic_labels
from u2seg.visualization.panoptic_drawing import contiguous_segments, draw_panoptic

PROTOCOL = "hungarian"  # clusters matched one to one, what is left over is wrong: the strictest
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
        tables = [comparison_table(directories, test_set, upper_bound), _full_table(directories, test_set)]
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
        [name, *(scores[task].get(PROTOCOL, {}).get(metric) for task, metric in COLUMNS)]
        for name, scores in comparison_rows(directories, upper_bound).items()
    ]
    return Table(
        title="Scores",
        header=["", *(metric.replace("_", " ") for _, metric in COLUMNS)],
        rows=rows,
        note=f"Dataset {test_set}; protocol {PROTOCOL}, fitted on the scored images themselves, as the literature does.",
    )


def _full_table(directories: RunDirectories, test_set: str) -> Table:
    return Table(
        title="The model under every protocol",
        text=format_table(read_json(directories.root / METRICS)),
        note=f"Dataset {test_set}; label maps fitted on the scored images themselves.",
    )


def _rows(
    test_sets: Sequence[str], predictor: Predictor, images: Path, directories: RunDirectories, num_rows: int
) -> Iterator[Row]:
    if test_sets:
        yield from _test_rows(test_sets[0], predictor, directories, num_rows)
    labels = load_panoptic_labels(directories.labels, images)
    for annotation in evenly_spaced(labels.annotations, num_rows // 2 if test_sets else num_rows):
        image_rgb, _ = labels.read(annotation)
        yield Row(
            f"training image {labels.file_names[annotation['image_id']]}",
            {
                "image": image_rgb,
                "pseudo-label": _draw_labels(labels, annotation, predictor),
                "prediction": predictor.draw(image_rgb, predictor(image_rgb)),
            },
        )


def _test_rows(test_set: str, predictor: Predictor, directories: RunDirectories, num_rows: int) -> Iterator[Row]:
    from detectron2.data import MetadataCatalog

    gt_set = MetadataCatalog.get(test_set)
    gt = load_panoptic_labels(gt_set.panoptic_json, gt_set.image_root)
    labels = load_panoptic_labels(directories.test_labels, gt_set.image_root)
    # By file name: a ground truth numbers its images as it likes.
    label_of = {labels.file_names[annotation["image_id"]]: annotation for annotation in labels.annotations}
    for annotation in evenly_spaced(gt.annotations, num_rows):
        name = gt.file_names[annotation["image_id"]]
        image_rgb, gt_map = gt.read(annotation)
        images = {"image": image_rgb}
        if name in label_of:
            images["pseudo-label"] = _draw_labels(labels, label_of[name], predictor)
        images["prediction"] = predictor.draw(image_rgb, predictor(image_rgb))
        images["ground truth"] = _draw(image_rgb, gt_map, annotation, gt)
        yield Row(f"test image {name}", images)


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
