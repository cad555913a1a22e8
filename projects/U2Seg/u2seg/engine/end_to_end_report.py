"""The page that shows one run of the pipeline: scores beside those of its labels and of its upper bound, losses, images."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog

from u2seg.config import setup_cfg
from u2seg.engine.end_to_end import CURVES, METRICS, STEPS, TIMES, TRAINING, RunDirectories
from u2seg.engine.photo_run.run_budget import PAGE_ROWS
from u2seg.evaluation import format_table
from u2seg.evaluation.matching.assignment import pair_counts
from u2seg.evaluation.tables.segment_tables import SegmentTables, load_tables
from u2seg.predictor import Prediction, Predictor
from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import read_json
from u2seg.utils.progress import Progress, format_seconds
from u2seg.visualization.class_style import ClassStyle
from u2seg.visualization.curves import training_curves
from u2seg.visualization.html_report import Heatmap, Row, Table, write_report
from u2seg.visualization.label_page import PanopticLabels, cluster_gallery, evenly_spaced, load_panoptic_labels
from u2seg.visualization.panoptic_drawing import PanopticDrawing, contiguous_segments, draw_for_page

PROTOCOL = "hungarian"  # clusters matched one to one, what is left over is wrong: the strictest
_MATCHED_NAMES = (
    f"The model knows clusters by number alone. Names of categories on predictions and pseudo-labels come from matching clusters to the "
    f"ground truth afterwards (protocol {PROTOCOL}); a cluster that was matched to nothing keeps its number, or the name that you gave it."
)
_AGREEMENT = (
    "The first two images are chosen by agreement: how well the prediction finds each segment of the {reference} again, regardless of "
    "its class. Things and stuff count equally."
)
_NO_AGREEMENT = (
    "The predictions agree with the {reference} equally little or much in all images, so none of them is shown first. "
    "If they are empty, the model needs more training."
)
SEEDS = "seeds"  # directory of runs that differ by their seed alone
MAX_CONFUSION_ROWS = 30
GALLERY_CLUSTERS = 8
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
    num_rows: int = PAGE_ROWS,
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
    tables: list[Table] = []
    heatmaps: list[Heatmap] = []
    label_map = None
    reference = "pseudo-label"
    if cfg.DATASETS.TEST:  # without ground truth there are no scores, and clusters keep their numbers
        test_set = cfg.DATASETS.TEST[0]
        label_map = directories.model / "inference" / test_set / f"label_map_{PROTOCOL}.json"
        tables = [
            comparison_table(directories, test_set, upper_bound),
            category_table(directories, test_set),
            _full_table(directories, test_set),
        ]
        saved = directories.model / "inference" / test_set / "tables.npz"
        heatmaps = [confusion_heatmap(load_tables(saved))] if saved.is_file() else []
        summary = f"{summary}\n\n{_MATCHED_NAMES}"
        reference = "ground truth" if MetadataCatalog.get(test_set).get("panoptic_json") else reference
    predictor = Predictor(cfg, label_map=label_map)
    first, others = _rows(cfg.DATASETS.TEST, predictor, Path(images), directories, num_rows)
    agreement = (_AGREEMENT if first else _NO_AGREEMENT).format(reference=reference)
    return write_report(
        directories.report,
        title=title,
        summary=f"{summary}\n\n{agreement}",
        facts=_times(directories, is_scored=bool(cfg.DATASETS.TEST)),
        tables=tables,
        heatmaps=heatmaps,
        curves=training_curves(directories.model / CURVES),
        rows=[*first, *others],
    )


def _times(directories: RunDirectories, *, is_scored: bool) -> dict[str, str]:
    """Returns how long each step took, in the order of the steps."""
    times = read_json(directories.root / TIMES)
    steps = (*(step for step in STEPS if step in times), *(step for step in times if step not in STEPS))
    named = {step: "training" if step == TRAINING and not is_scored else step for step in steps}
    return {f"time for {named[step]}, all calls": format_seconds(times[step]) for step in steps}


def comparison_rows(directories: RunDirectories, upper_bound: str | Path | None) -> dict[str, dict]:
    """Returns the scores, as ``metrics.json`` has them, of the run's labels, its model and, where it was run, the upper bound."""
    named = {
        "pseudo-labels of the same images": directories.test_label_scores / METRICS,
        "model trained on pseudo-labels": directories.root / METRICS,
        "same model trained on ground truth (upper bound)": upper_bound,
    }
    return {name: read_json(path) for name, path in named.items() if path and Path(path).is_file()}


