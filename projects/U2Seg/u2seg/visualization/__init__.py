"""Images of labels and predictions, and the report page."""

from u2seg.visualization.class_style import ClassStyle
from u2seg.visualization.colors import cluster_color
from u2seg.visualization.curves import Curves, training_curves
from u2seg.visualization.html_report import Heatmap, Row, Table, write_report
from u2seg.visualization.image_grid import image_grid, save_image
from u2seg.visualization.panoptic_drawing import contiguous_segments, draw_panoptic

__all__ = [
    "ClassStyle",
    "Curves",
    "Heatmap",
    "Row",
    "Table",
    "cluster_color",
    "contiguous_segments",
    "draw_panoptic",
    "image_grid",
    "save_image",
    "training_curves",
    "write_report",
]
