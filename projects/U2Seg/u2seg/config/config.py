"""How a configuration is found, read and merged; the keys themselves are in the modules beside this one."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from u2seg.config.config_file import ConfigFileError, read_config_file
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
from u2seg.config.shipped import get_config_file
from u2seg.config.solver import add_solver_config
from u2seg.config.test import add_test_config
from u2seg.config.validation import check_config, fitted_values
from u2seg.utils.hub_files import HUB_PREFIX
from u2seg.utils.registry import NamedRegistry

CONFIG_REGISTRY = NamedRegistry("CONFIG")
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


def find_config_file(config_file: str | Path) -> str:
    """Returns the path of a configuration file on disk or, where there is none, among the shipped ones.

    One on the Hugging Face Hub, ``hf://org/name/config.yaml``, stays as it is.

    Raises:
        FileNotFoundError: neither; the message lists the shipped ones.
    """
    if str(config_file).startswith(HUB_PREFIX):
        return str(config_file)
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
        ConfigFileError: the file is no plain YAML: a tag in it could run code, for example.
        ValueError: a value that its key cannot have; the message says what was expected.
        ValueError: a key that neither Detectron2 nor this project has; the message names those that are spelled alike.
        ValueError: a key without a value.
    """
    cfg = get_cfg()
    add_u2seg_config(cfg)
    _merge_file(cfg, find_config_file(config_file))
    _check_keys(cfg, list(opts))
    cfg.merge_from_list(_fitted_opts(cfg, list(opts)))
    check_config(cfg)
    return cfg


def require_chosen_model(cfg: CN, config_file: str | Path) -> None:
    """Refuses a configuration that leaves the model as Detectron2 has it by default.

    Raises:
        ValueError: nothing in the file, its bases or the command line chose a model; the message says which line to add.
    """
    default = get_cfg().MODEL
    values = [(m.META_ARCHITECTURE, m.MASK_ON, m.BACKBONE.NAME, m.ROI_HEADS.NAME) for m in (cfg.MODEL, default)]
    if values[0] == values[1]:
        raise ValueError(
            f"{config_file} chooses no model, so Detectron2's default, a {default.META_ARCHITECTURE} box detector without masks, would "
            "be trained. Add a base as its first line, for example\n    _BASE_: quick_schedules/photos.yaml\n"
            "or set MODEL.META_ARCHITECTURE: PanopticFPN with the rest of a model."
        )


def _merge_file(cfg: CN, path: str) -> None:
    """Merges a file into the configuration, in place; Detectron2's own ``merge_from_file`` runs the code that YAML tags name."""
    values = read_config_file(path)
    version = values.get("VERSION", cfg.VERSION)
    if version != cfg.VERSION:
        raise ConfigFileError(
            f"{path} is written for VERSION {version!r} of Detectron2's configuration, expected {cfg.VERSION}"
        )
    with _clear_key_errors():
        cfg.merge_from_other_cfg(CN(fitted_values(values, cfg)))


@contextmanager
def _clear_key_errors() -> Iterator[None]:
    """Raises the errors that Detectron2 raises about unknown and renamed keys as a ValueError."""
    try:
        yield
    except KeyError as error:
        raise ValueError(error.args[0]) from error


def _check_keys(cfg: CN, opts: list[str]) -> None:
    if len(opts) % 2:
        raise ValueError(f"settings are KEY VALUE KEY VALUE ..., got {len(opts)} words: {' '.join(opts)}")
    for key in opts[::2]:
        if cfg.key_is_renamed(key):
            with _clear_key_errors():
                cfg.raise_key_rename_error(key)
        node = cfg
        for part in key.split("."):
            if not isinstance(node, CN) or part not in node:
                known = get_close_matches(part, node, n=3) if isinstance(node, CN) else []
                hint = f"; did you mean {' or '.join(known)}?" if known else ""
                raise ValueError(f"Unknown configuration key {key!r}: nothing is called {part!r} there{hint}")
            node = node[part]


def _fitted_opts(cfg: CN, opts: list) -> list:
    """Returns KEY VALUE pairs whose values fit their keys: an integer is a float where the key holds one."""
    fitted = []
    for key, value in zip(opts[::2], opts[1::2]):
        section, _, leaf = key.rpartition(".")
        node = functools.reduce(CN.__getitem__, section.split("."), cfg) if section else cfg
        fitted += [key, fitted_values({leaf: value}, node, f"{section}." if section else "")[leaf]]
    return fitted


def add_u2seg_config(cfg: CN) -> None:
    """Adds this project's keys, with their defaults, to a Detectron2 configuration, in place."""
    for _, add_section in CONFIG_REGISTRY:
        add_section(cfg)