def comparison_table(directories: RunDirectories, test_set: str, upper_bound: str | Path | None) -> Table:
    """Returns the table that holds the run's scores beside those of its labels, of its upper bound, and of other seeds.

    Runs with other seeds are those whose output is ``seeds/NAME`` in this run's output.
    """
    rows = [
        [name, *(scores.get(task, {}).get(PROTOCOL, {}).get(metric) for task, metric in COLUMNS)]
        for name, scores in comparison_rows(directories, upper_bound).items()
    ]
    seeds = [read_json(path) for path in sorted((directories.root / SEEDS).glob(f"*/{METRICS}"))]
    note = f"Dataset {test_set}; protocol {PROTOCOL}, fitted on the scored images themselves, as the literature does."
    if seeds:
        rows += _seed_rows([read_json(directories.root / METRICS), *seeds])
    else:
        note += " One run: how much the scores vary with the seed is not known here."
    return Table(
        title="Scores", header=["", *(metric.replace("_", " ") for _, metric in COLUMNS)], rows=rows, note=note
    )


def _seed_rows(runs: Sequence[dict]) -> list[list]:
    """Returns the mean, the smallest and the largest score of runs that differ by their seed."""
    rows = []
    for name, summary in (("mean", np.mean), ("smallest", np.min), ("largest", np.max)):
        row: list[object] = [f"model trained on pseudo-labels, {name} of {len(runs)} seeds"]
        for task, metric in COLUMNS:
            values = [scores.get(task, {}).get(PROTOCOL, {}).get(metric) for scores in runs]
            row.append(None if None in values else float(summary(values)))
        rows.append(row)
    return rows


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
        bars=1 + CATEGORY_COLUMNS.index(first),
    )


def confusion_heatmap(tables: SegmentTables, max_rows: int = MAX_CONFUSION_ROWS) -> Heatmap:
    """Returns which categories the pixels of each predicted cluster belong to, in percent of the cluster.

    Args:
        tables: of the panoptic predictions.
        max_rows: clusters that are shown, the largest first.
    """
    space = tables.space
    shape = (space.num_clusters, space.num_categories)
    known = tables.overlaps[(tables.overlaps["gt"] >= 0) & (tables.overlaps["predicted"] >= 0)]
    clusters, categories = tables.predicted["label"][known["predicted"]], tables.gt["label"][known["gt"]]
    counts = pair_counts(clusters, categories, known["pixels"], shape)
    sizes = counts.sum(axis=1)
    order = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    names = [f"thing {c + 1}" if c < space.num_things else f"stuff {c + 1}" for c in range(space.num_clusters)]
    total = max(int(sizes.sum()), 1)
    rows = [
        (f"{names[c]} ({100 * sizes[c] / total:.1f} % of the pixels)", (100 * counts[c] / sizes[c]).tolist())
        for c in order[:max_rows]
    ]
    more = f" The {len(order) - max_rows} smallest clusters are left out." if len(order) > max_rows else ""
    return Heatmap(
        title="Clusters and categories",
        columns=space.category_names,
        rows=rows,
        note=f"Dataset {space.dataset}. Share of a predicted cluster's pixels, in percent, that lie on each category of the ground "
        f"truth. Pixels without ground truth do not count, and a share below half a percent is left empty.{more}",
    )


def _full_table(directories: RunDirectories, test_set: str) -> Table:
    return Table(
        title="The model under every protocol",
        text=format_table(read_json(directories.root / METRICS)),
        note=f"Dataset {test_set}; label maps fitted on the scored images themselves.",
    )


@dataclass(frozen=True)
class _Shown:
    """An image on the page: its row, how well the prediction agrees with the reference, 0..1, and whether that has a thing."""

    row: Row
    agreement: float
    has_things: bool


def segment_agreement(
    reference: tuple[np.ndarray, Collection[int]], prediction: tuple[np.ndarray, Collection[int]]
) -> float:
    """Returns how well a panoptic map's segments are found again in another: 0 not at all, 1 exactly; classes do not count.

    A reference segment scores its best IoU with a predicted segment of its kind, thing or stuff. Each kind scores the mean over its
    reference segments, large or small, and the two kinds count the same: a missed thing is not outweighed by a large wall. A kind that
    the reference lacks is left out; 1 where there is no reference segment.

    Args:
        reference: int (H, W) segment ids, 0 void, which is left out; and the ids of the things among them.
        prediction: the same of the prediction; its void pixels belong to no segment.
    """
    (reference_map, reference_things), (predicted_map, predicted_things) = reference, prediction
    known = reference_map != 0
    predictions, predicted = np.unique(predicted_map[known], return_inverse=True)
    references, position = np.unique(reference_map[known], return_inverse=True)
    counts = np.zeros((len(references), len(predictions)), np.int64)
    np.add.at(counts, (position, predicted), 1)
    unions = counts.sum(1)[:, None] + counts.sum(0)[None] - counts
    ious = np.where(predictions[None] != 0, counts / unions, 0.0)
    is_thing = np.isin(references, list(reference_things))
    same_kind = is_thing[:, None] == np.isin(predictions, list(predicted_things))[None]
    best = np.where(same_kind, ious, 0.0).max(1, initial=0.0)
    means = [best[kind].mean() for kind in (is_thing, ~is_thing) if kind.any()]
    return float(np.mean(means)) if means else 1.0


