"""Looking a name up in a registry, with an error that says which names there are; registering under a chosen name."""

from typing import Any

from detectron2.utils.registry import Registry


class NamedRegistry(Registry):
    """Detectron2's registry, in which an entry may also be given a name: ``@REGISTRY.register("u2seg_panoptic")``."""

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
        registry: any of Detectron2's or of ours.
        name: the name that the user gave.
        config_key: the key that they gave it under, for the message.

    Raises:
        KeyError: nothing is registered under that name; the message lists what is.
    """
    if name not in registry:
        known = ", ".join(sorted(key for key, _ in registry))
        raise KeyError(f"Unknown {config_key} {name!r}; registered: {known}")
    return registry.get(name)
