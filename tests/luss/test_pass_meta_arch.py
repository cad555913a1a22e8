"""The two training stages: what gets a gradient, what stays, what the queue and the freeze do."""

import logging
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from u2seg.luss.modeling.pass_heads import CollapseMonitor, SwappedPrediction
from u2seg.luss.modeling.pass_meta_arch import run_by_size


def build(cfg, *changes):
    cfg = cfg.clone()
    cfg.merge_from_list(list(changes))
    torch.manual_seed(0)
    return build_model(cfg)


def step(model, batch, lr=0.1):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    return losses


def gradient_names(model, loss):
    """Returns the names of the parameters that a loss reaches with a gradient other than zero."""
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def swapped_prediction(**changes):
    settings = {
        "num_prototypes": 5,
        "feat_dim": 4,
        "temperature": 0.1,
        "sinkhorn_eps": 0.05,
        "sinkhorn_iters": 3,
        "queue_length": 0,
        "queue_start_iter": 0,
        "freeze_prototypes_iters": 0,
    }
    torch.manual_seed(0)
    return SwappedPrediction(**{**settings, **changes})


def unit_rows(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def test_losses_are_weighted_and_reach_every_parameter(tiny_cfg, multi_crop_batch):
    model = build(tiny_cfg)
    losses = model(multi_crop_batch)
    assert set(losses) == {"loss_i2i", "loss_d2s_res4", "loss_p2p"}
    sum(losses.values()).backward()
    unreached = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not unreached
    torch.manual_seed(0)
    heavier = build(tiny_cfg, "MODEL.PASS.LOSS_WEIGHTS", (3.0, 1.0))(multi_crop_batch)
    # Weights (1, 1) halve both terms, (3, 1) give 3/4 and 1/4.
    torch.testing.assert_close(heavier["loss_i2i"], 1.5 * losses["loss_i2i"])
    torch.testing.assert_close(heavier["loss_d2s_res4"], 0.5 * losses["loss_d2s_res4"])


def test_prototypes_keep_length_one_and_are_frozen_at_first(tiny_cfg, multi_crop_batch):
    model = build(tiny_cfg, "MODEL.PASS.FREEZE_PROTOTYPES_ITERS", 2)
    start = model.swapped.prototypes.detach().clone()
    for iteration in range(3):
        step(model, multi_crop_batch)
        moved = not torch.allclose(model.swapped.prototypes, start, atol=1e-6)
        assert moved == (iteration >= 2)
    model(multi_crop_batch)
    torch.testing.assert_close(model.swapped.prototypes.norm(dim=1), torch.ones(6))


def test_deep_to_shallow_and_pixels_give_the_prototypes_no_gradient(tiny_cfg, multi_crop_batch):
    model = build(tiny_cfg)
    losses = model(multi_crop_batch)
    assert "swapped.prototypes" in gradient_names(model, losses["loss_i2i"])
    shallow = gradient_names(model, losses["loss_d2s_res4"])
    assert "swapped.prototypes" not in shallow
    assert not any(name.startswith(("projector", "backbone.res5", "pixel")) for name in shallow)
    assert any(name.startswith("backbone.res4") for name in shallow)
    pixels = gradient_names(model, losses["loss_p2p"])
    assert any(name.startswith("pixel_predictor") for name in pixels)
    assert any(name.startswith("pixel_projector") for name in pixels)  # through the prediction; the target is detached
    assert "swapped.prototypes" not in pixels


def test_without_the_pixel_loss_its_heads_are_left_out(tiny_cfg, multi_crop_batch):
    model = build(tiny_cfg, "MODEL.PASS.P2P_WEIGHT", 0.0)
    assert "loss_p2p" not in model(multi_crop_batch)
    assert not any(name.startswith("pixel_p") for name, _ in model.named_parameters())


def test_swapped_prediction_is_the_mean_over_ordered_pairs_of_views():
    swapped = swapped_prediction()
    views = [unit_rows(6, 4) for _ in range(3)]
    loss, codes = swapped(views)
    log_probabilities = [torch.log_softmax(view @ swapped.prototypes.T / 0.1, dim=1) for view in views]
    terms = [-(codes[a] * log_probabilities[b]).sum(1).mean() for a in (0, 1) for b in range(3) if a != b]
    torch.testing.assert_close(loss, sum(terms) / 4)


def test_the_queue_fills_from_its_start_and_then_shapes_the_codes():
    swapped = swapped_prediction(queue_length=8, queue_start_iter=1)
    views = [[unit_rows(4, 4), unit_rows(4, 4)] for _ in range(4)]
    swapped(views[0])
    assert int(swapped.num_queued) == 0
    swapped(views[1])
    swapped(views[2])
    assert int(swapped.num_queued) == 8
    torch.testing.assert_close(swapped.queue[0], torch.cat([views[2][0], views[1][0]]))  # newest first
    alone = swapped_prediction()
    alone.load_state_dict({**swapped.state_dict(), "queue": alone.queue})
    assert not torch.allclose(swapped(views[3])[1][0], alone(views[3])[1][0], atol=1e-3)
    restored = swapped_prediction(queue_length=8, queue_start_iter=1)
    restored.load_state_dict(swapped.state_dict())
    assert int(restored.num_queued) == 12 and int(restored.iteration) == 4


def test_attention_stage_changes_attention_and_prototypes_only(tiny_cfg, multi_crop_batch):
    model = build(tiny_cfg, "MODEL.META_ARCHITECTURE", "PASSPixelAttention")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    for _ in range(2):
        step(model, multi_crop_batch)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("attention.") for name in changed) and "swapped.prototypes" in changed
    assert all(name.startswith(("attention.", "swapped.")) for name in changed)


