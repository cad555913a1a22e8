"""Dense contrastive pretraining: both losses against slow restatements, what is a negative of what, and what learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from u2seg.config import setup_cfg
from u2seg.features import build_feature_extractor
from u2seg.luss.engine.knn_accuracy import monitored_datasets
from u2seg.luss.modeling.dense_contrast import contrast

CONFIG = "LUSS/dense_contrast_photos_cpu.yaml"
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.SMALL_RESNET.WIDTH", 8, "MODEL.SMALL_RESNET.BLOCKS_PER_STAGE", 1),
    *("MODEL.DENSE_CONTRAST.HIDDEN_DIM", 16, "MODEL.DENSE_CONTRAST.FEAT_DIM", 8),
]


def build(*changes):
    torch.manual_seed(0)
    return build_model(setup_cfg(CONFIG, [*TINY, *changes])).train()


def unit_rows(count, width=6, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def slow_contrast(first, second, temperature, group=None):
    """InfoNCE, one row, one direction and one negative at a time, in Python's floats."""
    total = 0.0
    count = len(first)
    for queries, keys in ((first, second), (second, first)):
        for row in range(count):
            scores = []
            for column in range(count):
                if group is None or column == row or group[column] != group[row]:
                    scores.append(
                        math.exp(sum(a * b for a, b in zip(queries[row].tolist(), keys[column].tolist())) / temperature)
                    )
                    if column == row:
                        own = scores[-1]
            total -= math.log(own / sum(scores))
    return total / (2 * count)


def bilinear(feature_map, x, y):
    """The value (C,) at x and y in -1..1 of the map's edges, cells beyond the outermost centers continued; a slow restatement."""
    _, height, width = feature_map.shape
    column = min(max((x + 1) / 2 * width - 0.5, 0), width - 1)
    row = min(max((y + 1) / 2 * height - 0.5, 0), height - 1)
    left, top = int(column), int(row)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    u, v = column - left, row - top
    upper = (1 - u) * feature_map[:, top, left] + u * feature_map[:, top, right]
    lower = (1 - u) * feature_map[:, bottom, left] + u * feature_map[:, bottom, right]
    return (1 - v) * upper + v * lower


