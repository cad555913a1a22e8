"""Pictures of labels and predictions, and the report page."""

from u2seg.visualization.colours import cluster_colour
from u2seg.visualization.curves import Curves, training_curves
from u2seg.visualization.panoptic import contiguous_segments, draw_panoptic
from u2seg.visualization.pictures import picture_grid, save_picture
from u2seg.visualization.report import Row, Table, write_report

__all__ = [
    "Curves",
    "Row",
    "Table",
    "cluster_colour",
    "contiguous_segments",
    "draw_panoptic",
    "picture_grid",
    "save_picture",
    "training_curves",
    "write_report",
]