def test_the_references_moving_statistics_are_a_key(tiny_cfg, multi_crop_batch):
    changes = ("MODEL.META_ARCHITECTURE", "PASSPixelAttention", "MODEL.PASS.PIXEL_ATTENTION.FROZEN_NORM_MOVES", True)
    model = build(tiny_cfg, *changes)
    before = model.backbone.stem.conv1.norm.running_mean.clone()
    model.train()
    step(model, multi_crop_batch)
    assert not torch.equal(before, model.backbone.stem.conv1.norm.running_mean)


def test_attention_is_a_map_per_channel_at_a_quarter_of_the_stride(tiny_cfg):
    model = build(tiny_cfg, "MODEL.META_ARCHITECTURE", "PASSPixelAttention").eval()
    features, attention = model.attended_features(torch.rand(2, 3, 64, 96) * 255)
    assert features.shape == attention.shape == (2, 64, 16, 24)  # width 8 doubled thrice; stride 16 / 4
    assert attention.min() > 0 and attention.max() < 1


def test_pretraining_is_not_inference(tiny_cfg, multi_crop_batch):
    with pytest.raises(RuntimeError, match="PASSPretrainer only trains.*DATASETS.TEST"):
        build(tiny_cfg).eval()(multi_crop_batch)


def test_wrong_features_and_weights_are_refused(tiny_cfg):
    with pytest.raises(ValueError, match=r"gives \['res4', 'res5'\].*\['res3'\]"):
        build(tiny_cfg, "MODEL.PASS.SHALLOW_STAGES", ("res3",))
    with pytest.raises(ValueError, match="one weight for the deep loss and one for each"):
        build(tiny_cfg, "MODEL.PASS.LOSS_WEIGHTS", (1.0, 1.0, 1.0))


def test_views_of_one_size_share_a_batch():
    seen = []

    def double(batch):
        seen.append(tuple(batch.shape))
        return 2 * batch

    views = [torch.ones(2, 3, 8, 8), torch.full((2, 3, 8, 8), 2.0), torch.full((2, 3, 4, 4), 3.0)]
    results = run_by_size(views, double)
    assert seen == [(4, 3, 8, 8), (2, 3, 4, 4)]
    assert all(torch.equal(result, 2 * view) for result, view in zip(results, views))


def test_what_tells_a_collapse_is_logged(tiny_cfg, multi_crop_batch):
    with EventStorage() as storage:
        build(tiny_cfg)(multi_crop_batch)
        values = {name: value for name, (value, _) in storage.latest().items()}
    assert 0 <= values["pass/code_entropy"] <= math.log(6) + 1e-4
    assert 0 <= values["pass/view_retrieval"] <= 1
    assert values["pass/i2i_over_ln_k"] > 0


def test_a_collapse_is_told_with_its_remedy(caplog):
    monitor = CollapseMonitor(num_prototypes=10, patience=5)
    with caplog.at_level(logging.WARNING):
        assert [monitor.update(math.log(10), math.log(10)) for _ in range(10)].count(True) == 2
        assert "MODEL.PASS.SINKHORN_EPS" in caplog.text
    healthy = CollapseMonitor(num_prototypes=10, patience=5)
    assert not any(healthy.update(0.5 * math.log(10), 0.8 * math.log(10)) for _ in range(50))
    # Learning slowly is no collapse: the loss is at ln K, but codes are sharp.
    slow = CollapseMonitor(num_prototypes=10, patience=5)
    assert not any(slow.update(math.log(10), 0.3 * math.log(10)) for _ in range(50))
