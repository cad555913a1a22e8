"""The trainer: exact resuming, stopping on NaN, accumulation, averaged weights, and what a run leaves behind."""

import json
import math
import multiprocessing
import os
import signal

import pytest
import torch
from detectron2.engine import HookBase
from torch import nn
from u2seg.checkpoint import AtomicCheckpointer
from u2seg.engine import NonFiniteLossError, U2SegTrainer
from u2seg.engine.hooks import AveragedWeights
from u2seg.engine.training_step import TrainingStep, resolve_precision


class Losses(HookBase):
    """Keeps the losses of every iteration."""

    def __init__(self):
        self.rows = []

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.rows.append({key: value[0] for key, value in latest.items() if "loss" in key})


def train(cfg, resume=False, stop_after=None):
    """Returns the losses of each iteration and the trainer; ``stop_after`` kills the run behind that iteration's checkpoint."""
    trainer = U2SegTrainer(cfg)
    trainer.resume_or_load(resume)
    losses = Losses()
    trainer.register_hooks([losses])
    if stop_after is not None:

        class Kill(HookBase):
            def after_step(self):
                if self.trainer.iter + 1 == stop_after:
                    raise KeyboardInterrupt

        trainer.register_hooks([Kill()])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return losses.rows, trainer


RECIPE = (
    "SOLVER.CHECKPOINT_PERIOD", 2,
    "SOLVER.EMA.ENABLED", True,
    "SOLVER.ACCUMULATION_STEPS", 2,
    "INPUT.COPY_PASTE.ENABLED", True,
    "MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True,
    "INPUT.MIN_SIZE_TRAIN", (40, 48, 56),
)  # fmt: skip


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_cfg, tmp_path):
    whole, trainer = train(tiny_cfg(tmp_path / "whole", *RECIPE))
    first, _ = train(tiny_cfg(tmp_path / "cut", *RECIPE), stop_after=2)
    rest, resumed = train(tiny_cfg(tmp_path / "cut", *RECIPE), resume=True)
    assert len(whole) == 4 and len(first) == len(rest) == 2
    assert first + rest == whole  # every loss, bit for bit
    for (name, a), b in zip(trainer.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(a, b), name
    for name, value in trainer.average.weights.items():
        assert torch.equal(value, resumed.average.weights[name]), name


def test_workers_change_nothing(tiny_cfg, tmp_path):
    alone, _ = train(tiny_cfg(tmp_path / "0", "SOLVER.MAX_ITER", 2))
    helped, _ = train(tiny_cfg(tmp_path / "2", "SOLVER.MAX_ITER", 2, "DATALOADER.NUM_WORKERS", 2))
    assert alone == helped


def test_a_drawn_seed_is_kept_for_resuming(tiny_cfg, tmp_path):
    options = ("SEED", -1, "SOLVER.CHECKPOINT_PERIOD", 2)
    _, cut = train(tiny_cfg(tmp_path, *options), stop_after=2)
    _, resumed = train(tiny_cfg(tmp_path, *options), resume=True)
    assert resumed.seed == cut.seed
    assert resumed.data_loader.dataset.seed == resumed.data_loader.batch_sampler.seed == cut.seed
    assert resumed.data_loader.batch_sampler.start_batch == 2


def test_nan_stops_before_any_weight_changes(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2)
    trainer = U2SegTrainer(cfg)
    trainer.resume_or_load(False)

    class Poison(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                with torch.no_grad():
                    self.trainer.model.sem_seg_head.predictor.bias.fill_(math.nan)
                self.before = {name: value.clone() for name, value in self.trainer.model.named_parameters()}

    poison = Poison()
    trainer.register_hooks([poison])
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train()
    text = str(error.value)
    assert "iteration 3" in text and "loss_sem_seg nan" in text
    assert ".png" in text and "Learning rate: " in text
    assert "model_0000001.pth" in text
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, poison.before[name]) or "sem_seg_head.predictor" in name
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "model_final.pth").exists()
    # The message's remedy works.
    rest, _ = train(cfg, resume=True)
    assert len(rest) == 2


