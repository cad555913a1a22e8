"""A configuration file of the user's own: bases by name from anywhere, and no training of a model that nobody chose."""

import pytest
from u2seg.config import setup_cfg
from u2seg.config.config import require_chosen_model


def test_a_shipped_base_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my.yaml"
    for name in ("quick_schedules/photos.yaml", "configs/quick_schedules/photos.yaml"):
        path.write_text(f"_BASE_: {name}\nCLUSTERS:\n  NUM_CLUSTERS: 9\n")
        cfg = setup_cfg("my.yaml")
        assert cfg.CLUSTERS.NUM_CLUSTERS == 9 and cfg.MODEL.META_ARCHITECTURE == "PanopticFPN"


def test_a_file_beside_the_own_one_wins_over_a_shipped_one(tmp_path):
    beside = tmp_path / "quick_schedules" / "photos.yaml"
    beside.parent.mkdir()
    beside.write_text("SEED: 77\n")
    (tmp_path / "my.yaml").write_text("_BASE_: quick_schedules/photos.yaml\n")
    assert setup_cfg(tmp_path / "my.yaml").SEED == 77


def test_an_unknown_base_lists_the_shipped_ones(tmp_path):
    (tmp_path / "my.yaml").write_text("_BASE_: quick_schedules/foto.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"quick_schedules/foto.yaml.*available: .*quick_schedules/photos.yaml"):
        setup_cfg(tmp_path / "my.yaml")


def test_a_file_that_chooses_no_model_is_refused_with_the_line_to_add(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text('DATASETS:\n  TRAIN: ("my_train",)\n')
    with pytest.raises(ValueError, match=r"(?s)chooses no model.*\n    _BASE_: quick_schedules/photos.yaml\n"):
        require_chosen_model(setup_cfg(path), path)
    path.write_text("_BASE_: quick_schedules/photos.yaml\n")
    require_chosen_model(setup_cfg(path), path)
    # CutLER's detector has Detectron2's default meta-architecture, and is a choice.
    require_chosen_model(setup_cfg("ImageNet-InstanceSegmentation/cutler_R50.yaml"), "cutler_R50.yaml")
