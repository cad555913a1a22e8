"""The mask stage: from a directory of photos to Parquet shards of class-agnostic masks."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from detectron2.config import CfgNode
from torch.utils.data import DataLoader, Dataset

from u2seg.data.formats.mask_shards import failures_of, iter_records, iter_shards, write_shard
from u2seg.features import FeatureExtractor
from u2seg.pseudo_labels.masks.automatic import AutomaticMaskGenerator, CoarseMasks, PreparedImage, prepare_image
from u2seg.pseudo_labels.sharding import Worker
from u2seg.structures import ImageMasks
from u2seg.utils.files import list_digest, read_json, short_file_digest
from u2seg.utils.image_io import ImageReadError, content_digest, image_ids, list_images, read_image_rgb
from u2seg.utils.manifest import (
    FAILURES,
    MANIFEST,
    StageMismatchError,
    close_stage,
    is_complete,
    open_stage,
    reopen_stage,
    report_failures,
    shard_path,
    shard_slices,
)
from u2seg.utils.progress import Progress

# Keys that say how the work is done, not what comes out; a run may go on with other ones.
_NOT_IN_MANIFEST = {"FEATURES": ("BATCH_SIZE", "DEVICE"), "MASKS": ("NUM_WORKERS", "MAX_FAILURES", "NUM_THREADS")}


def make_masks(cfg: CfgNode, images: str | Path, output: str | Path, *, max_failures: float | None = None) -> Path:
    """Makes class-agnostic masks for every image below a directory.

    Finished shards are kept when the run is repeated; an image that cannot be read is recorded with the reason and skipped.

    Args:
        cfg: configuration; ``FEATURES`` and ``MASKS`` are used.
        images: directory of images.
        output: directory to make or to go on with; see ``u2seg.data.formats.mask_shards`` for what it holds.
        max_failures: share of unreadable images, 0..1, above which the run ends with an error; None: ``MASKS.MAX_FAILURES``.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: ``images`` is not a directory or holds no image.
        StageMismatchError: ``output`` was made with other settings or from other images.
        TooManyFailuresError: at the end, when everything readable has been written.
    """
    names = list_images(images)
    digests = [content_digest(Path(images) / name) for name in names]
    output = open_stage(output, "masks", _settings(cfg, names, digests))
    max_failures = cfg.MASKS.MAX_FAILURES if max_failures is None else max_failures
    if not is_complete(output):
        _make_missing_shards(cfg, Path(images), names, output, Worker())
        close_stage(output, _counts(output, names, digests))
    report_failures(output, failures_of(iter_records(output)), len(names), max_failures)
    return output


def make_mask_shards(cfg: CfgNode, images: str | Path, output: str | Path, worker: Worker) -> None:
    """Makes one worker's share of the shards of a mask stage that :func:`make_masks` closes later.

    Several workers may run at once on machines that share ``output``; a finished shard is not made again.

    Args:
        cfg: as for :func:`make_masks`.
        images: directory of images; all workers must see the same.
        output: directory to make or to go on with.
        worker: whose shards are made.

    Raises:
        FileNotFoundError: ``images`` is not a directory or holds no image.
        StageMismatchError: ``output`` was made with other settings or from other images.
    """
    names = list_images(images)
    digests = [content_digest(Path(images) / name) for name in names]
    output = open_stage(output, "masks", _settings(cfg, names, digests))
    _make_missing_shards(cfg, Path(images), names, output, worker)


def _make_missing_shards(cfg: CfgNode, images: Path, names: list[str], output: Path, worker: Worker) -> None:
    slices = dict(enumerate(shard_slices(len(names), cfg.MASKS.SHARD_SIZE)))
    own = {index: piece for index, piece in slices.items() if worker.takes(index)}
    missing = [index for index in own if not shard_path(output, index).is_file()]
    if missing:
        _make_shards(cfg, images, names, output, own, missing)


def reopen_failures(
    cfg: CfgNode, images: str | Path, output: str | Path, discard_dependents: Callable[[], None]
) -> int:
    """Makes a finished mask stage unfinished where images that could not be read now can; :func:`make_masks` then goes on.

    The shards that hold such an image are deleted. Nothing changes if there is none.

    Args:
        cfg: as for :func:`make_masks`.
        images: directory of images.
        output: directory of the mask stage.
        discard_dependents: called before anything is deleted here; deletes what was made from the stage's masks.

    Returns:
        How many images can be read now.

    Raises:
        FileNotFoundError: the stage is not finished.
        StageMismatchError: images were added or removed, or an image changed that could be read before.
    """
    images, output = Path(images), Path(output)
    if not is_complete(output):
        raise FileNotFoundError(
            f"no finished mask stage in {output}, so there is nothing to try again; run without it first"
        )
    failed_in = {
        index: {record.file_name for record in records if record.error is not None}
        for index, records in enumerate(iter_shards(output))
    }
    failed = set().union(*failed_in.values())
    names = list_images(images)
    digests = [content_digest(images / name) for name in names]
    if _readable_digest(names, digests, failed) != read_json(output / MANIFEST)["counts"]["readable"]:
        raise StageMismatchError(
            f"other images of {images} than those in {output / FAILURES} were added, removed or changed; expected the same images, of "
            "which only the unreadable ones were repaired. Choose another output directory."
        )
    repaired = {name for name in failed if is_readable(images / name)}
    if repaired:
        discard_dependents()
        # The manifest first: a stage that misses a shard must not look finished.
        reopen_stage(output, "masks", _settings(cfg, names, digests))
        for index, unreadable in failed_in.items():
            if unreadable & repaired:
                shard_path(output, index).unlink()
    return len(repaired)


def is_readable(path: Path) -> bool:
    """Returns whether a file can be read as an image."""
    try:
        read_image_rgb(path)
    except ImageReadError:
        return False
    return True


def _readable_digest(names: list[str], digests: list[str], failed: set[str]) -> str:
    """Returns a digest of all names, and of the contents of the images that could be read."""
    return list_digest([name if name in failed else f"{name}\t{digest}" for name, digest in zip(names, digests)])


def _settings(cfg: CfgNode, names: list[str], digests: list[str]) -> dict:
    # With their contents, so that another image under the same name is noticed.
    entries = [f"{name}\t{digest}" for name, digest in zip(names, digests)]
    settings: dict = {"IMAGES": {"count": len(names), "digest": list_digest(entries)}}
    for section, left_out in _NOT_IN_MANIFEST.items():
        values = json.loads(json.dumps(cfg[section]))
        settings[section] = {key: value for key, value in values.items() if key not in left_out}
    return settings


def _counts(output: Path, names: list[str], digests: list[str]) -> dict:
    num_images = num_masks = 0
    failed = set()
    for record in iter_records(output):
        num_images += 1
        num_masks += len(record.rle_counts)
        if record.error is not None:
            failed.add(record.file_name)
    return {
        "images": num_images,
        "masks": num_masks,
        "failures": len(failed),
        "contents": list_digest([short_file_digest(path) for path in sorted(output.glob("shard-*.parquet"))]),
        "readable": _readable_digest(names, digests, failed),
    }


def _make_shards(
    cfg: CfgNode, images: Path, names: list[str], output: Path, slices: dict[int, slice], missing: list[int]
) -> None:
    """Decodes in worker processes, computes features and cuts here, refines in threads, writes a shard when it is full."""
    generator = AutomaticMaskGenerator(cfg)
    positions = [(shard, position) for shard in missing for position in range(*slices[shard].indices(len(names)))]
    dataset = _Images(images, names, image_ids(names), positions, generator.extractor)
    loader = DataLoader(
        dataset,
        batch_size=cfg.FEATURES.BATCH_SIZE,
        num_workers=cfg.MASKS.NUM_WORKERS,
        collate_fn=list,
    )
    total = sum(piece.stop - piece.start for piece in slices.values())
    with (
        ThreadPoolExecutor(max_workers=max(1, cfg.MASKS.NUM_THREADS)) as pool,
        Progress(total, "masks", initial=total - len(positions)) as bar,
    ):
        futures = _submit(loader, generator, pool)
        for shard, group in groupby(_in_order(futures, limit=4 * cfg.FEATURES.BATCH_SIZE), key=lambda item: item[0]):
            records = []
            for _, record in group:
                records.append(record)
                bar.update()
            write_shard(shard_path(output, shard), records)


@dataclass(frozen=True)
class _Image:
    """One decoded image with its record, still without masks; no image where it could not be read."""

    shard: int
    record: ImageMasks
    prepared: PreparedImage | None = None


class _Images(Dataset):
    """Decodes images by their position in the sorted list."""

    def __init__(
        self,
        root: Path,
        names: list[str],
        ids: list[int],
        positions: list[tuple[int, int]],
        extractor: FeatureExtractor,
    ):
        self._root = root
        self._names = names
        self._ids = ids
        self._positions = positions
        self._extractor = extractor

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> _Image:
        shard, position = self._positions[index]
        image_id, name = self._ids[position], self._names[position]
        printable = name.encode(errors="backslashreplace").decode()
        if printable != name:  # bytes that are no UTF-8, which no JSON or Parquet can name
            return _Image(shard, ImageMasks(image_id, printable, error="its name is not UTF-8; rename it"))
        try:
            image_rgb = read_image_rgb(self._root / name)
        except ImageReadError as error:
            return _Image(shard, ImageMasks(image_id, name, error=str(error)))
        return _Image(shard, ImageMasks(image_id, name), prepare_image(self._extractor, image_rgb))


def _submit(
    loader: DataLoader, generator: AutomaticMaskGenerator, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Future | ImageMasks]]:
    for batch in loader:
        prepared = [image.prepared for image in batch if image.prepared is not None]
        found = iter(generator.cut(prepared) if prepared else [])
        for image in batch:
            if image.prepared is None:
                yield image.shard, image.record
            else:
                yield image.shard, pool.submit(_refine, generator, image.record, next(found))


def _refine(generator: AutomaticMaskGenerator, record: ImageMasks, coarse: CoarseMasks) -> ImageMasks:
    return replace(generator.refine(coarse), image_id=record.image_id, file_name=record.file_name)


def _in_order(futures: Iterator[tuple[int, Future | ImageMasks]], limit: int) -> Iterator[tuple[int, ImageMasks]]:
    """Yields results in the order of their images, at most ``limit`` of them waiting: what bounds the memory."""
    waiting = []
    for item in futures:
        waiting.append(item)
        while len(waiting) > limit or (waiting and _is_done(waiting[0][1])):
            shard, result = waiting.pop(0)
            yield shard, result.result() if isinstance(result, Future) else result
    for shard, result in waiting:
        yield shard, result.result() if isinstance(result, Future) else result


def _is_done(result: Future | ImageMasks) -> bool:
    return not isinstance(result, Future) or result.done()