@pytest.mark.parametrize("group", [None, [0, 0, 1, 1, 2], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrast_equals_a_slow_restatement(group, temperature):
    first, second = unit_rows(5), unit_rows(5, seed=1)
    found = contrast(first, second, temperature, None if group is None else torch.tensor(group))
    assert float(found) == pytest.approx(slow_contrast(first, second, temperature, group), rel=1e-5)


def test_contrast_by_hand():
    # Two rows at a right angle: own cosine 1, the other's 0, so each row's loss is log(1 + exp(-1 / 0.5)).
    rows = torch.eye(2)
    assert float(contrast(rows, rows, 0.5)) == pytest.approx(math.log(1 + math.exp(-2)))
    # All rows alike: nothing tells them apart.
    same = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    assert float(contrast(same, same, 0.2)) == pytest.approx(math.log(4))
    # One group: no negative is left.
    assert float(contrast(same, same, 0.2, torch.zeros(4, dtype=torch.int64))) == 0


def test_contrast_is_symmetric_and_does_not_depend_on_the_order():
    first, second = unit_rows(7), unit_rows(7, seed=1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    found = contrast(first, second, 0.2)
    torch.testing.assert_close(contrast(second, first, 0.2), found)
    torch.testing.assert_close(contrast(first[order], second[order], 0.2), found)


@pytest.mark.parametrize("same_image_negatives", [False, True])
def test_the_dense_loss_equals_a_slow_restatement(multi_crop_batch, same_image_negatives):
    model = build(
        "MODEL.DENSE_CONTRAST.POINT_WEIGHT", 1.0, "MODEL.DENSE_CONTRAST.SAME_IMAGE_NEGATIVES", same_image_negatives
    )
    maps = {}
    model.point_head.register_forward_hook(lambda module, inputs, output: maps.update(points=output.detach().float()))
    losses = model(multi_crop_batch)
    rows = {0: [], 1: []}
    group = []
    size = len(multi_crop_batch)
    for index, sample in enumerate(multi_crop_batch[:5]):  # the sixth pair of views does not overlap
        for view in (0, 1):
            for x, y in sample["overlap_grids"][view].reshape(-1, 2).tolist():
                rows[view].append(F.normalize(bilinear(maps["points"][view * size + index], x, y), dim=0))
        group += [index] * 49
    first, second = torch.stack(rows[0]), torch.stack(rows[1])
    similarity = first @ second.T / 0.2
    if not same_image_negatives:
        for row in range(len(group)):
            for column in range(len(group)):
                if row != column and group[row] == group[column]:
                    similarity[row, column] = -math.inf
    own = similarity.diagonal()
    expected = ((similarity.logsumexp(1) - own).mean() + (similarity.logsumexp(0) - own).mean()) / 2
    assert float(losses["loss_points"].detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(losses["loss_views"].detach()) == 0


def test_the_two_losses_share_the_weight(multi_crop_batch):
    both = build()(multi_crop_batch)
    views = build("MODEL.DENSE_CONTRAST.POINT_WEIGHT", 0.0)(multi_crop_batch)
    points = build("MODEL.DENSE_CONTRAST.POINT_WEIGHT", 1.0)(multi_crop_batch)
    assert set(views) == {"loss_views"}
    torch.testing.assert_close(both["loss_views"], 0.5 * views["loss_views"])
    torch.testing.assert_close(both["loss_points"], 0.5 * points["loss_points"])


def test_views_without_overlap_leave_the_dense_loss_at_zero(multi_crop_batch):
    losses = build()([{**sample, "overlaps": False} for sample in multi_crop_batch])
    assert float(losses["loss_points"].detach()) == 0
    sum(losses.values()).backward()


def test_every_parameter_learns_and_the_losses_fall(multi_crop_batch):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    totals = []
    with EventStorage() as storage:
        for _ in range(12):
            loss = sum(model(multi_crop_batch).values())
            optimizer.zero_grad()
            loss.backward()
            assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
            optimizer.step()
            totals.append(float(loss.detach()))
        assert 0 <= storage.latest()["dense_contrast/view_retrieval"][0] <= 1
    assert totals[-1] < totals[0] - 0.1


def test_image_features_have_length_one_and_inference_is_refused(multi_crop_batch):
    model = build().eval()
    pixels = torch.stack([sample["views"][0] for sample in multi_crop_batch])
    with torch.no_grad():
        features = model.image_features(pixels)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    assert features.shape == (6, 64)
    with pytest.raises(RuntimeError, match="DenseContrastPretrainer only trains"):
        model(multi_crop_batch)


def test_an_output_that_the_backbone_lacks_is_named():
    with pytest.raises(ValueError, match=r"MODEL\.DENSE_CONTRAST\.FEATURE is 'res4', the backbone gives \['res5'\]"):
        build("MODEL.DENSE_CONTRAST.FEATURE", "res4")


def test_a_checkpoint_gives_the_patch_features_of_its_backbone(tmp_path):
    model = build().eval()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    network = tmp_path / "network.yaml"
    network.write_text(
        f"_BASE_: {CONFIG}\nMODEL:\n  SMALL_RESNET: {{WIDTH: 8, BLOCKS_PER_STAGE: 1}}\n", encoding="utf-8"
    )
    opts = ["FEATURES.NAME", "ResNetFeatures", "FEATURES.IMAGE_SIZE", (32, 48), "FEATURES.RESNET.CENTER", False]
    opts += ["FEATURES.RESNET.CONFIG_FILE", str(network), "FEATURES.RESNET.OUT_FEATURE", "res5"]
    opts += ["FEATURES.RESNET.WEIGHTS", str(tmp_path / "model.pth")]
    extractor = build_feature_extractor(setup_cfg("quick_schedules/photos.yaml", opts))
    images = torch.rand(2, 3, 32, 48)
    features = extractor(images)
    assert features.shape == (2, 64, 2, 3)
    with torch.no_grad():
        pooled = F.normalize(features.mean(dim=(2, 3)), dim=1)
        torch.testing.assert_close(pooled, model.image_features(images * 255), atol=1e-5, rtol=1e-4)


def test_the_knn_accuracy_is_monitored():
    assert monitored_datasets(setup_cfg(CONFIG, ["LUSS.KNN.TRAIN", ("knn_images",)])) == ["knn_images"]
