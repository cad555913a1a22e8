"""The datasets that models are scored on without training on them, one module each, under ``$DETECTRON2_DATASETS``.

A module's ``DATASETS`` describes them as ``DATASETS.BY_PATH`` would; importing this package registers them and opens no file. Its
``run``, where it has one, makes their annotation files from the published ones (``u2seg prepare``). ``datasets/README.md`` shows every
tree. Sets that Detectron2 registers itself (``coco_2017_val``, ``coco_2017_val_panoptic_separated``) are scored as well.
"""

from types import ModuleType

from u2seg.data.benchmarks import (
    cityscapes,
    coco,
    cocostuff27,
    cross_domain,
    kitti,
    lvis,
    objects365,
    openimages,
    scenes,
    uvo,
    voc,
)
from u2seg.data.datasets.registration import register_dataset

_DESCRIBED = (coco, cocostuff27, uvo, voc, cityscapes, kitti, lvis, objects365, cross_domain, openimages)

BENCHMARKS = {name: description for module in _DESCRIBED for name, description in module.DATASETS.items()}
"""Name -> description, as ``DATASETS.BY_PATH`` holds them."""

PREPARE: dict[str, ModuleType] = {
    module.__name__.rsplit(".", 1)[1]: module
    for module in (cityscapes, cocostuff27, cross_domain, kitti, lvis, objects365, openimages, scenes, uvo, voc)
}
"""Name of ``u2seg prepare`` -> module with ``add_arguments`` and ``run``."""


def register_benchmarks() -> None:
    """Makes every set of :data:`BENCHMARKS` known to Detectron2's catalogs."""
    for name, description in BENCHMARKS.items():
        register_dataset(name, description)


register_benchmarks()
