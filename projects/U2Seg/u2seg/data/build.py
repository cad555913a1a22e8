"""The training loader: an endless stream of batches in which batch k depends on the seed and on k, and on nothing else.

Not on the number of workers, not on the number of processes, not on where the training was resumed: every sample's place in the
stream seeds the random numbers of its augmentation. That makes an interrupted run continue exactly.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from u2seg.data.dataset_mapper import build_mapper

_PERMUTATION, _SHUFFLE, _AUGMENTATION, _PARTNER = range(
    4
)  # what a random number is for, so that no two draws share a seed


class BatchStream(Sampler):
    """Endless batches of (position, index) pairs: which sample of the dataset comes where.

    Every dataset is gone through in random order, again and again; an epoch holds each in the share asked for, shuffled. Images
    wider than high and the others are batched apart where wanted, so that batches need little padding.
    """

    def __init__(
        self,
        sizes: list[int],
        *,
        batch_size: int,
        seed: int,
        ratios: list[float] | None = None,
        is_wide: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Keeps the settings.

        Args:
            sizes: images in each dataset; their indices follow one another.
            batch_size: images in a batch, all processes together.
            seed: of the order.
            ratios: share of each dataset in the stream, any positive scale; None: proportional to the sizes.
            is_wide: bool (sum of sizes,), the group of each image; None: one group.
            rank: of this process, which takes every ``world_size``-th sample of each batch, from ``rank``.
            world_size: number of processes.

        Raises:
            ValueError: the ratios do not fit the datasets, or the batch does not divide by the processes.
        """
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch size must be a positive multiple of the {world_size} processes, got {batch_size}")
        if ratios is not None and (len(ratios) != len(sizes) or min(ratios) <= 0):
            raise ValueError(
                f"DATASETS.TRAIN_RATIO must hold one positive number for each of the {len(sizes)} training sets, got {ratios}"
            )
        self.sizes = list(sizes)
        self.batch_size = batch_size
        self.seed = seed
        self.counts = _epoch_counts(sizes, ratios)
        self.is_wide = np.zeros(sum(sizes), bool) if is_wide is None else is_wide
        self.rank, self.world_size = rank, world_size
        self.start_batch = 0  # where a resumed training goes on

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in islice(self._batches(), self.start_batch, None):
            yield batch[self.rank :: self.world_size]

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        groups: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        for position, index in enumerate(self._indices()):
            group = groups[int(self.is_wide[index])]
            group.append((position, index))
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()

    def _indices(self) -> Iterator[int]:
        offsets = np.cumsum([0, *self.sizes[:-1]])
        sources = [
            _endless_permutations(size, (self.seed, _PERMUTATION, number)) for number, size in enumerate(self.sizes)
        ]
        epoch = 0
        while True:
            parts = [
                offset + np.fromiter(islice(source, count), np.int64, count)
                for offset, source, count in zip(offsets, sources, self.counts)
            ]
            order = np.concatenate(parts)
            np.random.default_rng((self.seed, _SHUFFLE, epoch)).shuffle(order)
            yield from order.tolist()
            epoch += 1


class MappedDataset(Dataset):
    """Maps the (position, index) pairs of a :class:`BatchStream` to training samples, with random numbers of their own."""

    def __init__(
        self,
        dicts: list[dict],
        mapper: Callable[[dict], dict],
        *,
        seed: int,
        paste_sources: "PasteSourceSampler | None" = None,
    ):
        """Keeps the dataset in shared memory.

        Args:
            dicts: the dataset in Detectron2's standard form.
            mapper: from dataset dict to sample.
            seed: of the stream.
            paste_sources: chooses the images that copy-paste draws on; None: there are none.
        """
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper = mapper
        self.seed = seed
        self.paste_sources = paste_sources

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        record = self.dicts[index]
        if self.paste_sources is not None:
            rng = np.random.default_rng((self.seed, _PARTNER, position))
            record = {**record, "copy_paste_source": self.dicts[self.paste_sources.choose(record, index, rng)]}
        seed_random((self.seed, _AUGMENTATION, position))
        return self.mapper(record)


