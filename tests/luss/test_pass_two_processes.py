"""Two processes over gloo: LUSS's scores, the k-NN monitor and pretraining give what one process gives."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from luss_toy import make_toy, write_config
from torch.utils.data import DataLoader
from u2seg.checkpoint.loading import load_weights
from u2seg.config import setup_cfg
from u2seg.data import BatchStream
from u2seg.engine import U2SegTrainer
from u2seg.engine.training_step import TrainingStep
from u2seg.luss.distance_matching import build_bank
from u2seg.luss.engine.knn_accuracy import build_knn_monitor
from u2seg.luss.evaluation.luss_evaluator import LussEvaluator
from u2seg.modeling import complete_config
from u2seg.solver.build import build_optimizer
from u2seg.utils.files import read_json

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="autograd refuses to run in a fork where there is a GPU; these run on machines without",
)
SMALL = ("MODEL.DEVICE", "cpu", "MODEL.SMALL_RESNET.WIDTH", 8, "MODEL.PASS.HIDDEN_DIM", 16, "DATALOADER.NUM_WORKERS", 0)


def _work(rank, meeting, work, arguments, results):
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    results[rank] = work(*arguments)
    dist.destroy_process_group()


def in_two_processes(directory, work, *arguments):
    """Returns what ``work(*arguments)`` returns in each of two processes, which are forked: fresh ones spend seconds on imports."""
    with mp.Manager() as manager:
        results = manager.dict()
        arguments = (str(directory / "meeting"), work, arguments, results)
        mp.start_processes(_work, arguments, nprocs=2, start_method="fork")
        return [results[rank] for rank in range(2)]


# --- scores ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Nine images to score, so that one process gets five, weights, and the bank for distance matching."""
    root = tmp_path_factory.mktemp("two")
    splits = make_toy(root / "data", train=12, semi=8, val=9)
    torch.manual_seed(0)
    torch.save({"model": build_model(setup_cfg("LUSS/pass_tiny_pretrain.yaml", SMALL)).state_dict()}, root / "w.pth")
    write_config(root / "bank.yaml", "LUSS/pass_tiny_distance.yaml", {"toy_semi": splits["train_semi"]}, "toy_semi")
    build_bank(
        complete_config(setup_cfg(root / "bank.yaml", [*SMALL, "MODEL.WEIGHTS", str(root / "w.pth")])),
        root / "bank.npz",
    )
    return root, splits


