"""The stream of batches: what it holds, and what it does not depend on."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from u2seg.data import BatchStream, build_train_loader
from u2seg.data.build import PartneredBatchStream
from u2seg.data.paste_sources import AnyImage


def take(stream, count):
    return list(islice(iter(stream), count))


def indices(batches):
    return [index for batch in batches for _, index in batch]


def test_every_epoch_holds_every_image_once_in_another_order():
    batches = take(BatchStream([10], batch_size=5, seed=0), 6)
    epochs = [indices(batches[i : i + 2]) for i in (0, 2, 4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [p for batch in batches for p, _ in batch] == list(range(30))


def test_order_depends_on_the_seed_alone():
    assert take(BatchStream([10], batch_size=4, seed=3), 9) == take(BatchStream([10], batch_size=4, seed=3), 9)
    assert take(BatchStream([10], batch_size=4, seed=3), 2) != take(BatchStream([10], batch_size=4, seed=4), 2)


def test_starting_later_gives_the_tail():
    wide = np.arange(10) % 3 == 0
    whole = take(BatchStream([10], batch_size=4, seed=0, is_wide=wide), 12)
    later = BatchStream([10], batch_size=4, seed=0, is_wide=wide)
    later.start_batch = 7
    assert take(later, 5) == whole[7:]


def test_processes_share_each_batch():
    whole = take(BatchStream([10], batch_size=4, seed=0), 8)
    parts = [take(BatchStream([10], batch_size=4, seed=0, rank=r, world_size=2), 8) for r in range(2)]
    for batch, a, b in zip(whole, *parts):
        assert len(a) == len(b) == 2 and sorted(a + b) == sorted(batch)


def test_a_batch_holds_one_shape():
    wide = np.array([True] * 7 + [False] * 4)
    for batch in take(BatchStream([11], batch_size=3, seed=1, is_wide=wide), 40):
        assert len({bool(wide[index]) for _, index in batch}) == 1


def test_datasets_come_in_the_share_asked_for():
    # 30 and 10 images, 1 : 3. An epoch of 40 holds 10 and 30; the small set is gone through three times before any repeats again.
    batches = take(BatchStream([30, 10], batch_size=4, seed=0, ratios=[1, 3]), 10)
    counts = Counter(indices(batches))
    assert sum(count for index, count in counts.items() if index < 30) == 10
    assert all(counts[index] == 3 for index in range(30, 40))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="a positive multiple of the 2 processes, got 5"):
        BatchStream([10], batch_size=5, seed=0, world_size=2)
    with pytest.raises(ValueError, match=r"one positive number for each of the 2 training sets, got \[1\.0\]"):
        BatchStream([10, 3], batch_size=5, seed=0, ratios=[1.0])


def records(*classes):
    return [{"annotations": [{"category_id": c} for c in one]} for one in classes]


def test_partners_hold_instances_and_are_others():
    dicts = records([1], [], [2], [1, 2])
    rng = np.random.default_rng(0)
    anything = AnyImage(dicts, same_cluster=False, seed=0)
    assert {anything.choose(dicts[0], 0, rng) for _ in range(100)} == {2, 3}
    assert {anything.choose(dicts[1], 1, rng) for _ in range(100)} == {0, 2, 3}
    related = AnyImage(dicts, same_cluster=True, seed=0)
    assert {related.choose(dicts[0], 0, rng) for _ in range(100)} == {3}
    assert {related.choose(dicts[3], 3, rng) for _ in range(100)} == {0, 2}
    alone = records([1], [2])
    assert AnyImage(alone, same_cluster=True, seed=0).choose(alone[0], 0, rng) == 0
    # The draw depends on the position in the stream alone.
    draws = [[anything(dicts, position, 0, 0, 0) for position in range(40)] for _ in range(2)]
    assert draws[0] == draws[1] and {id(record) for record in draws[0]} == {id(dicts[2]), id(dicts[3])}


def test_partners_are_the_mirrored_places_of_the_whole_batch():
    plain = take(BatchStream([10], batch_size=4, seed=0), 6)
    batches = take(PartneredBatchStream([10], batch_size=4, seed=0), 6)
    for batch, pairs in zip(plain, batches):
        assert [one[:2] for one in pairs] == batch
        assert [one[2:] for one in pairs] == batch[::-1]
    parts = [take(PartneredBatchStream([10], batch_size=4, seed=0, rank=r, world_size=2), 6) for r in range(2)]
    for batch, a, b in zip(batches, *parts):
        assert sorted(a + b) == sorted(batch)
    (odd,) = take(PartneredBatchStream([10], batch_size=3, seed=0), 1)
    assert odd[1][:2] == odd[1][2:]
    later = PartneredBatchStream([10], batch_size=4, seed=0)
    later.start_batch = 4
    assert take(later, 2) == batches[4:]


def test_a_mirrored_partner_is_augmented_as_where_it_is_a_target(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, "INPUT.COPY_PASTE.ENABLED", True, "INPUT.COPY_PASTE.PARTNER", "reversed_batch")
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 48, 56)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    loader = build_train_loader(cfg, 0)
    pasted_from = []

    def see(target, load_source):
        pasted_from.append(load_source().image)
        return target

    object.__setattr__(loader.dataset.mapper, "copy_paste", see)
    first, second = next(iter(loader))
    assert first["image"].shape != second["image"].shape or not torch.equal(first["image"], second["image"])
    for source, partner in zip(pasted_from, (second, first)):
        assert (source.transpose(2, 0, 1) == partner["image"].numpy()).all()


@pytest.mark.parametrize("way", [("LayeredCopyPaste", "any_image"), ("CutLERCopyPaste", "reversed_batch")])
def test_the_loader_pastes_and_is_the_same_with_workers(tiny_cfg, tmp_path, way):
    def batches(workers):
        cfg = tiny_cfg(
            tmp_path,
            "INPUT.COPY_PASTE.NAME",
            way[0],
            "INPUT.COPY_PASTE.PARTNER",
            way[1],
            "INPUT.COPY_PASTE.ENABLED",
            True,
            "INPUT.COPY_PASTE.MAX_IOY",
            2.0,
            "DATALOADER.NUM_WORKERS",
            workers,
        )
        return take(build_train_loader(cfg, 0), 3)

    for a, b in zip(batches(0), batches(2)):
        for one, other in zip(a, b):
            assert one["image_id"] == other["image_id"]
            assert torch.equal(one["image"], other["image"]) and torch.equal(one["sem_seg"], other["sem_seg"])
    plain = take(build_train_loader(tiny_cfg(tmp_path), 0), 3)
    # The same images in the same order, with more in them; "thing" wherever an instance is.
    pairs = [(one, other) for a, b in zip(plain, batches(0)) for one, other in zip(a, b)]
    assert [one["image_id"] for one, _ in pairs] == [other["image_id"] for _, other in pairs]
    assert sum(len(other["instances"]) for _, other in pairs) > sum(len(one["instances"]) for one, _ in pairs)
    for _, other in pairs:
        if len(other["instances"]):
            assert (other["sem_seg"][other["instances"].gt_masks.tensor.any(dim=0)] == 0).all()


def test_wrong_batch_and_sampler_are_refused(tiny_cfg, tmp_path):
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH \(2\) must be a multiple of SOLVER.ACCUMULATION_STEPS \(3\)"):
        build_train_loader(tiny_cfg(tmp_path, "SOLVER.ACCUMULATION_STEPS", 3), 0)
    with pytest.raises(ValueError, match=r"INPUT.COPY_PASTE.PARTNER 'next'; registered: any_image, reversed_batch"):
        build_train_loader(tiny_cfg(tmp_path, "INPUT.COPY_PASTE.ENABLED", True, "INPUT.COPY_PASTE.PARTNER", "next"), 0)
    with pytest.raises(ValueError, match="RepeatFactorTrainingSampler"):
        build_train_loader(tiny_cfg(tmp_path, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"), 0)
