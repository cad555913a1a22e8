"""The one class of this project's registries, and looking a name up with an error that says which names there are."""

from typing import Any

from detectron2.utils.registry import Registry


class UnknownNameError(ValueError):
    """A name that a registry does not have; the message lists those that it has."""


class NamedRegistry(Registry):
    """Detectron2's registry with one rule for names.

    Within a registry all names are of one case. Where entries are classes, or functions that each make an object of one class,
    the name is the class's, in CamelCase: ``PatchKMeans``, ``AdamW``. Everything else (functions, dataset formats, evaluator
    types, protocols) is named in snake_case: ``guided_filter``, ``coco_panoptic``.

    ``@REGISTRY.register()`` takes the entry's own name, ``@REGISTRY.register("coco_panoptic")`` the one given.
    """

    def register(self, obj: Any = None) -> Any:
        """Registers a class or function under its own name, or returns a decorator that registers it under the one given."""
        if not isinstance(obj, str):
            return super().register(obj)

        def decorator(entry: Any) -> Any:
            self._do_register(obj, entry)
            return entry

        return decorator


def get_registered(registry: Registry, name: str, config_key: str) -> Any:
    """Returns what ``registry`` holds under ``name``.

    Args:
        registry: one of Detectron2's or of ours.
        name: the name that the user gave.
        config_key: the key that they gave it under, for the message.

    Raises:
        UnknownNameError: nothing is registered under that name; the message lists what is.
    """
    if name not in registry:
        known = ", ".join(sorted(key for key, _ in registry))
        raise UnknownNameError(f"Unknown {config_key} {name!r}; registered: {known}")
    return registry.get(name)
