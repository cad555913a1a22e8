"""Argmax at native size, the one-layer head, the clusterer, distance matching."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from u2seg.config import setup_cfg
from u2seg.luss.distance_matching import masked_means
from u2seg.luss.modeling.pass_segmentor import PixelLinearHead, knn_vote, resize_argmax


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_argmax_in_parts_is_the_argmax_of_the_whole(seed, rows, columns, height, width):
    logits = torch.randn(6, rows, columns, generator=torch.Generator().manual_seed(seed))
    whole = F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    first, second = whole.topk(2, dim=0).values
    found = resize_argmax(logits, (height, width), max_elements=6 * width * 3)
    clear = first - second > 1e-5
    assert found.shape == (height, width)
    assert torch.equal(found[clear], whole.argmax(0)[clear])


def test_memory_does_not_limit_the_size():
    logits = torch.randn(920, 8, 8)
    assert resize_argmax(logits, (300, 500), max_elements=1).shape == (300, 500)  # a row at a time


def head(**changes):
    options = {"in_feature": "res5", "in_channels": 4, "num_classes": 3, "ignore_value": 1000, "loss_weight": 1.0}
    return PixelLinearHead(**{**options, "target_stride": 2, **changes})


def test_the_heads_loss_is_cross_entropy_at_half_size():
    torch.manual_seed(0)
    one = head().train()
    features = {"res5": torch.randn(2, 4, 2, 3)}
    targets = torch.randint(0, 3, (2, 16, 24))
    targets[0, :5] = 1000
    loss = one(features, targets)[1]["loss_sem_seg"]
    logits = F.interpolate(one.predictor(features["res5"]), size=(8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets[:, ::2, ::2], ignore_index=1000))
    nothing = one(features, torch.full((2, 16, 24), 1000))[1]["loss_sem_seg"]
    assert nothing == 0


def test_the_head_takes_one_feature(tiny_cfg):
    cfg = tiny_cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "LussSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res4", "res5"]
    with pytest.raises(ValueError, match="must be one of"):
        build_model(cfg)


def tiny(name, *opts):
    small = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.SMALL_RESNET.WIDTH",
        8,
        "MODEL.PASS.HIDDEN_DIM",
        16,
        "MODEL.PASS.FEAT_DIM",
        8,
    ]
    torch.manual_seed(0)
    return build_model(setup_cfg(name, [*small, *opts]))


def test_a_segmentor_learns_sixteen_images_by_heart():
    # Squares of one of two bright colors on black, classes 1 and 2; at the network's stride, so that it can draw their edges.
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(16):
        label = index % 2 + 1
        top, left = (16 * torch.randint(0, 3, (2,), generator=generator)).tolist()
        labels = torch.zeros(64, 64, dtype=torch.long)
        labels[top : top + 32, left : left + 32] = label
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        image[label, labels > 0] = 255
        samples.append({"image": image, "sem_seg": labels, "height": 64, "width": 64})
    model = tiny("LUSS/pass_tiny_finetune.yaml", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model(samples).values()).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = torch.stack([r["sem_seg_labels"] for r in model.eval()(samples)])
    gt = torch.stack([s["sem_seg"] for s in samples])
    ious = [((predicted == c) & (gt == c)).sum() / ((predicted == c) | (gt == c)).sum() for c in range(3)]
    assert float(torch.stack(ious).mean()) > 0.95


def test_the_clusterer_gives_nearest_centroids_and_applies_the_threshold(tmp_path):
    np.save(tmp_path / "c.npy", np.random.default_rng(0).normal(size=(5, 64)))
    options = ("MODEL.META_ARCHITECTURE", "PASSPixelClusterer", "LUSS.CENTROIDS", str(tmp_path / "c.npy"))
    model = tiny("LUSS/pass_tiny_attention.yaml", *options, "LUSS.THRESHOLD", 0.5).eval()
    sample = {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "height": 77, "width": 120}
    with torch.no_grad():
        (output,) = model([sample])
        features, attention = model.attended_features(sample["image"][None])
    assert output["sem_seg_labels"].shape == output["attention"].shape == (77, 120)
    expected = torch.where(output["attention"] < 0.5, 0, output["clusters"])
    assert torch.equal(output["sem_seg_labels"], expected)
    cosine = F.normalize(features[0].flatten(1).T, dim=1) @ F.normalize(model.centroids, dim=1).T
    coarse, mean_attention = model.coarse_labels(sample["image"][None])
    assert torch.equal(coarse.flatten(), cosine.argmax(1) + 1)
    torch.testing.assert_close(mean_attention, attention.mean(1))
    with pytest.raises(FileNotFoundError, match="LUSS.CENTROIDS must be the centroids.npy"):
        tiny("LUSS/pass_tiny_attention.yaml", *options[:2])


def test_a_pretrained_queue_does_not_reach_the_attention_stage():
    queue = ("MODEL.PASS.QUEUE_LENGTH", 64)
    pretrained = tiny("LUSS/pass_tiny_pretrain.yaml", *queue)
    pretrained.swapped.num_queued.fill_(64)
    pretrained.swapped.iteration.fill_(9)
    attention = tiny("LUSS/pass_tiny_attention.yaml", *queue)
    attention.load_state_dict(pretrained.state_dict(), strict=False)
    assert int(attention.swapped.num_queued) == 0 and int(attention.swapped.iteration) == 0
    assert torch.equal(attention.swapped.prototypes, pretrained.swapped.prototypes)
    attention.swapped.num_queued.fill_(32)  # its own checkpoint does
    again = tiny("LUSS/pass_tiny_attention.yaml", *queue)
    again.load_state_dict(attention.state_dict())
    assert int(again.swapped.num_queued) == 32


def test_votes_by_hand():
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]), dim=1)
    labels = torch.tensor([2, 1, 1, 0])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    vote = {"num_ids": 3, "temperature": 0.07}
    assert knn_vote(queries, bank, labels, neighbors=1, **vote).tolist() == [2, 1]
    # Two neighbors: label 2 weighs exp(1 / T), label 1 exp(0.994 / T): the nearer one wins.
    assert knn_vote(queries, bank, labels, neighbors=2, **vote).tolist() == [2, 1]
    # All four, nearly without a temperature: label 1 has two votes.
    assert knn_vote(queries, bank, labels, neighbors=10, num_ids=3, temperature=100.0).tolist() == [1, 1]


def test_the_bank_finds_its_own_images_again():
    generator = torch.Generator().manual_seed(0)
    means = F.normalize(torch.randn(4, 16, generator=generator), dim=1)
    labels = torch.kron(torch.tensor([[0, 1], [2, 3]]), torch.ones(8, 8, dtype=torch.long))
    labels[0, 0] = 1000
    features = means[labels.clamp_max(3)].permute(2, 0, 1) + 0.05 * torch.randn(16, 16, 16, generator=generator)
    bank, ids = masked_means(features, labels)
    assert ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-5)
    found = knn_vote(
        F.normalize(features.flatten(1).T, dim=1), torch.from_numpy(bank), torch.from_numpy(ids),
        num_ids=4, neighbors=1, temperature=0.07,
    )  # fmt: skip
    valid = labels.flatten() != 1000
    assert (found == labels.flatten())[valid].float().mean() > 0.95


def test_an_empty_bank_is_told():
    model = tiny("LUSS/pass_tiny_distance.yaml").eval()
    with pytest.raises(RuntimeError, match="set LUSS.BANK"):
        model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