@pytest.mark.parametrize("part", ["backbone.fpn_output2", "proposal_generator.rpn_head.objectness_logits"])
def test_nan_that_detectron2_finds_first_ends_in_the_same_message(tiny_cfg, tmp_path, part):
    trainer = U2SegTrainer(tiny_cfg(tmp_path))
    with torch.no_grad():
        trainer.model.get_submodule(part).weight.fill_(math.nan)
    with pytest.raises(
        NonFiniteLossError, match=r"iteration 0: .*Images: .*\.png.*Learning rate: .*Last good checkpoint: none"
    ):
        trainer.train()


def test_a_learning_rate_that_is_far_too_high_ends_in_the_same_message(tiny_cfg, tmp_path):
    options = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 1e5, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 20)
    trainer = U2SegTrainer(tiny_cfg(tmp_path, *options, "SOLVER.CLIP_GRADIENTS.ENABLED", False))
    with pytest.raises(NonFiniteLossError, match="lower SOLVER.BASE_LR"):
        trainer.train()


def test_a_checkpoint_with_nan_is_not_written(tiny_cfg, tmp_path):
    trainer = U2SegTrainer(tiny_cfg(tmp_path))
    trainer.checkpointer.save("good")
    with torch.no_grad():
        trainer.model.sem_seg_head.predictor.bias.fill_(math.inf)
    with pytest.raises(FloatingPointError, match=r"checkpoint 'bad' is not written: sem_seg_head\.predictor\.bias"):
        trainer.checkpointer.save("bad")
    assert not (tmp_path / "bad.pth").exists()
    assert (tmp_path / "last_checkpoint").read_text() == "good.pth"


def test_a_kill_while_a_checkpoint_is_written_leaves_the_last_one(tiny_cfg, tmp_path, monkeypatch):
    trainer = U2SegTrainer(tiny_cfg(tmp_path))
    trainer.checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def half(data, file, *args, **kwargs):
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        trainer.checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]  # the half is gone


def save_and_be_killed(directory):
    checkpointer = AtomicCheckpointer(nn.Linear(2, 2), directory)
    checkpointer.save("one")
    save = torch.save

    def killed(data, file):
        save(data, file)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = killed
    checkpointer.save("one")


