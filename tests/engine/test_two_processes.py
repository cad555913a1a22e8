"""Two processes over gloo train as one does, with accumulation, and stop together on NaN."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from u2seg.data import BatchStream
from u2seg.engine import NonFiniteLossError, U2SegTrainer
from u2seg.engine.trainer import train_and_record
from u2seg.engine.training_step import TrainingStep

SAMPLES = [(float(i % 5) - 2, float(i % 7)) for i in range(12)]


class Line(nn.Module):
    """Loss (w x + b - y)^2, averaged over the batch."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.weight, 0.5)
        nn.init.constant_(self.line.bias, 0.0)

    def forward(self, batch):
        x, y = (torch.tensor([SAMPLES[one["image_id"]][k] for one in batch])[:, None] for k in (0, 1))
        return {"loss": ((self.line(x) - y) ** 2).mean()}


def train(rank, world_size):
    """Returns weight and bias after three steps of two accumulated batches of four."""
    stream = BatchStream([len(SAMPLES)], batch_size=4, seed=0, rank=rank, world_size=world_size)
    loader = ([{"image_id": index} for _, index in batch] for batch in stream)
    model = create_ddp_model(Line(), device_ids=None) if world_size > 1 else Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    step = TrainingStep(model, loader, optimizer, seed=0, accumulation_steps=2)
    with EventStorage(0):
        for step.iter in range(3):
            step.run_step()
    return [parameter.item() for parameter in model.parameters()]


def work(rank, address, results):
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    comm.create_local_process_group(2)
    results[rank] = train(rank, 2)
    SAMPLES[:] = [(math.nan if rank else 1.0, 1.0)] * 12  # only one of them meets NaN
    train(rank, 2)


def test_two_processes_give_the_weights_of_one_and_nan_in_one_ends_both(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        with pytest.raises(mp.ProcessRaisedException, match=NonFiniteLossError.__name__):
            mp.start_processes(work, (f"file://{tmp_path / 'meet'}", results), nprocs=2, start_method="fork")
        together = dict(results)
    assert together[0] == together[1]
    assert together[0] == pytest.approx(train(0, 1), rel=1e-5)


class Means(nn.Module):
    """Predicts 1 from an image's mean color."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, batch):
        means = torch.stack([one["image"].float().mean((1, 2)) / 255 for one in batch])
        return {"loss": ((means * self.weight).sum(1) - 1).square().mean()}


def run_whole_training(rank, address, cfg):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    comm.create_local_process_group(2)
    train_and_record(cfg, resume=False)


def test_a_training_with_two_processes_on_the_cpu_learns_what_one_learns(tiny_cfg, tmp_path, monkeypatch):
    # A model whose loss is a mean over images: what Detectron2's heads do not share is told in docs/training.md.
    monkeypatch.setattr(U2SegTrainer, "build_model", classmethod(lambda cls, cfg: Means()))
    train_and_record(tiny_cfg(tmp_path / "one"), resume=False)
    work = (f"file://{tmp_path / 'meet'}", tiny_cfg(tmp_path / "two"))
    mp.start_processes(run_whole_training, work, nprocs=2, start_method="fork")
    one, two = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("one", "two"))
    assert one["iteration"] == two["iteration"] == 3
    torch.testing.assert_close(two["model"]["weight"], one["model"]["weight"], rtol=1e-5, atol=0)
    assert not torch.equal(one["model"]["weight"], torch.full((3,), 0.5))
