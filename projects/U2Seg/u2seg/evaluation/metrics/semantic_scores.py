"""mIoU, frequency-weighted IoU, mean and total pixel accuracy from a confusion matrix."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SemanticScores:
    """Scores of a semantic segmentation, range 0..1; arrays are (categories,), NaN for a category that does not count.

    Attributes:
        iou: intersection over union of each category.
        accuracy: share of each category's pixels that were found.
        frequency: share of the scored pixels that are of the category.
        correct: share of all scored pixels that were found.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    frequency: np.ndarray
    correct: float

    def summary(self) -> dict[str, float]:
        """Returns ``mIoU``, ``fwIoU``, ``mACC`` and ``pACC``, 0..100; nothing where no pixel is to be scored."""
        if not np.isfinite(self.iou).any():
            return {}
        return {
            "mIoU": 100 * float(np.nanmean(self.iou)),
            "fwIoU": 100 * float(np.nansum(self.iou * self.frequency)),
            "mACC": 100 * float(np.nanmean(self.accuracy)),
            "pACC": 100 * self.correct,
        }


def semantic_scores(confusion: np.ndarray, averaged: np.ndarray | None = None) -> SemanticScores:
    """Returns the scores of a confusion matrix.

    Args:
        confusion: (categories + 1, categories): rows what was predicted, the last row being "none of them"; columns the ground truth.
            Void ground truth is left out beforehand. Pixels in the last row are errors: they belong to the union of their
            true category.
        averaged: bool (categories,), whose IoU counts in the mean; None takes those that occur in the ground truth.

    Example:
        Of 10 pixels of category 0, 8 are right, 1 is called category 1 and 1 has no category; all 10 of category 1 are right.

        >>> scores = semantic_scores(np.array([[8, 0], [1, 10], [1, 0]]))
        >>> scores.accuracy.round(3), scores.iou.round(3)
        (array([0.8, 1. ]), array([0.8  , 0.909]))

    Source: Detectron2's ``SemSegEvaluator`` (means over the categories that occur in the ground truth), which has no last row.
    """
    if confusion.shape[0] != confusion.shape[1] + 1:
        raise ValueError(
            f"confusion must have shape (categories + 1, categories), the last row for 'none', got {confusion.shape}"
        )
    confusion = confusion.astype(np.float64)
    hits = np.diagonal(confusion).copy()
    gt = confusion.sum(axis=0)
    predicted = confusion[:-1].sum(axis=1)
    occurs = gt > 0
    nothing = np.full(len(hits), np.nan)
    total = gt.sum()
    union = gt + predicted - hits
    averaged = occurs if averaged is None else averaged & (union > 0)
    return SemanticScores(
        np.divide(hits, union, out=nothing.copy(), where=averaged),
        np.divide(hits, gt, out=nothing.copy(), where=occurs),
        gt / total if total else np.zeros(len(hits)),
        float(hits.sum() / total) if total else 0.0,
    )


def boundary_iou(both: np.ndarray, gt: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the mean boundary IoU, 0..1, over the classes whose boundary occurs in the ground truth; NaN if none does.

    Args:
        both: (classes,), pixels near a border of the class in ground truth and prediction.
        gt: (classes,), pixels near a border of the class in the ground truth.
        predicted: (classes,), the same in the prediction, ground-truth void left out.

    Source: Cheng et al., Boundary IoU, CVPR 2021, equation 4, with the sums taken over all images.
    """
    occurs = gt > 0
    if not occurs.any():
        return float("nan")
    return float(np.mean(both[occurs] / (gt + predicted - both)[occurs]))


def confusion_matrix(
    predicted: np.ndarray, gt: np.ndarray, pixels: np.ndarray, num_categories: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the matrix that :func:`semantic_scores` takes, float64 (categories + 1, categories).

    Args:
        predicted: int (rows,), category predicted, -1 for none.
        gt: int (rows,), true category, -1 for void (left out).
        pixels: (rows,), how many pixels a row stands for.
        num_categories: of the ground truth.
        weights: float (rows,), multiplies ``pixels``; None for 1.

    Example:
        >>> confusion_matrix(np.array([0, 1, -1]), np.array([0, 0, 1]), np.array([8, 2, 5]), num_categories=2)
        array([[8., 0.],
               [2., 0.],
               [0., 5.]])
    """
    scored = gt >= 0
    rows = np.where(predicted >= 0, predicted, num_categories)[scored].astype(np.int64)
    values = pixels if weights is None else pixels * weights
    counts = np.bincount(
        rows * num_categories + gt[scored],
        weights=values[scored],
        minlength=(num_categories + 1) * num_categories,
    )
    return counts.reshape(num_categories + 1, num_categories)