def _rows(
    test_sets: Sequence[str], predictor: Predictor, images: Path, directories: RunDirectories, num_rows: int
) -> tuple[list[Row], list[Row]]:
    """Returns the rows of the page: the best and the worst image, if they differ, and all of them."""
    labels = load_panoptic_labels(directories.labels, images)
    gt = _panoptic_gt(test_sets[0]) if test_sets else None
    training = evenly_spaced(labels.annotations, num_rows // 2 if gt else num_rows)
    tested = evenly_spaced(gt.annotations, num_rows) if gt else []
    with Progress(len(tested) + len(training), "page") as bar:
        shown = [_test_row(annotation, gt, predictor, directories) for annotation in bar.track(tested) if gt]
        shown_training = [_training_row(annotation, labels, predictor) for annotation in bar.track(training)]
    first = _best_and_worst(shown or shown_training, "ground truth" if shown else "pseudo-label")
    gallery = cluster_gallery(labels, GALLERY_CLUSTERS, [])
    return first, [*(item.row for item in (*shown, *shown_training)), *gallery]


def _best_and_worst(shown: Sequence[_Shown], reference: str) -> list[Row]:
    """Returns a row each for the best and the worst image, none where all are alike.

    Images whose reference has a thing are preferred: things are what a run is for.
    """
    with_things = [item for item in shown if item.has_things]
    ranked = sorted(with_things if len(with_things) > 1 else shown, key=lambda item: -item.agreement)
    if len(ranked) < 2 or ranked[0].agreement == ranked[-1].agreement:
        return []
    return [
        Row(
            f"{name} like its {reference}: {item.row.title} (agreement {item.agreement:.2f}; 1 means identical)",
            item.row.images,
        )
        for name, item in (("Most", ranked[0]), ("Least", ranked[-1]))
    ]


def _training_row(annotation: dict, labels: PanopticLabels, predictor: Predictor) -> _Shown:
    image_rgb, label_map = labels.read_named(annotation)
    prediction = predictor(image_rgb)
    row = Row(
        f"training image {labels.file_names[annotation['image_id']]}",
        {
            "image": image_rgb,
            "pseudo-label": _draw_labels(labels, annotation, predictor),
            "prediction": _draw_prediction(image_rgb, prediction, predictor),
        },
    )
    return _shown(row, (label_map, _thing_ids(annotation, labels)), prediction)


def _shown(row: Row, reference: tuple[np.ndarray, set[int]], prediction: Prediction) -> _Shown:
    predicted_things = {segment["id"] for segment in prediction.segments_info if segment["isthing"]}
    agreement = segment_agreement(reference, (prediction.panoptic_map, predicted_things))
    return _Shown(row, agreement, has_things=bool(reference[1]))


def _thing_ids(annotation: dict, labels: PanopticLabels) -> set[int]:
    """Returns the ids of an image's thing segments."""
    things = labels.space.thing_contiguous_ids
    return {segment["id"] for segment in annotation["segments_info"] if segment["category_id"] in things}


def _test_row(annotation: dict, gt: PanopticLabels, predictor: Predictor, directories: RunDirectories) -> _Shown:
    has_own_labels = directories.test_labels.is_dir()
    labels = load_panoptic_labels(directories.test_labels if has_own_labels else directories.labels, gt.image_directory)
    # By file name: a ground truth numbers its images as it likes.
    label_of = {labels.file_names[row["image_id"]]: row for row in labels.annotations}
    name = gt.file_names[annotation["image_id"]]
    image_rgb, gt_map = gt.read_named(annotation)
    images: dict[str, np.ndarray | PanopticDrawing] = {"image": image_rgb}
    if name in label_of:
        images["pseudo-label, names by matching"] = _draw_labels(labels, label_of[name], predictor)
    prediction = predictor(image_rgb)
    images["prediction, names by matching"] = _draw_prediction(image_rgb, prediction, predictor)
    images["ground truth"] = _draw(image_rgb, gt_map, annotation, gt, ClassStyle.of_label_space(gt.space))
    return _shown(Row(f"test image {name}", images), (gt_map, _thing_ids(annotation, gt)), prediction)


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


def _draw_labels(labels: PanopticLabels, annotation: dict, predictor: Predictor) -> PanopticDrawing:
    """Returns an image with its pseudo-labels, clusters named and colored as the predictor does."""
    image_rgb, panoptic_map = labels.read_named(annotation)
    return _draw(image_rgb, panoptic_map, annotation, labels, predictor.style)


def _draw_prediction(image_rgb: np.ndarray, prediction: Prediction, predictor: Predictor) -> PanopticDrawing:
    return draw_for_page(image_rgb, prediction.panoptic_map, prediction.segments_info, predictor.style)


def _draw(
    image_rgb: np.ndarray, panoptic_map: np.ndarray, annotation: dict, labels: PanopticLabels, style: ClassStyle
) -> PanopticDrawing:
    segments = contiguous_segments(annotation["segments_info"], labels.space)
    return draw_for_page(image_rgb, panoptic_map, segments, style)
