"""The k-NN vote against an obvious restatement, and the accuracy monitored during pretraining, which changes nothing."""

import json
import logging
import math
import random

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from luss_toy import make_toy
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.engine import U2SegTrainer
from u2seg.luss.engine.knn_accuracy import build_knn_monitor
from u2seg.luss.modeling.knn import knn_accuracy, knn_vote
from u2seg.modeling import complete_config

# --- the vote --------------------------------------------------------------------------------------------------------------------


def slow_vote(queries, bank, labels, k, temperature, own):
    """One query after the other, in float64: sort by similarity and then position, add up, take the largest and then lowest."""
    found = []
    for row, query in enumerate(queries.double()):
        others = [index for index in range(len(bank)) if index != own[row]]
        near = sorted(others, key=lambda index: (-float(query @ bank[index].double()), index))[:k]
        votes = {}
        for index in near:
            weight = math.exp(float(query @ bank[index].double()) / temperature)
            votes[int(labels[index])] = votes.get(int(labels[index]), 0.0) + weight
        found.append(min(votes, key=lambda label: (-votes[label], label)))
    return found


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 12), st.integers(1, 40), st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_vote_is_the_obvious_one_ties_included(seed, size, num_queries, k, leave_out):
    generator = torch.Generator().manual_seed(seed)
    # Entries in quarters: products are exact, and equal ones are frequent.
    bank = torch.randint(-2, 3, (size, 4), generator=generator) / 4
    queries = torch.randint(-2, 3, (num_queries, 4), generator=generator) / 4
    labels = torch.randint(0, 4, (size,), generator=generator)
    own = torch.randint(-1, size, (num_queries,), generator=generator) if leave_out else None
    expected = slow_vote(queries, bank, labels, k, 0.07, [-1] * num_queries if own is None else own.tolist())
    options = {"num_ids": 4, "neighbors": k, "temperature": 0.07, "own": own}
    assert knn_vote(queries, bank, labels, **options).tolist() == expected
    assert knn_vote(queries, bank, labels, max_elements=1, **options).tolist() == expected  # one query at a time
    wanted = torch.randint(0, 5, (num_queries,), generator=generator)  # label 4 is not in the bank
    right = sum(one == other for one, other in zip(expected, wanted.tolist()))
    assert knn_accuracy(bank, labels, queries, wanted, k, 0.07, own) == pytest.approx(right / num_queries)


def test_accuracy_by_hand():
    # Cosines of the query (1, 0): 1.0 to label 0; 0.8 and 0.8 to label 1; 0 to label 2.
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 2])
    query = torch.tensor([[1.0, 0.0]])
    # T = 0.07: exp(1 / T) against 2 exp(0.8 / T): 1 against 2 exp(-2.857) = 0.115.
    assert knn_accuracy(bank, labels, query, torch.tensor([0]), 3, 0.07) == 1
    # T = 1: 1 against 2 exp(-0.2) = 1.64.
    assert knn_accuracy(bank, labels, query, torch.tensor([1]), 3, 1.0) == 1
    assert knn_accuracy(bank, labels, query, torch.tensor([1]), 1, 1.0) == 0
    assert knn_accuracy(bank, labels, query, torch.tensor([1]), 1000, 1.0) == 1  # all four vote
    both = query.repeat(2, 1)
    assert knn_accuracy(bank, labels, both, torch.tensor([0, 1]), 1, 0.07) == 0.5


def test_equal_neighbors_and_equal_votes():
    bank = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    labels = torch.tensor([3, 3, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    # Two of five equal entries vote: the first two. Four vote: two and two, the lower label.
    assert knn_vote(query, bank, labels, num_ids=4, neighbors=2, temperature=0.07).tolist() == [3]
    assert knn_vote(query, bank, labels, num_ids=4, neighbors=4, temperature=0.07).tolist() == [1]


def test_a_small_temperature_is_the_nearest_neighbor():
    # exp(1 / 0.001) is not finite in float32; the vote is.
    bank = torch.tensor([[1.0, 0.0], [0.99, 0.141], [0.99, -0.141]])
    assert knn_vote(bank[:1], bank, torch.tensor([0, 1, 1]), num_ids=2, neighbors=3, temperature=0.001).tolist() == [0]


def test_leaving_one_out():
    # Two pairs of neighbors with the same label, and one image between them whose label nobody shares.
    angles = torch.tensor([0.0, 0.1, 1.0, 2.0, 2.1])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 2, 2])
    assert knn_accuracy(features, labels, features, labels, 1, 0.07) == 1  # everyone finds itself
    assert knn_accuracy(features, labels, features, labels, 1, 0.07, own=torch.arange(5)) == 0.8


def test_a_vote_without_voters_is_refused():
    one, none = torch.ones(1, 2), torch.zeros(0, dtype=torch.long)
    label = torch.tensor([0])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        knn_accuracy(one, label, one, label, 0, 0.07)
    with pytest.raises(ValueError, match="bank at least 1 entries, got 0"):
        knn_accuracy(one[:0], none, one, label, 1, 0.07)
    with pytest.raises(ValueError, match="bank at least 2 entries, got 1"):
        knn_accuracy(one, label, one, label, 1, 0.07, own=torch.tensor([0]))
    with pytest.raises(ValueError, match="got 0 queries"):
        knn_accuracy(one, label, one[:0], none, 1, 0.07)
    with pytest.raises(ValueError, match="got 1 queries and 2 labels"):
        knn_accuracy(one, label, one, torch.tensor([0, 1]), 1, 0.07)


