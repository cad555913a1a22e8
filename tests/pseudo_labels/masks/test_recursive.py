"""RecursiveCut on images whose parts are known."""

import numpy as np
import pytest
import torch
from u2seg.pseudo_labels.masks.ncut import BinaryAffinity, exact_second_eigenvector, second_eigenvectors
from u2seg.pseudo_labels.masks.recursive_cut import RecursiveCut, RecursiveCutSettings


def make_generator(**settings):
    defaults = {
        "radius": 0.3,
        "eps": 1e-5,
        "max_cut": 0.6,
        "max_external_links": 0.3,
        "max_borders": 1,
        "max_corners": 2,
        "min_area": 0.01,
        "max_area": 0.2,
        "max_cuts": 64,
    }
    return RecursiveCut(RecursiveCutSettings(**{**defaults, **settings}))


def scene(rows=16, columns=24):
    """Sky above ground, an object inside either, and one at the left border; features are their ids along one axis each."""
    ids = np.zeros((rows, columns), int)
    ids[rows // 2 :] = 1
    ids[2:5, 5:9] = 2
    ids[10:14, 14:19] = 3
    ids[9:13, 0:3] = 4
    features = np.eye(5, dtype=np.float32)[ids].transpose(2, 0, 1)
    noise = np.random.default_rng(0).normal(size=features.shape).astype(np.float32) * 0.02
    return ids, torch.from_numpy(features + noise)[None]


def as_sets(masks):
    return {mask.tobytes() for mask in masks}


def test_objects_are_found_within_either_side_of_the_first_cut():
    ids, features = scene()
    (found,) = make_generator()(features)
    assert as_sets(found.masks) == as_sets([ids == 2, ids == 3, ids == 4])
    np.testing.assert_allclose(found.cut_values, 0, atol=1e-9)  # nothing leaves them
    np.testing.assert_allclose(found.scores, 1, atol=1e-9)


def test_each_limit_excludes_what_it_says():
    ids, features = scene()
    assert as_sets(make_generator(max_borders=0)(features)[0].masks) == as_sets([ids == 2, ids == 3])
    assert as_sets(make_generator(min_area=15 / ids.size)(features)[0].masks) == as_sets([ids == 3])
    assert as_sets(make_generator(max_area=15 / ids.size)(features)[0].masks) == as_sets([ids == 2, ids == 4])
    assert len(make_generator(max_cuts=0)(features)[0].masks) == 0


def test_a_uniform_and_a_one_patch_image_have_no_object():
    generator = make_generator()
    assert generator(torch.ones(1, 3, 6, 9))[0].masks.shape == (0, 6, 9)
    assert generator(torch.ones(1, 3, 1, 1))[0].masks.shape == (0, 1, 1)


def test_masks_do_not_overlap_and_a_batch_equals_its_images():
    _, features = scene()
    noisy = features + 0.15 * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    batch = torch.cat([features, noisy])
    together = make_generator()(batch)
    for index, found in enumerate(together):
        assert found.masks.sum(0).max(initial=0) <= 1
        alone = make_generator()(batch[index : index + 1])[0]
        np.testing.assert_array_equal(found.masks, alone.masks)
        np.testing.assert_allclose(found.scores, alone.scores)


def test_the_external_share_is_the_share_of_links_that_leave():
    # Patches 0..3 in a row; links 0-1, 1-2 (distance 1) and all self links, radius 1.5. Region {0, 1}: its patches have degrees
    # 2 and 3, of these 5 links 4 stay inside, so 1/5 leave it.
    features = torch.tensor([[0.0, 1.0, 2.0, 9.0]])[None]
    affinity = BinaryAffinity.of_distances(features, 1.5)
    (external_share,) = make_generator()._external_shares(affinity, 0, [np.array([[True, True, False, False]])])
    assert external_share == pytest.approx(0.2)


def test_a_subgraph_agrees_with_the_whole_and_both_solvers_with_one_another():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 60)
    affinity = BinaryAffinity.of_distances(features, 2.0)
    nodes = torch.arange(0, 60, 2)
    part = affinity.subgraph(1, nodes)
    torch.testing.assert_close(part.dense(0), affinity.dense(1)[nodes][:, nodes])
    distances = torch.cdist(features[1].T, features[1].T)
    torch.testing.assert_close(affinity.dense(1), (distances < 2.0).double())

    none_removed = torch.zeros(1, 30, dtype=torch.bool)
    value, vector = exact_second_eigenvector(part, none_removed, 1e-5)
    iterated = second_eigenvectors(part, none_removed, 1e-5)
    assert abs(value - float(iterated.cut_values[0])) < 1e-9
    aligned = iterated.vectors[0] * torch.sign(iterated.vectors[0] @ vector)
    torch.testing.assert_close(aligned, vector, atol=1e-5, rtol=0)
