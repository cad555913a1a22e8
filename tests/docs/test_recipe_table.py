"""The table of recipes in docs/training.md says what the configurations hold."""

import re
from pathlib import Path

import pytest
import yaml
from u2seg.config import setup_cfg

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
CONFIGS = (
    "COCO-PanopticSegmentation/u2seg_R50_800.yaml",
    "ImageNet-InstanceSegmentation/cutler_R50.yaml",
    "ImageNet-InstanceSegmentation/cutler_R50_self_training.yaml",
)


def rows() -> list[list[str]]:
    section = PAGE.read_text().split("## Recipes, key by key")[1].split("What differs:")[0]
    lines = [line.strip().strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line] for line in lines]


@pytest.mark.parametrize("column", range(len(CONFIGS)))
def test_our_values_are_those_of_the_configuration(column):
    cfg = setup_cfg(CONFIGS[column])
    num_compared = 0
    for keys, *cells in rows():
        if not cells[column]:
            continue
        ours = cells[column].split("→")[-1].strip().strip("`")
        for key in re.findall(r"`([A-Z0-9_.]+)`", keys):
            value = cfg
            for part in key.split("."):
                value = value[part]
            assert (list(value) if isinstance(value, tuple) else value) == yaml.safe_load(ours), key
            num_compared += 1
    assert num_compared > 20
