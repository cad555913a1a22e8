"""Datasets registered by path, dataset mappers, copy-paste, the training loader."""

from u2seg.data import benchmarks as _benchmarks  # noqa: F401 - registers the benchmarks
from u2seg.data.build import BatchStream, build_train_loader
from u2seg.data.copy_paste import COPY_PASTE_REGISTRY, CopyPaste, CutLERCopyPaste, LayeredCopyPaste
from u2seg.data.dataset_mapper import DATASET_MAPPER_REGISTRY, PanopticMapper, build_mapper
from u2seg.data.datasets import (
    DATASET_FORMAT_REGISTRY,
    DatasetFilesError,
    label_space_of,
    register_dataset,
    register_datasets,
)

__all__ = [
    "COPY_PASTE_REGISTRY",
    "DATASET_FORMAT_REGISTRY",
    "DATASET_MAPPER_REGISTRY",
    "BatchStream",
    "CopyPaste",
    "CutLERCopyPaste",
    "DatasetFilesError",
    "LayeredCopyPaste",
    "PanopticMapper",
    "build_mapper",
    "build_train_loader",
    "label_space_of",
    "register_dataset",
    "register_datasets",
]
