"""Looking a name up in a registry, with an error that says which names there are."""

from detectron2.utils.registry import Registry


def get_registered(registry: Registry, name: str, config_key: str):
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
