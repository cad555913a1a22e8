"""The page that shows one run of the chain: scores beside those of its labels and of its upper bound, losses, pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from u2seg.chain import CURVES, METRICS, TIMES, ChainFolders
from u2seg.config import setup_cfg
from u2seg.evaluation import format_table
from u2seg.inference import Predictor
from u2seg.stages import read_json
from u2seg.visualization.curves import training_curves
from u2seg.visualization.labels import PanopticLabels, evenly_spaced, load_panoptic_labels
from u2seg.visualization.panoptic import contiguous_segments, draw_panoptic
from u2seg.visualization.report import Row, Table, write_report

PROTOCOL = "hungarian"  # clusters matched one to one, what is left over is wrong: the strictest
COLUMNS = (
    ("panoptic", "PQ"),
    ("panoptic", "SQ"),
    ("panoptic", "RQ"),
    ("instance", "box_AP"),
    ("instance", "box_AP50"),
    ("instance", "mask_AP"),
    ("instance", "mask_AP50"),
    ("instance", "mask_AR100"),
    ("semantic", "mIoU"),
    ("semantic", "pACC"),
)


def write_chain_report(
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
    """Returns the page's path: tables, loss curves, and rows of picture, pseudo-label, prediction and ground truth.

    Args:
        config_file: as for the run.
        images: as for the run: folder of training photos.
        output: as for the run.
        title: the page's heading.
        summary: what the run is, a paragraph.
        opts: as for the run.
        upper_bound: ``metrics.json`` of the same model trained on ground truth; a missing file leaves its row out.
        num_rows: pictures of the test set shown, evenly spaced; half as many of the training pictures.
    """
    folders = ChainFolders(Path(output))
    cfg = setup_cfg(config_file, [*opts, "MODEL.WEIGHTS", repr(str(folders.model / "model_final.pth"))])
    tables, label_map = [], None
    if cfg.DATASETS.TEST:  # without ground truth there are no scores, and clusters keep their numbers
        test_set = cfg.DATASETS.TEST[0]
        label_map = folders.model / "inference" / test_set / f"label_map_{PROTOCOL}.json"
        tables = [comparison_table(folders, test_set, upper_bound), _full_table(folders, test_set)]
    predictor = Predictor(cfg, label_map=label_map)
    return write_report(
        folders.report,
        title=title,
        summary=summary,
        facts={f"seconds for {step}": seconds for step, seconds in read_json(folders.root / TIMES).items()},
        tables=tables,
        curves=training_curves(folders.model / CURVES),
        rows=_rows(cfg.DATASETS.TEST, predictor, Path(images), folders, num_rows),
    )


def comparison_rows(folders: ChainFolders, upper_bound: str | Path | None) -> dict[str, dict]:
    """Returns the scores, as ``metrics.json`` has them, of the run's labels, its model and, where it was run, the upper bound."""
    named = {
        "pseudo-labels of the same pictures": folders.test_label_scores / METRICS,
        "model trained on pseudo-labels": folders.root / METRICS,
        "same model trained on ground truth (upper bound)": upper_bound,
    }
    return {name: read_json(path) for name, path in named.items() if path and Path(path).is_file()}


def comparison_table(folders: ChainFolders, test_set: str, upper_bound: str | Path | None) -> Table:
    """Returns the table that holds the run's scores beside those of its labels and of its upper bound."""
    rows = [
        [name, *(scores[task].get(PROTOCOL, {}).get(metric) for task, metric in COLUMNS)]
        for name, scores in comparison_rows(folders, upper_bound).items()
    ]
    return Table(
        title="Scores",
        header=["", *(metric.replace("_", " ") for _, metric in COLUMNS)],
        rows=rows,
        note=f"Data set {test_set}; protocol {PROTOCOL}, fitted on the scored pictures themselves, as the literature does.",
    )


def _full_table(folders: ChainFolders, test_set: str) -> Table:
    return Table(
        title="The model under every protocol",
        text=format_table(read_json(folders.root / METRICS)),
        note=f"Data set {test_set}; label maps fitted on the scored pictures themselves.",
    )


def _rows(
    test_sets: Sequence[str], predictor: Predictor, images: Path, folders: ChainFolders, num_rows: int
) -> Iterator[Row]:
    if test_sets:
        yield from _test_rows(test_sets[0], predictor, folders, num_rows)
    labels = load_panoptic_labels(folders.labels, images)
    for annotation in evenly_spaced(labels.annotations, num_rows // 2 if test_sets else num_rows):
        image_rgb, _ = labels.read(annotation)
        yield Row(
            f"training picture {labels.file_names[annotation['image_id']]}",
            {
                "picture": image_rgb,
                "pseudo-label": _draw_labels(labels, annotation, predictor),
                "prediction": predictor.draw(image_rgb, predictor(image_rgb)),
            },
        )


def _test_rows(test_set: str, predictor: Predictor, folders: ChainFolders, num_rows: int) -> Iterator[Row]:
    from detectron2.data import MetadataCatalog

    truth_set = MetadataCatalog.get(test_set)
    truth = load_panoptic_labels(truth_set.panoptic_json, truth_set.image_root)
    labels = load_panoptic_labels(folders.test_labels, truth_set.image_root)
    # By file name: a ground truth numbers its pictures as it likes.
    label_of = {labels.file_names[annotation["image_id"]]: annotation for annotation in labels.annotations}
    for annotation in evenly_spaced(truth.annotations, num_rows):
        name = truth.file_names[annotation["image_id"]]
        image_rgb, truth_map = truth.read(annotation)
        pictures = {"picture": image_rgb}
        if name in label_of:
            pictures["pseudo-label"] = _draw_labels(labels, label_of[name], predictor)
        pictures["prediction"] = predictor.draw(image_rgb, predictor(image_rgb))
        pictures["ground truth"] = _draw(image_rgb, truth_map, annotation, truth)
        yield Row(f"test picture {name}", pictures)


def _draw_labels(labels: PanopticLabels, annotation: dict, predictor: Predictor) -> np.ndarray:
    """Returns a picture with its pseudo-labels, clusters named and coloured as the predictor does."""
    image_rgb, panoptic_map = labels.read(annotation)
    segments = contiguous_segments(annotation["segments_info"], labels.space)
    return predictor.draw_segments(image_rgb, panoptic_map, segments)


def _draw(image_rgb: np.ndarray, panoptic_map: np.ndarray, annotation: dict, labels: PanopticLabels) -> np.ndarray:
    segments = contiguous_segments(annotation["segments_info"], labels.space)
    return draw_panoptic(
        image_rgb, panoptic_map, segments, labels.space.thing_names, ["things", *labels.space.stuff_names]
    )
