from pathlib import Path

import pytest

COCO_MINI = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"


@pytest.fixture
def coco_mini() -> Path:
    """Real photos' ground truth, where it is there."""
    if not COCO_MINI.is_dir():
        pytest.skip("needs ../shared/data/coco_mini, which is never committed")
    return COCO_MINI
