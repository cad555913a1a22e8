"""Pictures sorted into one folder for each class, as ImageNet's are: format ``class_folders`` of ``DATASETS.BY_PATH``.

The classes are for scoring and for watching a training; nothing is trained on them.
"""

from pathlib import Path, PurePosixPath

from u2seg.images import image_ids, list_images


def class_names(root: str | Path) -> list[str]:
    """Returns the names of the folders directly below ``root``, sorted; hidden ones are left out.

    Raises:
        ValueError: there is none.
    """
    root = Path(root)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(
            f"format class_folders expects one folder for each class below {root}, which holds no folder; pictures without classes "
            "are of format images"
        )
    return names


def class_folder_records(root: str | Path) -> list[dict]:
    """Returns Detectron2's dicts: ``file_name``, ``image_id`` and ``image_class`` (0-based, index into :func:`class_names`).

    Pictures may lie at any depth below their class's folder. One that lies directly in ``root`` has no class, and no such key.

    Raises:
        FileNotFoundError: no picture.
        ValueError: no folder.
    """
    index = {name: number for number, name in enumerate(class_names(root))}
    names = list_images(root)
    records = []
    for name, number in zip(names, image_ids(names)):
        record = {"file_name": str(Path(root) / name), "image_id": number}
        folder, *below = PurePosixPath(name).parts
        if below:
            record["image_class"] = index[folder]
        records.append(record)
    return records


def class_folder_metadata(root: str | Path) -> dict:
    """Returns the metadata: ``image_classes``, the names that ``image_class`` is an index into."""
    return {"image_classes": class_names(root)}
