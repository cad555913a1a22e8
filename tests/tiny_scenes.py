"""A few rendered scenes, and settings with which their labels are made in seconds."""

import subprocess
import sys
from pathlib import Path

RENDER = Path(__file__).parent.parent / "datasets" / "prepare_scenes.py"
CONFIG = "quick_schedules/scenes.yaml"
FEW_CLUSTERS = [
    *("MASKS.NUM_WORKERS", "0", "CLUSTERS.NUM_CLUSTERS", "3", "CLUSTERS.NUM_RESTARTS", "1"),
    *("SEMANTICS.NUM_CLUSTERS", "3"),
]


def render_scenes(root: Path, *options: str) -> Path:
    """Runs ``datasets/prepare_scenes.py`` and returns the directory that it filled."""
    command = [sys.executable, str(RENDER), "--output", str(root), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return root