def test_a_kill_by_signal_while_a_checkpoint_is_written(tmp_path):
    # A real SIGKILL: nothing is cleaned up, and still the old file is whole and the mark points to it.
    process = multiprocessing.get_context("fork").Process(target=save_and_be_killed, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(tmp_path / "one.pth", weights_only=True)["model"]["weight"].shape == (2, 2)
    assert (tmp_path / "last_checkpoint").read_text() == "one.pth"


class Line(nn.Module):
    """Loss (w x - y)^2 for a batch of {"x", "y"}, averaged."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        return {"loss": sum((self.w * one["x"] - one["y"]) ** 2 for one in batch) / len(batch)}


def test_accumulated_batches_give_the_gradient_of_one_large_batch():
    batches = [[{"x": 1.0, "y": 3.0}], [{"x": 2.0, "y": 1.0}]]
    weights = []
    for loader, steps in (([batches[0] + batches[1]], 1), (batches, 2)):
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = TrainingStep(model, loader, optimizer, seed=0, accumulation_steps=steps)
        step._write_metrics = lambda losses, data_time: None  # no event storage here
        step.run_step()
        weights.append(model.w.item())
    # d/dw of ((w - 3)^2 + (2w - 1)^2) / 2 at w = 1: (2 (-2) + 4 (1)) / 2 = 0 ... so both stay at 1 - 0.1 * 0.
    assert weights == [1.0, 1.0]


def test_accumulation_is_an_average_not_a_sum():
    model = Line()
    step = TrainingStep(
        model, [[{"x": 1.0, "y": 3.0}]] * 2, torch.optim.SGD(model.parameters(), lr=0.1), seed=0, accumulation_steps=2
    )
    step._write_metrics = lambda losses, data_time: None
    step.run_step()
    assert model.w.item() == pytest.approx(1.4)  # gradient 2 (1 - 3) = -4, once


def test_the_models_random_numbers_depend_on_seed_and_iteration():
    class Draw(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))
            self.drawn = []

        def forward(self, batch):
            self.drawn.append(torch.rand(()).item())
            return {"loss": self.w * 0}

    def draws(seed, iterations):
        model = Draw()
        step = TrainingStep(model, [[{}]] * 9, torch.optim.SGD(model.parameters(), lr=0.1), seed=seed)
        step._write_metrics = lambda losses, data_time: None
        for step.iter in iterations:
            torch.rand(3)  # somebody else draws in between
            step.run_step()
        return model.drawn

    assert draws(0, [0, 1, 2])[2] == draws(0, [2])[0]
    assert draws(0, [0]) != draws(1, [0]) and draws(0, [0]) != draws(0, [1])


def test_averaged_weights_on_a_hand_made_case():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = AveragedWeights(model, decay=0.15)
    model.weight.data.fill_(1.0)
    average.update()  # first update: d = min(0.15, 1/10) = 0.1, average 0.1 * 0 + 0.9 * 1
    assert average.weights["weight"].item() == pytest.approx(0.9)
    model.weight.data.fill_(2.0)
    average.update()  # second: d = min(0.15, 2/11) = 0.15, average 0.15 * 0.9 + 0.85 * 2
    assert average.weights["weight"].item() == pytest.approx(1.835)
    with average.applied():
        assert model.weight.item() == pytest.approx(1.835)
    assert model.weight.item() == 2.0


def test_a_runs_directory(tiny_cfg, tmp_path):
    from types import SimpleNamespace

    import u2seg.engine.launch as launch

    cfg = tiny_cfg(tmp_path, "SOLVER.EMA.ENABLED", True, "SOLVER.MAX_ITER", 1)
    path = tmp_path / "in.yaml"
    path.write_text(cfg.dump())
    launch.run_training(SimpleNamespace(config_file=str(path), opts=[], eval_only=False, resume=False))
    names = set(os.listdir(tmp_path))
    assert {"config.yaml", "run.json", "log.txt", "metrics.json", "model_final.pth", "model_ema.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["seed"] == 0 and run["u2seg"]
    assert "NUM_CLASSES: 2" in (tmp_path / "config.yaml").read_text()  # resolved


def test_precision(tiny_cfg, tmp_path):
    assert resolve_precision(tiny_cfg(tmp_path)) is None
    on = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION")
    assert resolve_precision(tiny_cfg(tmp_path, *on, "auto")) is None  # on a CPU
    assert resolve_precision(tiny_cfg(tmp_path, *on, "bf16")) is torch.bfloat16
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        resolve_precision(tiny_cfg(tmp_path, *on, "fp16"))
    with pytest.raises(ValueError, match="must be one of auto, bf16, fp16, got 'int8'"):
        resolve_precision(tiny_cfg(tmp_path, *on, "int8"))


def test_bfloat16_and_channels_last_train(tiny_cfg, tmp_path):
    options = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bf16", "MODEL.CHANNELS_LAST", True)
    single, _ = train(tiny_cfg(tmp_path / "a", "SOLVER.MAX_ITER", 1))
    mixed, _ = train(tiny_cfg(tmp_path / "b", "SOLVER.MAX_ITER", 1, *options))
    assert mixed[0]["total_loss"] == pytest.approx(single[0]["total_loss"], rel=0.05)
    assert mixed != single


def test_a_class_agnostic_mask_head_is_an_option(tiny_cfg, tmp_path):
    rows, trainer = train(tiny_cfg(tmp_path, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, "SOLVER.MAX_ITER", 1))
    assert trainer.model.roi_heads.mask_head.predictor.out_channels == 1
    assert math.isfinite(rows[0]["loss_mask"])
