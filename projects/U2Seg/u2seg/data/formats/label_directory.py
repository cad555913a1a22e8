"""Where the panoptic labels lie in a label directory: those that the stages made, or beside them a set named by hand."""

from pathlib import Path

STAGE_DIRECTORY = "panoptic"
NAMED_DIRECTORY = "named"
_PANOPTIC_JSON = "panoptic.json"


def panoptic_directory(labels: str | Path) -> Path:
    """Returns the directory that holds ``panoptic.json``, ``panoptic/*.png``, ``instances.json`` and ``stuff/*.png``.

    Args:
        labels: a label run, or that directory itself. In a run, labels named by hand come before those that were made.
    """
    labels = Path(labels)
    for directory in (labels, labels / NAMED_DIRECTORY):
        if (directory / _PANOPTIC_JSON).is_file():
            return directory
    return labels / STAGE_DIRECTORY
