"""Embeddings and saved centroids, on masks made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from label_stages import make_clusters
from PIL import Image
from pycocotools import mask as mask_utils
from u2seg.config import setup_cfg
from u2seg.data.formats.mask_shards import mask_shards, write_shard
from u2seg.pseudo_labels.clusters.cluster_stage import load_centroids, read_assigned
from u2seg.pseudo_labels.clusters.mask_embeddings import crop_on_white, mask_pooled, masked_crop
from u2seg.pseudo_labels.image_source import DirectorySource
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.manifest import close_stage, open_stage, shard_path


def test_the_crop_is_square_white_and_holds_the_object():
    image = np.full((6, 9, 3), 7, np.uint8)
    mask = np.zeros((6, 9), bool)
    mask[2, 3:7] = True  # 1 x 4: padded to 4 x 4, the row in its middle
    crop = crop_on_white(image, mask)
    assert crop.shape == (4, 4, 3)
    assert (crop[1] == 7).all() and (np.delete(crop, 1, axis=0) == 255).all()


def record(image_id, embeddings):
    mask = mask_utils.encode(np.asfortranarray(np.ones((2, 3), np.uint8)))["counts"]
    values = np.asarray(embeddings, np.float32).reshape(-1, 2)
    zeros = np.zeros(len(values), np.float32)
    return ImageMasks(image_id, f"{image_id}.jpg", 2, 3, (mask,) * len(values), zeros, zeros, zeros, values)


@pytest.fixture
def masks(tmp_path):
    directory = open_stage(tmp_path / "masks", "masks", {})
    write_shard(shard_path(directory, 0), [record(1, [[0, 0], [9, 9]]), record(2, [])])
    write_shard(shard_path(directory, 1), [record(3, [[0, 1], [9, 8], [9, 9]])])
    close_stage(directory, {"masks": 5, "images": 3})
    return directory


def test_every_mask_gets_its_cluster_in_its_image(masks, tmp_path):
    cfg = setup_cfg("quick_schedules/scenes.yaml", ["CLUSTERS.NUM_CLUSTERS", "2"])
    clusters = make_clusters(cfg, tmp_path, masks, tmp_path / "clusters")
    assigned = {
        r.image_id: labels.tolist() for shard in mask_shards(masks) for r, labels in read_assigned(shard, clusters)
    }
    near, far = assigned[1]
    assert near != far and assigned == {1: [near, far], 2: [], 3: [near, far, far]}
    centroids = load_centroids(clusters / "centroids.npy", 2, "CLUSTERS")
    np.testing.assert_allclose(centroids[near], [0, 0.5], atol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), but CLUSTERS.NUM_CLUSTERS asks for 3 rows"):
        load_centroids(clusters / "centroids.npy", 3, "CLUSTERS")
    with pytest.raises(FileNotFoundError, match="CLUSTERS.CENTROIDS"):
        load_centroids(tmp_path / "none.npy", 2, "CLUSTERS")


def test_vectors_of_another_network_are_not_taken_over(tmp_path):
    Image.new("RGB", (3, 2), (200, 30, 30)).save(tmp_path / "1.png")
    records = [replace(record(1, [[0, 0], [9, 9]]), file_name="1.png")]
    (tmp_path / "together").mkdir()

    def embed(network, output):
        options = ["FEATURES.NAME", network, "FEATURES.IMAGE_SIZE", "(16,16)", "FEATURES.DEVICE", "cpu"]
        cfg = setup_cfg("quick_schedules/scenes.yaml", options)
        return masked_crop(cfg, DirectorySource(tmp_path), output)(records)

    first = embed("RawPixels", tmp_path / "together")
    np.testing.assert_array_equal(embed("RawPixels", tmp_path / "together"), first)
    second = embed("HandmadeDescriptor", tmp_path / "together")
    np.testing.assert_array_equal(second, embed("HandmadeDescriptor", tmp_path / "apart"))
    assert second.shape != first.shape


def test_pooled_embeddings_come_in_the_masks_order(masks, tmp_path):
    records = [record(1, [[1, 2]]), record(2, []), record(3, [[3, 4], [5, 6]])]
    np.testing.assert_array_equal(mask_pooled(None, tmp_path, tmp_path)(records), [[1, 2], [3, 4], [5, 6]])
