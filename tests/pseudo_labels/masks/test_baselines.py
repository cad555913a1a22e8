"""The baselines do what they say, and no more."""

import numpy as np
import torch
from u2seg.pseudo_labels.masks.baselines import KMeansRegions, WholeImage


def test_the_whole_image_is_one_mask():
    found = WholeImage(None)(torch.zeros(2, 3, 4, 6))
    assert len(found) == 2
    assert found[0].masks.shape == (1, 4, 6) and found[0].masks.all()


def test_connected_regions_of_one_color_are_masks():
    # Two red squares on blue: one cluster, two regions; the blue ground owns four corners and is none.
    ids = np.zeros((8, 12), int)
    ids[1:4, 1:4] = ids[4:7, 7:10] = 1
    features = torch.from_numpy(np.stack([ids, 1 - ids]).astype(np.float32))[None]
    generator = KMeansRegions(num_clusters=2, min_area=0.01, max_area=0.5, max_corners=2, seed=0)
    masks = generator(features)[0].masks
    assert len(masks) == 2 and masks.sum() == 18
    assert np.array_equal(masks.any(0), ids == 1)
    too_small = KMeansRegions(num_clusters=2, min_area=9 / 96, max_area=0.5, max_corners=2, seed=0)
    assert too_small(features)[0].masks.shape == (0, 8, 12)