class PasteSourceSampler:
    """Which images copy-paste draws on for a given one."""

    def __init__(self, dicts: list[dict], same_cluster: bool):
        """Indexes the images that hold instances, by class where ``same_cluster`` asks for it."""
        self._with_instances = np.array([i for i, record in enumerate(dicts) if record.get("annotations")], np.int32)
        self._by_class = None
        if same_cluster:
            holders = defaultdict(set)
            for index, record in enumerate(dicts):
                for annotation in record.get("annotations", ()):
                    holders[annotation["category_id"]].add(index)
            self._by_class = {key: np.array(sorted(indices), np.int32) for key, indices in holders.items()}

    def choose(self, record: dict, index: int, rng: np.random.Generator) -> int:
        """Returns the index of an image to paste from: another one, if there is one, that holds instances (of a shared class)."""
        candidates = self._with_instances
        if self._by_class is not None and record.get("annotations"):
            annotation = record["annotations"][rng.integers(len(record["annotations"]))]
            candidates = self._by_class[annotation["category_id"]]
        if not len(candidates):
            return index
        choice = int(candidates[rng.integers(len(candidates))])
        if choice == index and len(candidates) > 1:
            # The next one instead: no loop, and nearly as even.
            choice = int(candidates[(np.searchsorted(candidates, index) + 1) % len(candidates)])
        return choice


def build_train_loader(cfg: CfgNode, seed: int) -> DataLoader:
    """Returns the endless training loader that a configuration describes; each item is a list of mapped samples.

    A batch holds ``IMS_PER_BATCH / ACCUMULATION_STEPS`` images, all processes together.

    Args:
        cfg: the configuration; its datasets are registered.
        seed: of order and augmentation.
    """
    steps, batch = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.IMS_PER_BATCH
    if steps < 1 or batch % steps:
        raise ValueError(f"SOLVER.IMS_PER_BATCH ({batch}) must be a multiple of SOLVER.ACCUMULATION_STEPS ({steps})")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN!r} is not offered by this loader; leave it at TrainingSampler "
            "and weigh datasets by DATASETS.TRAIN_RATIO"
        )
    sets = [
        get_detection_dataset_dicts([name], filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        for name in cfg.DATASETS.TRAIN
    ]
    dicts = [record for one in sets for record in one]
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING and all("width" in record for record in dicts)
    stream = BatchStream(
        [len(one) for one in sets],
        batch_size=batch // steps,
        seed=seed,
        ratios=list(cfg.DATASETS.TRAIN_RATIO) or None,
        is_wide=np.array([record["width"] > record["height"] for record in dicts]) if grouped else None,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    paste = cfg.INPUT.COPY_PASTE
    paste_sources = PasteSourceSampler(dicts, paste.SAME_CLUSTER) if paste.ENABLED else None
    return DataLoader(
        MappedDataset(dicts, build_mapper(cfg, True), seed=seed, paste_sources=paste_sources),
        batch_sampler=stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
        worker_init_fn=_init_worker,
    )


def seed_random(key: tuple[int, ...]) -> None:
    """Seeds Python's, NumPy's and PyTorch's (CPU) global generators, on which augmentations draw, from a tuple of numbers."""
    state = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - Detectron2's augmentations draw from the global generator
    # Not torch.manual_seed, which also walks the devices and costs ten times as much.
    torch.default_generator.manual_seed(int(state[2]) << 32 | int(state[3]))


def _endless_permutations(size: int, key: tuple[int, ...]) -> Iterator[int]:
    rng = np.random.default_rng(key)
    while True:
        yield from rng.permutation(size).tolist()


def _epoch_counts(sizes: list[int], ratios: list[float] | None) -> list[int]:
    """Returns how many samples of each dataset an epoch holds; an epoch is as long as all datasets together."""
    if ratios is None:
        return list(sizes)
    shares = np.asarray(ratios, np.float64) / sum(ratios)
    return [max(1, round(sum(sizes) * share)) for share in shares]


def _as_list(samples: list) -> list:
    return samples


def _init_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