# --- the monitor -------------------------------------------------------------------------------------------------------------------

COLORS = {"amber": (230, 160, 20), "jade": (20, 170, 100), "violet": (120, 40, 200)}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Two directories of images of 48 x 40 pixels, sorted by color: classes that any network tells apart."""
    root = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, color in COLORS.items():
            for number in range(count):
                if split == "val" and name == "amber":
                    continue  # a class less: jade has index 0 there and 1 in the other
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.array(color) + rng.normal(0, 12, (40, 48, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return root


def config(tiny_cfg, directories, output, *opts, kind="class_directories"):
    cfg = tiny_cfg.clone()
    for name in ("train", "val"):
        cfg.DATASETS.BY_PATH[name] = {"FORMAT": kind, "ROOT": str(directories / name)}
    size = ("INPUT.MULTI_CROP.SIZES", (32,), "LUSS.RESIZE", 40, "LUSS.CENTER_CROP", 32, "LUSS.BATCH_SIZE", 4)
    small = (
        "SOLVER.IMS_PER_BATCH",
        4,
        "SOLVER.MAX_ITER",
        5,
        "DATALOADER.NUM_WORKERS",
        0,
        "SOLVER.CHECKPOINT_PERIOD",
        2,
    )
    sets = ("DATASETS.TRAIN", ("train",), "OUTPUT_DIR", str(output), "TEST.EVAL_PERIOD", 2, "SOLVER.EMA.ENABLED", True)
    cfg.merge_from_list([*size, *small, *sets, *opts])
    return complete_config(cfg)


class Losses(HookBase):
    def __init__(self, stop_after=None):
        self.rows, self.stop_after = [], stop_after

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.rows.append({key: value for key, (value, _) in latest.items() if "loss" in key or "view" in key})
        if self.trainer.iter + 1 == self.stop_after:
            raise KeyboardInterrupt


def train(cfg, resume=False, stop_after=None):
    """Returns the losses of each iteration, the final weights and the accuracies by iteration."""
    trainer = U2SegTrainer(cfg)
    trainer.resume_or_load(resume)
    losses = Losses(stop_after)
    trainer.register_hooks([losses])
    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    histories = trainer.storage.histories()
    monitored = histories["pass/knn_accuracy"].values() if "pass/knn_accuracy" in histories else []
    return losses.rows, trainer.model.state_dict(), {iteration: value for value, iteration in monitored}


MONITORED = ("LUSS.KNN.TRAIN", ("train",), "LUSS.KNN.TEST", ("val",), "LUSS.KNN.K", 3)


def test_training_is_the_same_with_and_without_the_monitor_and_when_resumed(tiny_cfg, directories, tmp_path):
    plain, weights, nothing = train(config(tiny_cfg, directories, tmp_path / "plain"))
    cfg = config(tiny_cfg, directories, tmp_path / "monitored", *MONITORED)
    monitored, monitored_weights, accuracies = train(cfg)
    assert plain == monitored and len(plain) == 5 and not nothing
    assert all(
        torch.equal(weights[name], value) for name, value in monitored_weights.items()
    )  # batch-norm statistics too
    assert sorted(accuracies) == [1, 3, 5]  # after the second and the fourth iteration, and at the end
    assert all(value > 0.8 for value in accuracies.values())
    last = json.loads((tmp_path / "monitored/metrics.json").read_text().splitlines()[-1])
    assert last["pass/knn_accuracy"] == accuracies[5]

    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    train(cfg, stop_after=3)
    resumed, resumed_weights, again = train(cfg, resume=True)
    assert resumed == plain[2:] and again == {3: accuracies[3], 5: accuracies[5]}
    assert all(torch.equal(weights[name], value) for name, value in resumed_weights.items())


def test_the_monitor_touches_no_statistic_and_no_random_number(tiny_cfg, directories, tmp_path):
    cfg = config(tiny_cfg, directories, tmp_path, *MONITORED)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), str(np.random.get_state()[1:]), random.getstate()  # noqa: NPY002 - the global one is meant
    monitor = build_knn_monitor(cfg)
    assert monitor(model) == monitor(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (str(np.random.get_state()[1:]), random.getstate())  # noqa: NPY002


def test_classes_are_compared_by_name_and_an_image_never_votes_for_itself(tiny_cfg, directories, tmp_path):
    """The features are replaced by what the image's file says, so that the result is known."""
    cfg = config(tiny_cfg, directories, tmp_path, *MONITORED, "LUSS.KNN.K", 1)
    monitor = build_knn_monitor(cfg)
    model = build_model(cfg)
    names = [record["file_name"].split("/")[-2] for record in monitor._records]
    rows = {name: index for index, name in enumerate(sorted(COLORS))}
    monitor._features = lambda _: (list(range(len(names))), np.eye(3, dtype=np.float32)[[rows[name] for name in names]])
    assert monitor(model) == {"pass": {"knn_accuracy": 1.0}}  # jade is 0 in one set and 1 in the other
    # One set twice, features that tell every image from all others: only itself would find its class for sure.
    opts = ("LUSS.KNN.TRAIN", ("val",), "LUSS.KNN.K", 1)
    alone = build_knn_monitor(config(tiny_cfg, directories, tmp_path, *opts))
    both = build_knn_monitor(config(tiny_cfg, directories, tmp_path, *opts, "LUSS.KNN.TEST", ("val",)))
    for monitor in (alone, both):
        assert len(monitor._records) == 6
        monitor._features = lambda _: (list(range(6)), np.eye(6, dtype=np.float32))
        # All others are equally far: the first one votes, a jade one for 0..2 (itself left out), and so for 3..5.
        assert monitor(model) == {"pass": {"knn_accuracy": 0.5}}


