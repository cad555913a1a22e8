"""What lets a configuration file of one's own work from anywhere: shipped bases by name, and no training of a model nobody chose."""

from pathlib import Path

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from u2seg.config.shipped import get_config_file


def find_base(base: str, config_file: str | Path) -> str:
    """Returns where the file lies that a configuration names as its ``_BASE_``.

    Args:
        base: an absolute path, an address (``https://...``), a path relative to ``config_file``, or the name of a shipped file, for
            example ``"quick_schedules/photos.yaml"``; a file beside ``config_file`` wins over a shipped one.
        config_file: the file that names it.

    Raises:
        FileNotFoundError: neither there nor shipped; the message lists the shipped ones.
    """
    if base.startswith("~"):
        return str(Path(base).expanduser())
    if base.startswith("/") or "://" in base:
        return base
    beside = Path(config_file).parent / base
    return str(beside) if beside.is_file() else get_config_file(base.removeprefix("configs/"))


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
