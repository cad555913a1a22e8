"""The training loader: an endless stream of batches in which batch k depends on the seed and on k, and on nothing else.

Not on the number of workers, not on the number of processes, not on where the training was resumed:
every sample's place in the stream seeds the random numbers of its augmentation. That makes an
interrupted run continue exactly.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import print_instances_class_histogram
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from u2seg.data.dataset_mapper import build_mapper
from u2seg.data.paste_sources import PasteSources, augmentation_seed, build_paste_sources
from u2seg.data.serialized_records import SerializedRecords
from u2seg.utils.seeding import seed_random

# What a random number is for, so that no two draws share a seed; u2seg.data.paste_sources has the
# numbers behind these.
_PERMUTATION, _SHUFFLE = range(2)


class BatchStream(Sampler):
    """Endless batches of (position, index) pairs: which sample of the dataset comes where.

    Every dataset is gone through in random order, again and again; an epoch holds each in the share
    asked for, shuffled. Images wider than high and the others are batched apart where wanted, so
    that batches need little padding.
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
            ratios: share of each dataset in the stream, any positive scale; None: proportional to
                the sizes.
            is_wide: bool (sum of sizes,), the group of each image; None: one group.
            rank: of this process, which takes every ``world_size``-th sample of each batch, from
                ``rank``.
            world_size: number of processes.

        Raises:
            ValueError: the ratios do not fit the datasets, or the batch does not divide by the
                processes.
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
        # Where a resumed training goes on.
        self.start_batch = 0

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        for batch in islice(self._batches(), self.start_batch, None):
            yield batch[self.rank :: self.world_size]

    def _batches(self) -> Iterator[list[tuple[int, ...]]]:
        groups: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ([], [])
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


class PartneredBatchStream(BatchStream):
    """A stream whose items name a second sample too: (position, index, partner's position, partner's index).

    The partner is the sample at the mirrored place of the batch, all processes together; so the
    middle one of an odd batch, or the only one, is its own. Source: CutLER's code, which reverses
    each process's part of the batch; over the whole batch it does not depend on the number of
    processes.
    """

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        for batch in islice(self._batches(), self.start_batch, None):
            partnered: list[tuple[int, ...]] = [(*own, *partner) for own, partner in zip(batch, reversed(batch))]
            yield partnered[self.rank :: self.world_size]


class MappedDataset(Dataset):
    """Maps the items of a :class:`BatchStream` to training samples, with random numbers of their own."""

    def __init__(
        self,
        dicts: SerializedRecords,
        mapper: Callable[[dict], dict],
        *,
        seed: int,
        paste_sources: PasteSources | None = None,
    ):
        """Keeps the settings.

        Args:
            dicts: the dataset in Detectron2's standard form, in memory that worker processes share.
            mapper: from dataset dict to sample.
            seed: of the stream.
            paste_sources: chooses the images that copy-paste draws on, of a
                :class:`PartneredBatchStream`; None: there are none.
        """
        self.dicts = dicts
        self.mapper = mapper
        self.seed = seed
        self.paste_sources = paste_sources

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: tuple[int, ...]) -> dict:
        position, index = key[:2]
        record = self.dicts[index]
        if self.paste_sources is not None:
            record = {**record, "copy_paste_source": self.paste_sources(self.dicts, *key)}
        seed_random(augmentation_seed(self.seed, position))
        return self.mapper(record)


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
    sets = [_training_records(name, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS) for name in cfg.DATASETS.TRAIN]
    dicts = SerializedRecords.joined(sets)
    paste = cfg.INPUT.COPY_PASTE
    stream_type = PartneredBatchStream if paste.ENABLED else BatchStream
    stream = stream_type(
        [len(one) for one in sets],
        batch_size=batch // steps,
        seed=seed,
        ratios=list(cfg.DATASETS.TRAIN_RATIO) or None,
        is_wide=_wide_images(dicts) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    paste_sources = build_paste_sources(cfg, dicts, seed) if paste.ENABLED else None
    return DataLoader(
        MappedDataset(dicts, build_mapper(cfg, True), seed=seed, paste_sources=paste_sources),
        batch_sampler=stream,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
        worker_init_fn=_init_worker,
    )


def _wide_images(dicts: Iterable[dict]) -> np.ndarray | None:
    """Returns which images are wider than high, bool (N,); None where an image's size is not known."""
    wide = bytearray()
    for record in dicts:
        if "width" not in record:
            return None
        wide.append(record["width"] > record["height"])
    return np.frombuffer(wide, bool)


def _training_records(name: str, with_instances_only: bool) -> list[dict] | SerializedRecords:
    """Returns the images of a registered dataset to train on.

    Raises:
        ValueError: there is none, or one has a class that the dataset lacks.
    """
    try:
        found = get_detection_dataset_dicts([name], filter_empty=with_instances_only)
        return _checked_records(name, found, with_instances_only) if isinstance(found, SerializedRecords) else found
    except AssertionError as error:  # how Detectron2 says that a dataset is empty, or has a class that it lacks
        left_out = "; DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves out images without an instance"
        raise ValueError(f"{name} cannot be trained on: {error}{left_out if with_instances_only else ''}") from error


def _checked_records(name: str, records: SerializedRecords, with_instances_only: bool) -> SerializedRecords:
    """Returns the images to train on, as Detectron2 chooses and checks those of a list; it returns other datasets as they are."""
    if with_instances_only:
        has_instance = (any(not a.get("iscrowd", 0) for a in record["annotations"]) for record in records)
        records = records.select(np.flatnonzero(np.fromiter(has_instance, bool, len(records))))
    assert len(records), f"Dataset '{name}' is empty!"
    # Refuses a class that the dataset lacks.
    print_instances_class_histogram(records, MetadataCatalog.get(name).thing_classes)
    return records


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
