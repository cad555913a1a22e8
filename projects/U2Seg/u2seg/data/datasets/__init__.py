"""Datasets registered with Detectron2 by path; a format says where the files are and how they are read."""

from u2seg.data.datasets import class_directories as _class_directories  # noqa: F401 - registers its format
from u2seg.data.datasets.registration import (
    DATASET_FORMAT_REGISTRY,
    DatasetFiles,
    DatasetFormat,
    label_space_of,
    register_dataset,
    register_datasets,
)
from u2seg.data.formats.expected_files import DatasetFilesError

__all__ = [
    "DATASET_FORMAT_REGISTRY",
    "DatasetFiles",
    "DatasetFilesError",
    "DatasetFormat",
    "label_space_of",
    "register_dataset",
    "register_datasets",
]
