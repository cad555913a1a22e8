"""A few rendered scenes, and settings with which their labels are made in seconds."""

from pathlib import Path

from u2seg.data.benchmarks.scenes import prepare_scenes

CONFIG = "quick_schedules/scenes.yaml"
FEW_CLUSTERS = [
    *("MASKS.NUM_WORKERS", "0", "CLUSTERS.NUM_CLUSTERS", "3", "CLUSTERS.NUM_RESTARTS", "1"),
    *("SEMANTICS.NUM_CLUSTERS", "3"),
]


def render_scenes(root: Path, train: int, val: int, *, annotate_train: bool = False) -> Path:
    """Renders ``train`` and ``val`` scenes and returns the directory that holds them."""
    return prepare_scenes(root, train, val, seed=0, annotate_train=annotate_train)
