"""Images sorted into one directory for each class, as ImageNet's are: format ``class_directories`` of ``DATASETS.BY_PATH``.

The classes are for scoring and for monitoring a training; nothing is trained on them.
"""

from pathlib import Path, PurePosixPath

from u2seg.data.datasets.registration import DATASET_FORMAT_REGISTRY, DatasetFormat, image_files
from u2seg.utils.image_io import image_ids, list_images


def class_names(root: str | Path) -> list[str]:
    """Returns the names of the directories directly below ``root``, sorted; hidden ones are left out.

    Raises:
        ValueError: there is none.
    """
    root = Path(root)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(
            f"format class_directories expects one directory for each class below {root}, which holds no directory; images without classes "
            "are of format images"
        )
    return names


def class_directory_records(root: str | Path) -> list[dict]:
    """Returns Detectron2's dicts: ``file_name``, ``image_id`` and ``image_class`` (0-based, index into :func:`class_names`).

    Images may lie at any depth below their class's directory. One that lies directly in ``root`` has no class, and no such key.

    Raises:
        FileNotFoundError: no image.
        ValueError: no directory.
    """
    index = {name: number for number, name in enumerate(class_names(root))}
    names = list_images(root)
    records = []
    for name, number in zip(names, image_ids(names)):
        record = {"file_name": str(Path(root) / name), "image_id": number}
        directory, *below = PurePosixPath(name).parts
        if below:
            record["image_class"] = index[directory]
        records.append(record)
    return records


def class_directory_metadata(root: str | Path) -> dict:
    """Returns the metadata: ``image_classes``, the names that ``image_class`` is an index into."""
    return {"image_classes": class_names(root)}


DATASET_FORMAT_REGISTRY.register("class_directories")(
    DatasetFormat(
        ("ROOT",),
        ("SUBSET",),
        image_files,
        lambda description, files: class_directory_records(files.images),
        lambda description: class_directory_metadata(description["ROOT"]),
    )
)