def test_unreadable_images_and_those_beyond_the_limit_are_left_out(tiny_cfg, directories, tmp_path, caplog):
    for name in ("amber", "jade"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for path in sorted((directories / "train" / name).iterdir()):
            (tmp_path / "train" / name / path.name).write_bytes(path.read_bytes())
    (tmp_path / "train/jade/2.png").write_bytes(b"")
    (tmp_path / "train/loose.png").write_bytes(b"")  # in no class's directory: trained on, not monitored
    (tmp_path / "val").symlink_to(tmp_path / "train")
    cfg = config(tiny_cfg, tmp_path, tmp_path / "out", "LUSS.KNN.TRAIN", ("train",))
    model = build_model(cfg)
    with caplog.at_level(logging.INFO, logger="u2seg"):
        build_knn_monitor(cfg)(model)
    assert "11 images against 11, 2 classes, the largest 0.5455 of them; 1 could not be read" in caplog.text
    few = config(tiny_cfg, tmp_path, tmp_path / "out", "LUSS.KNN.TRAIN", ("train",), "LUSS.KNN.MAX_IMAGES", 7)
    drawn = [build_knn_monitor(few) for _ in range(2)]
    assert len(drawn[0]._bank) == 7 and np.array_equal(drawn[0]._bank, drawn[0]._queries)
    assert [r["file_name"] for r in drawn[0]._records] == [r["file_name"] for r in drawn[1]._records]


def test_it_stays_off_without_classes_and_in_other_stages(tiny_cfg, directories, tmp_path, caplog):
    assert build_knn_monitor(config(tiny_cfg, directories, tmp_path)) is None
    assert not caplog.text
    plain = config(tiny_cfg, directories, tmp_path, *MONITORED, kind="images")
    assert build_knn_monitor(plain) is None
    assert "images of train, val have no class" in caplog.text and "class_directories" in caplog.text
    # The recipe hands all stages the same keys; datasets that another stage does not have must not end it.
    opts = ("MODEL.META_ARCHITECTURE", "PASSPixelAttention", "LUSS.KNN.TRAIN", ("elsewhere",))
    assert build_knn_monitor(config(tiny_cfg, directories, tmp_path, *opts)) is None


def test_wrong_keys_are_told(tiny_cfg, directories, tmp_path):
    elsewhere = config(tiny_cfg, directories, tmp_path, "LUSS.KNN.TRAIN", ("elsewhere",))
    with pytest.raises(ValueError, match="elsewhere, which nobody registered"):
        build_knn_monitor(elsewhere)
    no_bank = config(tiny_cfg, directories, tmp_path, "LUSS.KNN.TEST", ("val",))
    with pytest.raises(ValueError, match="LUSS.KNN.TEST names val, but LUSS.KNN.TRAIN"):
        build_knn_monitor(no_bank)


def test_imagenet_s_has_classes_and_its_subset_is_no_voter_for_itself(tiny_cfg, tmp_path):
    splits = make_toy(tmp_path / "data", train=16, semi=8, val=4)
    cfg = setup_cfg("LUSS/pass_tiny_attention.yaml", ["MODEL.SMALL_RESNET.WIDTH", 8, "MODEL.DEVICE", "cpu"])
    cfg.DATASETS.BY_PATH.update(
        {"toy_train": splits["train"], "toy_semi": splits["train_semi"], "toy_val": splits["val"]}
    )
    opts = ("DATASETS.TRAIN", ("toy_train",), "LUSS.KNN.TRAIN", ("toy_train",), "DATALOADER.NUM_WORKERS", 0)
    cfg.merge_from_list([*opts, "MODEL.META_ARCHITECTURE", "PASSPretrainer", "LUSS.KNN.TEST", ("toy_semi",)])
    monitor = build_knn_monitor(complete_config(cfg))
    assert (len(monitor._records), len(monitor._bank), len(monitor._queries)) == (16, 16, 8)
    assert 0 <= monitor(build_model(cfg))["pass"]["knn_accuracy"] <= 1
    cfg.LUSS.KNN.TEST = ("toy_val",)  # its directories are no classes of what the images show
    assert build_knn_monitor(complete_config(cfg)) is None
