"""The configuration's own promises: every shipped file loads, unknown keys and files are named, defaults do not lead astray."""

import re
from pathlib import Path

import pytest
import u2seg
from u2seg.config import setup_cfg
from u2seg.config.renamed_keys import CUTLER_KEYS

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_shipped_file_loads_and_says_what_it_is_for(path):
    setup_cfg(path)
    assert path.read_text().startswith("# "), "a configuration opens with its purpose"


def test_a_shipped_file_is_found_by_name():
    name = "quick_schedules/scenes.yaml"
    assert Path(u2seg.get_config_file(name)).samefile(CONFIGS / name)
    assert setup_cfg(f"configs/{name}").CLUSTERS.NUM_CLUSTERS == setup_cfg(name).CLUSTERS.NUM_CLUSTERS


def test_an_unknown_file_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"'no_such.yaml'; available: .*quick_schedules/scenes.yaml"):
        u2seg.get_config_file("no_such.yaml")


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"'MASKS.TAO': nothing is called 'TAO' there; did you mean TAU"):
        setup_cfg("quick_schedules/scenes.yaml", ["MASKS.TAO", "0.2"])
    with pytest.raises(ValueError, match=r"'MASKS.TAU.X': nothing is called 'X'"):
        setup_cfg("quick_schedules/scenes.yaml", ["MASKS.TAU.X", "0.2"])
    with pytest.raises(ValueError, match="KEY VALUE"):
        setup_cfg("quick_schedules/scenes.yaml", ["MASKS.TAU"])


def test_every_key_named_in_place_of_cutlers_exists():
    cfg = setup_cfg("quick_schedules/scenes.yaml")
    named = [ours for ours, _ in CUTLER_KEYS.values() if not ours.startswith("the command")]
    assert len(named) == len(CUTLER_KEYS) - 1
    for ours in named:
        node = cfg
        for part in ours.split("."):
            assert part in node, f"{ours} is no key"
            node = node[part]


@pytest.mark.parametrize("key", CUTLER_KEYS)
def test_cutlers_keys_are_refused_and_ours_named(key, tmp_path):
    ours = re.escape(CUTLER_KEYS[key][0])
    with pytest.raises(ValueError, match=f"Key {key} was renamed to {ours}; please update your config"):
        setup_cfg("quick_schedules/scenes.yaml", [key, "True"])
    *sections, last = key.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    path = tmp_path / "cutler.yaml"
    path.write_text("\n".join([*lines, f"{'  ' * len(sections)}{last}: true", "VERSION: 2"]))
    with pytest.raises(ValueError, match=f"Key {key} was renamed to {ours}; please update your config"):
        setup_cfg(path)


def test_the_keys_may_be_added_twice():
    cfg = setup_cfg("quick_schedules/scenes.yaml")
    u2seg.add_u2seg_config(cfg)
    assert cfg.key_is_renamed("MODEL.ROI_HEADS.USE_DROPLOSS")


def test_settings_win_over_the_file():
    assert setup_cfg("quick_schedules/scenes.yaml", ["MASKS.TAU", "0.33"]).MASKS.TAU == 0.33
