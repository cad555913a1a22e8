"""U2Seg for Detectron2: unsupervised instance, semantic and panoptic segmentation.

``import u2seg`` makes the project's meta-architectures and heads known to Detectron2's registries: at once where
``detectron2.modeling`` is loaded already, otherwise at the moment when it is. Nothing else happens at import; names are
loaded when they are first used, so that ``import u2seg`` costs milliseconds.
"""

from importlib import import_module

from u2seg import _registration
from u2seg.version import __version__

_PUBLIC = {
    "Predictor": "u2seg.inference",
    "add_u2seg_config": "u2seg.config",
    "complete_config": "u2seg.engine",
    "get_config_file": "u2seg.config",
    "read_image_rgb": "u2seg.images",
    "setup_cfg": "u2seg.config",
}

__all__ = ["__version__", *_PUBLIC]

_registration.register_with_detectron2()


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'u2seg' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
