"""Data sets registered by path, dataset mappers, copy-paste, the training loader."""

from u2seg.data import benchmarks as _benchmarks  # noqa: F401 - registers the benchmark data sets
from u2seg.data.copy_paste import CopyPaste
from u2seg.data.luss_mapper import LussSemanticMapper
from u2seg.data.luss_store import LabelStore
from u2seg.data.mapper import DATASET_MAPPER_REGISTRY, PanopticMapper, build_mapper
from u2seg.data.multi_crop import MultiCropMapper
from u2seg.data.registration import DatasetFilesError, label_space_of, register_dataset, register_datasets
from u2seg.data.stream import BatchStream, build_train_loader

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "BatchStream",
    "CopyPaste",
    "DatasetFilesError",
    "LabelStore",
    "LussSemanticMapper",
    "MultiCropMapper",
    "PanopticMapper",
    "build_mapper",
    "build_train_loader",
    "label_space_of",
    "register_dataset",
    "register_datasets",
]
