"""Where the panoptic labels lie in a label directory: those that the stages made, or beside them a set named by hand."""

from pathlib import Path

from u2seg.data.formats.label_shards import label_shards

STAGE_DIRECTORY = "panoptic"
NAMED_DIRECTORY = "named"
# In either of them.
INSTANCES_JSON, PANOPTIC_JSON = "instances.json", "panoptic.json"
PANOPTIC_DIRECTORY, STUFF_DIRECTORY = "panoptic", "stuff"


def panoptic_directory(labels: str | Path) -> Path:
    """Returns the directory that holds ``panoptic.json``, ``panoptic/*.png``, ``instances.json`` and ``stuff/*.png``, or label shards.

    Args:
        labels: a label run, or that directory itself. In a run, labels named by hand come before those that were made.
    """
    labels = Path(labels)
    for directory in (labels, labels / NAMED_DIRECTORY):
        if (directory / PANOPTIC_JSON).is_file():
            return directory
    return labels if label_shards(labels) else labels / STAGE_DIRECTORY


def find_panoptic_json(labels: str | Path) -> Path:
    """Returns the path of the panoptic JSON of a label run, or of its panoptic directory; it need not be there.

    Raises:
        FileNotFoundError: the labels are in shards alone; the message says how the JSON is made.
    """
    path = panoptic_directory(labels) / PANOPTIC_JSON
    if not path.is_file() and label_shards(path.parent):
        raise FileNotFoundError(
            f"{path.parent} holds labels in shards, without {path.name}: they were made with PANOPTIC_LABELS.FORMAT shards. "
            "Repeat the `u2seg labels` command with PANOPTIC_LABELS.FORMAT coco, which writes COCO's files and makes nothing else anew"
        )
    return path
