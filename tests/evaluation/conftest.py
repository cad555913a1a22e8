import pytest
from synthetic_images import SyntheticCoco, write_synthetic_coco


@pytest.fixture(scope="session")
def synthetic_coco(tmp_path_factory) -> SyntheticCoco:
    """Ground truth of ten images with COCO's categories, polygons and crowds."""
    return write_synthetic_coco(tmp_path_factory.mktemp("synthetic_coco"))
