"""Registers our modules with Detectron2 when, and only when, ``detectron2.modeling`` is loaded.

Detectron2's registries live in ``detectron2.modeling``, whose import takes seconds (it loads all of torchvision). Waiting for
that import keeps ``import u2seg`` cheap, yet every name is registered before anybody can look it up.
"""

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec

_TRIGGER = "detectron2.modeling"
_REGISTERED_BY = "u2seg.modeling"


class _LoaderThenRegister(importlib.abc.Loader):
    """Loads a module with its own loader, then imports ours, whose import registers its classes."""

    def __init__(self, loader: importlib.abc.Loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        importlib.import_module(_REGISTERED_BY)

    def __getattr__(self, name):  # get_source, get_data and so on, for inspect and importlib.resources
        return getattr(self._loader, name)


class _RegisterOnImport(importlib.abc.MetaPathFinder):
    """Finds ``detectron2.modeling`` once, as the finders behind it would, and steps aside."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != _TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderThenRegister(spec.loader)
        return spec


def register_with_detectron2() -> None:
    """Registers our classes now if ``detectron2.modeling`` is loaded, or else as soon as it is."""
    if _TRIGGER in sys.modules:
        importlib.import_module(_REGISTERED_BY)
    elif not any(isinstance(finder, _RegisterOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterOnImport())
