"""How a configuration is found, read and merged; the keys themselves are in the modules beside this one."""

from difflib import get_close_matches
from pathlib import Path

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.utils.registry import Registry

from u2seg.config.data import add_data_config
from u2seg.config.features import add_features_config
from u2seg.config.model import add_model_config
from u2seg.config.pseudo_labels import (
    add_clusters_config,
    add_masks_config,
    add_panoptic_labels_config,
    add_self_training_config,
    add_semantics_config,
)
from u2seg.config.renamed_keys import add_renamed_keys
from u2seg.config.solver import add_solver_config
from u2seg.config.test import add_test_config

_PACKAGE = Path(__file__).resolve().parents[1]

CONFIG_REGISTRY = Registry("CONFIG")
CONFIG_REGISTRY.__doc__ = """
Functions that add keys to a configuration: each is called as ``(cfg)`` by :func:`add_u2seg_config`. A method with keys of its own,
such as LUSS, registers its function here.
"""
for _section in (
    add_features_config,
    add_masks_config,
    add_clusters_config,
    add_semantics_config,
    add_panoptic_labels_config,
    add_data_config,
    add_model_config,
    add_solver_config,
    add_self_training_config,
    add_test_config,
    add_renamed_keys,
):
    CONFIG_REGISTRY.register(_section)


def get_config_file(name: str) -> str:
    """Returns the path of a configuration file that the package ships.

    Args:
        name: path relative to the project's ``configs/``, for example ``"quick_schedules/scenes.yaml"``.

    Raises:
        FileNotFoundError: no such file; the message lists those that exist.
    """
    # Installed: the configs are package data. Editable install or checkout: they lie at the repository's root.
    roots = [_PACKAGE / "configs", _PACKAGE.parents[2] / "configs"]
    for root in roots:
        if (root / name).is_file():
            return str(root / name)
    known = sorted({path.relative_to(root).as_posix() for root in roots for path in root.rglob("*.yaml")})
    raise FileNotFoundError(f"No configuration file {name!r}; available: {', '.join(known)}")


def find_config_file(config_file: str | Path) -> str:
    """Returns the path of a configuration file on disk or, where there is none, among the shipped ones.

    Raises:
        FileNotFoundError: neither; the message lists the shipped ones.
    """
    return (
        str(config_file) if Path(config_file).is_file() else get_config_file(str(config_file).removeprefix("configs/"))
    )


def setup_cfg(config_file: str | Path, opts: list[str] | tuple = ()) -> CN:
    """Returns Detectron2's configuration with this project's keys, a file and then single keys merged into it; not frozen.

    Args:
        config_file: a YAML file; a path that does not exist is looked up among the shipped ones (``get_config_file``).
        opts: KEY VALUE KEY VALUE ..., as on the command line.

    Raises:
        FileNotFoundError: no such file, neither on disk nor shipped.
        KeyError: a key that neither Detectron2 nor this project has; the message names those that are spelled alike.
        ValueError: a key without a value.
    """
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.merge_from_file(find_config_file(config_file))
    _check_keys(cfg, list(opts))
    cfg.merge_from_list(list(opts))
    return cfg


def _check_keys(cfg: CN, opts: list[str]) -> None:
    if len(opts) % 2:
        raise ValueError(f"settings are KEY VALUE KEY VALUE ..., got {len(opts)} words: {' '.join(opts)}")
    for key in opts[::2]:
        if cfg.key_is_renamed(key):
            cfg.raise_key_rename_error(key)
        node = cfg
        for part in key.split("."):
            if not isinstance(node, CN) or part not in node:
                known = get_close_matches(part, node, n=3) if isinstance(node, CN) else []
                hint = f"; did you mean {' or '.join(known)}?" if known else ""
                raise KeyError(f"Unknown configuration key {key!r}: nothing is called {part!r} there{hint}")
            node = node[part]


def add_u2seg_config(cfg: CN) -> None:
    """Adds this project's keys, with their defaults, to a Detectron2 configuration, in place."""
    for _, add_section in CONFIG_REGISTRY:
        add_section(cfg)
