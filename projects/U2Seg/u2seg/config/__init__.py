"""Every configuration key that this project adds to Detectron2's, with its meaning, unit and source; one module for each section.

Sources: [MaskCut] = CutLER, CVPR 2023, section 3.1 and its published recipe; [U2Seg] = Unsupervised Universal Image
Segmentation, CVPR 2024; [STEGO] = ICLR 2022; [LUSS] = TPAMI 2022; [DINO] = ICCV 2021; [InstDisc] = CVPR 2018;
[ours] = chosen here, for the reason given.
"""

from u2seg.config.config import CONFIG_REGISTRY, add_u2seg_config, find_config_file, get_config_file, setup_cfg
from u2seg.config.config_file import ConfigFileError
from u2seg.config.validation import check_config, register_rules

from u2seg.config import detectron2_keys as _detectron2_keys  # noqa: F401 isort:skip - registers its rules

__all__ = [
    "CONFIG_REGISTRY",
    "ConfigFileError",
    "add_u2seg_config",
    "check_config",
    "find_config_file",
    "get_config_file",
    "register_rules",
    "setup_cfg",
]