def score(cfg, output):
    """Returns the scores of distance matching from Detectron2's inference over the test set, and what the evaluator gathered."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(output)
    model = U2SegTrainer.build_model(cfg)
    load_weights(model, cfg, cfg.MODEL.WEIGHTS)
    gathered = []

    class Kept(LussEvaluator):
        def _gathered(self):
            gathered.append(super()._gathered())
            return gathered[-1]

    results = U2SegTrainer.test(cfg, model, Kept(cfg, "toy_val", output))
    return dict(results), gathered[0][0]


def test_two_processes_give_the_counts_and_scores_of_one(toy, tmp_path):
    root, splits = toy
    sets = {"toy_semi": splits["train_semi"], "toy_val": splits["val"]}
    write_config(root / "toy.yaml", "LUSS/pass_tiny_distance.yaml", sets, "toy_semi", "toy_val")
    opts = [*SMALL, "MODEL.WEIGHTS", str(root / "w.pth"), "LUSS.BANK", str(root / "bank.npz")]
    cfg = complete_config(setup_cfg(root / "toy.yaml", [*opts, "TEST.LUSS.SUBMISSION", True]))
    whole, counts = score(cfg, tmp_path / "one")
    main, other = in_two_processes(tmp_path, score, cfg, tmp_path / "two")
    assert other[0] == {} and len(other[1]) < len(main[1])  # only the main process has all
    assert sorted(main[1].tolist()) == sorted(counts.tolist())
    assert main[0]["luss"] == pytest.approx(whole["luss"], nan_ok=True) and whole["luss"]["mIoU"] > 0
    for name in ("metrics.json", "classes.json", "match.json"):
        assert read_json(tmp_path / "two" / name) == read_json(tmp_path / "one" / name)
    written = [
        sorted(path.relative_to(tmp_path / run).as_posix() for path in (tmp_path / run).rglob("*.png"))
        for run in ("one", "two")
    ]
    assert written[0] == written[1] and len(written[0]) == 18  # raw and matched


# --- k-NN ------------------------------------------------------------------------------------------------------------------------


def monitored(cfg):
    """Returns the accuracy and what the main process gathered: numbers and features."""
    torch.manual_seed(0)
    monitor = build_knn_monitor(cfg)
    gather, kept = monitor._gathered, []
    monitor._gathered = lambda *own: kept.append(gather(*own)) or kept[0]
    return monitor(build_model(cfg)), kept[0]


@pytest.mark.parametrize("count", [11, 2])
def test_two_processes_watch_the_accuracy_of_one(toy, tmp_path, count):
    root, splits = toy
    write_config(root / "knn.yaml", "LUSS/pass_tiny_pretrain.yaml", {"toy": splits["train"]}, "toy")
    opts = ("LUSS.KNN.TRAIN", ("toy",), "LUSS.KNN.MAX_IMAGES", count, "LUSS.RESIZE", 64, "LUSS.CENTER_CROP", 64)
    cfg = complete_config(setup_cfg(root / "knn.yaml", [*SMALL, *opts, "LUSS.BATCH_SIZE", 4]))
    whole, (numbers, features) = monitored(cfg)
    main, other = in_two_processes(tmp_path, monitored, cfg)
    assert main[0] == whole and other[0] == {}
    assert main[1][0].tolist() == numbers.tolist() == list(range(count))
    torch.testing.assert_close(torch.from_numpy(main[1][1]), torch.from_numpy(features))


# --- pretraining -----------------------------------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset):
    """Endless samples as the mapper gives them, each made from its position in the stream."""

    def __getitem__(self, key):
        generator = torch.Generator().manual_seed(key[0])
        views = [
            torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator) for side in (32, 32, 16)
        ]
        return {
            "views": views,
            "overlap_grids": torch.rand(2, 7, 7, 2, generator=generator) * 2 - 1,
            "overlaps": key[0] % 5 > 0,
        }


def pretrain(cfg):
    """Returns each step's codes (of this process's rows), and at the end queue, its fill and the other weights."""
    stream = BatchStream([40], batch_size=8, seed=0, rank=comm.get_rank(), world_size=comm.get_world_size())
    torch.manual_seed(0)
    model = build_model(cfg).train()
    codes = []
    model.swapped.register_forward_hook(lambda module, inputs, outputs: codes.append(torch.stack(outputs[1])))
    wrapped = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    step = TrainingStep(
        wrapped, DataLoader(Samples(), batch_sampler=stream, collate_fn=list), build_optimizer(cfg, wrapped), seed=0
    )
    with EventStorage(0):
        for step.iter in range(4):
            step.run_step()
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return torch.stack(codes).detach(), state


# LARC goes with the norm without batch statistics: a bias before a batch norm has no gradient but rounding, which LARC scales up.
@pytest.mark.parametrize(
    ("norm", "queue_length", "optimizer", "lr"), [("LN", 16, "LARC", 1.0), ("naiveSyncBN", 12, "SGD", 0.01)]
)
def test_two_halves_of_a_batch_pretrain_as_the_whole_does(tiny_cfg, tmp_path, norm, queue_length, optimizer, lr):
    """SyncBN needs a GPU: a norm without statistics stands in, and Detectron2's own synchronized one, which runs on a CPU."""
    opts = ("MODEL.RESNETS.NORM", norm, "MODEL.PASS.QUEUE_LENGTH", queue_length)
    tiny_cfg.merge_from_list(
        [*opts, "MODEL.PASS.FREEZE_PROTOTYPES_ITERS", 1, "SOLVER.OPTIMIZER", optimizer, "SOLVER.BASE_LR", lr]
    )
    codes, state = pretrain(tiny_cfg)
    halves = in_two_processes(tmp_path, pretrain, tiny_cfg)
    assert int(state["swapped.num_queued"]) == 32 and state["swapped.queue"].norm(dim=2).min() > 0.99
    for rank, (own_codes, own_state) in enumerate(halves):
        # The queue is full after two steps: later codes depend on it.
        torch.testing.assert_close(own_codes, codes[:, :, rank::2], atol=1e-3, rtol=1e-3)
        # The synchronized norm does not count batches, and takes running variances with n where one process takes n - 1.
        same = {
            name: value for name, value in state.items() if not name.endswith(("running_var", "num_batches_tracked"))
        }
        torch.testing.assert_close({name: own_state[name] for name in same}, same, atol=1e-3, rtol=1e-3)
        assert all(torch.equal(own_state[name], value) for name, value in halves[0][1].items())
