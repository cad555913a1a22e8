"""Gradient clipping of the CutLER configurations: one real step, group by group, against an independent restatement."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from u2seg.config import setup_cfg
from u2seg.data import build_train_loader
from u2seg.solver import build_optimizer

DIRECTORY = "ImageNet-InstanceSegmentation"
CUTLER_CONFIGS = [
    "cutler_R50",
    "cutler_R50_self_training",
    "cutler_mask_rcnn_R50",
    "u2seg_R50_300",
    "u2seg_R50_800",
    "u2seg_R50_2911",
]
# The groups of parameters whose updates the recorded comparison with CutLER tells apart.
GROUPS = {
    "all": "",
    "backbone": "backbone.bottom_up",
    "FPN": "backbone.fpn",
    "RPN": "proposal_generator",
    "box heads": "roi_heads.box",
    "mask head": "roi_heads.mask",
}


@pytest.mark.parametrize("name", CUTLER_CONFIGS)
def test_every_cutler_configuration_clips_each_tensor_alone(name):
    clip = setup_cfg(f"{DIRECTORY}/{name}.yaml").SOLVER.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE) == (True, "norm", 1.0, 2.0)


def one_step(tiny_cfg, tmp_path, clip_type):
    """Returns (gradients, weights, updates over the learning rate) of a small CutLER model's first step, name -> array each."""
    recipe = setup_cfg(f"{DIRECTORY}/cutler_R50.yaml")
    cfg = tiny_cfg(tmp_path, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    cfg.SOLVER = recipe.SOLVER.clone()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = 2, clip_type
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups)
    with EventStorage(0):
        # Far more than clipping lets through, as in the first steps of a real training.
        loss = 20 * sum(model(next(iter(build_train_loader(cfg, 0)))).values())
    loss.backward()
    named = {name: p for name, p in model.named_parameters() if p.grad is not None}
    numpy = lambda tensor: tensor.detach().double().numpy().copy()  # noqa: E731
    gradients, weights = {n: numpy(p.grad) for n, p in named.items()}, {n: numpy(p) for n, p in named.items()}
    optimizer.step()
    return gradients, weights, {n: (weights[n] - numpy(p)) / 0.01 for n, p in named.items()}


def norm(arrays):
    return float(np.sqrt(sum((array**2).sum() for array in arrays)))


def group_norms(arrays):
    return {
        group: norm(array for name, array in arrays.items() if name.startswith(prefix))
        for group, prefix in GROUPS.items()
    }


def slow_updates(gradients, weights, clip_type):
    """SGD's first step over its rate: the clipped gradient plus the weight's decay; the momentum is empty yet."""
    whole = norm(gradients.values())
    updates = {}
    for name, gradient in gradients.items():
        length = norm([gradient]) if clip_type == "norm" else whole
        updates[name] = gradient * min(1.0, 1.0 / length) + (0.0 if ".norm." in name else 5e-5) * weights[name]
    return updates


@pytest.mark.parametrize("clip_type", ["norm", "full_model"])
def test_a_step_moves_every_group_as_far_as_the_restatement(tiny_cfg, tmp_path, clip_type):
    gradients, weights, updates = one_step(tiny_cfg, tmp_path, clip_type)
    expected = group_norms(slow_updates(gradients, weights, clip_type))
    for group, length in group_norms(updates).items():
        assert length == pytest.approx(expected[group], rel=0.01), group


def test_the_two_rules_differ_most_in_the_heads(tiny_cfg, tmp_path):
    gradients, _, alone = one_step(tiny_cfg, tmp_path, "norm")
    _, _, together = one_step(tiny_cfg, tmp_path, "full_model")
    assert (
        sum(norm([gradient]) > 1 for gradient in gradients.values()) > 10
    )  # many tensors are clipped, or this proves nothing
    alone, together = group_norms(alone), group_norms(together)
    assert together["all"] == pytest.approx(1.0, rel=0.01)
    assert all(alone[group] > 1.5 * together[group] for group in GROUPS)
