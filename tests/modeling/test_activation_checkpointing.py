"""Activation checkpointing changes memory, and nothing else."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from u2seg.data import build_train_loader
from u2seg.modeling.backbone.activation_checkpointing import checkpoint_residual_blocks


def step(cfg, checkpointed):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    if checkpointed:
        assert checkpoint_residual_blocks(model.backbone) == 8  # ResNet-18: 4 stages of 2
    batch = next(iter(build_train_loader(cfg, 0)))
    torch.manual_seed(1)
    with EventStorage(0):
        sum(model(batch).values()).backward()
    return model


def test_gradients_and_running_statistics_are_unchanged(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path)
    plain, checkpointed = step(cfg, False), step(cfg, True)
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad)), name
    for (name, a), (other, b) in zip(plain.state_dict().items(), checkpointed.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b), name  # running means, variances and counts among them


def test_fewer_activations_are_kept(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path)
    batch = torch.rand(2, 3, 64, 64)

    def saved(checkpointed):
        torch.manual_seed(0)
        backbone = build_model(cfg).backbone.train()
        if checkpointed:
            checkpoint_residual_blocks(backbone)
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone(batch)
        return total

    assert saved(True) < 0.75 * saved(False)


def test_a_backbone_without_residual_blocks_is_refused():
    with pytest.raises(ValueError, match="needs a backbone with residual blocks"):
        checkpoint_residual_blocks(nn.Conv2d(3, 3, 1))
