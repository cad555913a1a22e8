"""The mask stage: from photos to Parquet shards of class-agnostic masks."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from torch.utils.data import DataLoader, Dataset

from u2seg.data.formats.mask_shards import summarize_shard, write_shard
from u2seg.features import FeatureExtractor, feature_settings
from u2seg.pseudo_labels.image_plan import (
    ImagePlan,
    find_plan,
    printable_name,
    remove_other_plans,
    write_plan,
)
from u2seg.pseudo_labels.image_source import Images, open_source
from u2seg.pseudo_labels.lost_images import unreadable_reason
from u2seg.pseudo_labels.masks.automatic import AutomaticMaskGenerator, CoarseMasks, PreparedImage, prepare_image
from u2seg.pseudo_labels.masks.interfaces import generator_keys, refinement_keys
from u2seg.pseudo_labels.patch_sample import PatchSample
from u2seg.pseudo_labels.worker import Worker
from u2seg.structures import ImageMasks
from u2seg.utils.files import list_digest, short_file_digest
from u2seg.utils.image_io import ImageReadError, ImageSource
from u2seg.utils.manifest import (
    FAILURES,
    Failure,
    IncompleteStageError,
    StageMismatchError,
    check_stage,
    close_stage,
    is_complete,
    open_stage,
    refuse_foreign,
    refuse_other_settings,
    reopen_stage,
    report_failures,
    require_shards,
    settings_of,
    shard_path,
)
from u2seg.utils.progress import Progress

# Keys that every run reads, whatever its generator and refinement.
_KEYS = (
    "MASKS.GENERATOR",
    "MASKS.REFINEMENT",
    "MASKS.MIN_REFINED_IOU",
    "MASKS.SCORE_TIMES_IOU",
    "MASKS.ALLOW_OVERLAPS",
)
# Keys that say how the work is done, not what comes out; a run may go on with other ones.
_NOT_IN_MANIFEST = ("NUM_WORKERS", "MAX_FAILURES", "NUM_THREADS")


def make_masks(cfg: CfgNode, images: Images, output: str | Path) -> Path:
    """Makes class-agnostic masks for every image of a source.

    Finished shards are kept when the run is repeated; an image that cannot be read is recorded with the reason and skipped.

    Args:
        cfg: configuration; ``FEATURES`` and ``MASKS`` are used.
        images: directory of images, or another source; see ``u2seg.pseudo_labels.image_source.open_source``.
        output: directory to make or to go on with; see ``u2seg.data.formats.mask_shards`` for what it holds.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: ``images`` is not there or holds no image.
        StageMismatchError: ``output`` was made with other settings or from other images.
        TooManyFailuresError: a larger share of the images than ``MASKS.MAX_FAILURES`` could not be read; what was made is kept.
    """
    plan_masks(cfg, images, output)
    if not is_complete(output):
        make_mask_shards(cfg, images, output, Worker())
    finish_masks(cfg, output)
    return Path(output)


def plan_masks(cfg: CfgNode, images: Images, output: str | Path) -> ImagePlan:
    """Returns the plan of a run: lists the images, writes the plan, or checks that the images are still those of an earlier run.

    Args:
        cfg: as for :func:`make_masks`.
        images: as for :func:`make_masks`.
        output: directory of the mask stage.

    Raises:
        FileNotFoundError: ``images`` is not there or holds no image.
        StageMismatchError: ``output`` was made with other settings or from other images.
    """
    refuse_foreign(output)
    plan = write_plan(open_source(images), Path(output), cfg.MASKS.SHARD_SIZE)
    open_stage(output, "masks", _settings(cfg, plan))
    return plan


def make_mask_shards(
    cfg: CfgNode, images: Images, output: str | Path, worker: Worker, patch_samples: Path | None = None
) -> None:
    """Makes one worker's share of the shards of a mask stage that :func:`finish_masks` closes later.

    Several workers may run at once on machines that share ``output``; a finished shard is not made again.

    Args:
        cfg: as for :func:`make_masks`.
        images: as for :func:`make_masks`; all workers must see the same.
        output: directory to make or to go on with. A worker that finds no plan in it writes one.
        worker: whose shards are made.
        patch_samples: directory of the semantic stage, for which patches are sampled in the same forward pass; None: no sample.

    Raises:
        FileNotFoundError: ``images`` is not there or holds no image.
        StageMismatchError: ``output`` was made with other settings, or from other images.
    """
    source, output = open_source(images), Path(output)
    refuse_foreign(output)
    plan = find_plan(output) or write_plan(source, output, cfg.MASKS.SHARD_SIZE)
    settings = _settings(cfg, plan)
    open_stage(output, "masks", settings, clean=False)
    own = worker.share(plan.num_shards)
    missing = [index for index in own if not shard_path(output, index).is_file()]
    if missing:
        sample = patch_samples and PatchSample(cfg, output, plan.count, patch_samples)
        _make_shards(cfg, source, plan, own, missing, sample or None, lambda: check_stage(output, "masks", settings))


def finish_masks(cfg: CfgNode, output: str | Path) -> None:
    """Closes a mask stage whose shards are all there, unless it is closed: counts images, masks and failures, and writes these down.

    Args:
        cfg: as for :func:`make_masks`.
        output: directory of the mask stage.

    Raises:
        IncompleteStageError: shards are missing; the message names them.
        TooManyFailuresError: too many images could not be read.
    """
    output = Path(output)
    if is_complete(output):
        return
    plan = find_plan(output)
    if plan is None:
        raise IncompleteStageError(f"{output} holds no plan of a run; run the command without --finalize first")
    require_shards(output, plan.num_shards)
    num_masks, failures = 0, list[Failure]()
    for path in _shards(output, plan):
        summary = summarize_shard(path)
        num_masks += summary.num_masks
        failures += summary.failures
    remedy = ", or repair them and run `u2seg labels` with --retry-failures; what was made is kept"
    report_failures(output, failures, plan.count, cfg.MASKS.MAX_FAILURES, remedy)
    remove_other_plans(plan)
    contents = list_digest(short_file_digest(path) for path in _shards(output, plan))
    counts = {"images": plan.count, "masks": num_masks, "failures": len(failures), "contents": contents}
    close_stage(output, counts)


def reopen_failures(cfg: CfgNode, images: Images, output: str | Path, discard_dependents: Callable[[], None]) -> int:
    """Makes a mask stage unfinished where images that could not be read now can; :func:`make_masks` then goes on.

    The shards that hold such an image are deleted. Nothing changes if there is none. The stage need not be finished: a call may follow
    one that was killed.

    Args:
        cfg: as for :func:`make_masks`.
        images: directory of images.
        output: directory of the mask stage.
        discard_dependents: called before anything is deleted here; deletes what was made from the stage's masks.

    Returns:
        How many images can be read now.

    Raises:
        FileNotFoundError: the stage was not begun.
        StageMismatchError: images were added or removed, or an image changed that could be read before, or the settings did.
    """
    source, output = open_source(images), Path(output)
    old = find_plan(output)
    if old is None:
        raise FileNotFoundError(
            f"no mask stage was begun in {output}, so there is nothing to retry; run without --retry-failures first"
        )
    open_stage(output, "masks", _settings(cfg, old))
    failed_in = {
        index: {failure.file_name for failure in summarize_shard(path).failures}
        for index, path in enumerate(_shards(output, old))
        if path.is_file()
    }
    failed_in = {index: failed for index, failed in failed_in.items() if failed}
    failed: set[str] = set().union(*failed_in.values())
    plan = write_plan(source, output, old.shard_size)
    if _readable_digest(plan, failed) != _readable_digest(old, failed):
        remove_other_plans(old)
        raise StageMismatchError(
            f"other images of {source.description} than those in {output / FAILURES} were added, removed or changed; expected the same "
            "images, of which only the unreadable ones were repaired. Choose another output directory."
        )
    repaired = {name for name in failed if unreadable_reason(source, name) is None}
    if repaired:
        discard_dependents()
        # The manifest first: a stage that misses a shard must not look finished.
        reopen_stage(output, "masks", _settings(cfg, plan))
        for index, unreadable in failed_in.items():
            if unreadable & repaired:
                shard_path(output, index).unlink()
    return len(repaired)


def _readable_digest(plan: ImagePlan, failed: set[str]) -> str:
    """Returns a digest of all names, and of the contents of the images that could be read."""
    return list_digest(image.name if image.name in failed else f"{image.name}\t{image.digest}" for image in plan)


def refuse_other_masks(cfg: CfgNode, output: str | Path) -> None:
    """Refuses settings with which the masks in a directory were not made; the images are not compared.

    Args:
        cfg: as for :func:`make_masks`.
        output: directory of the mask stage; it need not exist.

    Raises:
        StageMismatchError: the message says what differs.
    """
    refuse_other_settings(output, "masks", _cfg_settings(cfg))


def _cfg_settings(cfg: CfgNode) -> dict:
    settings = settings_of(cfg, [*_KEYS, *generator_keys(cfg), *refinement_keys(cfg)])
    for key in (*_NOT_IN_MANIFEST, "SHARD_SIZE"):
        settings["MASKS"].pop(key, None)
    return {**settings, "FEATURES": feature_settings(cfg)}


def _settings(cfg: CfgNode, plan: ImagePlan) -> dict:
    settings = _cfg_settings(cfg)
    settings["MASKS"]["SHARD_SIZE"] = plan.shard_size
    # With the images' contents, so that another image under the same name is noticed.
    return {**settings, "IMAGES": {"count": plan.count, "digest": plan.digest}}


def _shards(output: Path, plan: ImagePlan) -> Iterator[Path]:
    return (shard_path(output, index) for index in range(plan.num_shards))


def _make_shards(
    cfg: CfgNode,
    source: ImageSource,
    plan: ImagePlan,
    own: range,
    missing: list[int],
    sample: PatchSample | None,
    check: Callable[[], None],
) -> None:
    """Decodes in worker processes, computes features and cuts here, refines in threads, writes a shard when it is full."""
    generator = AutomaticMaskGenerator(cfg)
    dataset = _Images(source, plan, missing, generator.extractor)
    loader = DataLoader(
        dataset,
        batch_size=cfg.FEATURES.BATCH_SIZE,
        num_workers=cfg.MASKS.NUM_WORKERS,
        collate_fn=list,
    )
    total = sum(map(plan.size_of, own))
    with (
        ThreadPoolExecutor(max_workers=max(1, cfg.MASKS.NUM_THREADS)) as pool,
        Progress(total, "masks", initial=total - len(dataset)) as bar,
    ):
        futures = _submit(loader, generator, sample, pool)
        for shard, group in groupby(_in_order(futures, limit=4 * cfg.FEATURES.BATCH_SIZE), key=lambda item: item[0]):
            done = []
            for _, result in group:
                done.append(result)
                bar.update()
            check()
            # The sample first: a shard that is there is finished.
            if sample:
                sample.write(shard, [one.patches for one in done if one.patches is not None])
            write_shard(shard_path(plan.directory, shard), [one.record for one in done])


@dataclass(frozen=True)
class _Image:
    """One decoded image with its record, still without masks; no image where it could not be read."""

    shard: int
    record: ImageMasks
    prepared: PreparedImage | None = None


@dataclass(frozen=True)
class _Result:
    """The masks of one image, and the patches drawn from it, float32 (n, C), if any."""

    record: ImageMasks
    patches: np.ndarray | None = None


class _Images(Dataset):
    """Decodes the images of some shards of a plan, one shard after another."""

    def __init__(self, source: ImageSource, plan: ImagePlan, shards: list[int], extractor: FeatureExtractor):
        self._source = source
        self._plan = plan
        self._shards = shards
        self._extractor = extractor

    def __len__(self) -> int:
        # Only the last shard of a plan may be smaller than the others, and shards are in order.
        return (len(self._shards) - 1) * self._plan.shard_size + self._plan.size_of(self._shards[-1])

    def __getitem__(self, index: int) -> _Image:
        shard = self._shards[index // self._plan.shard_size]
        image = self._plan.images(shard)[index % self._plan.shard_size]
        printable = printable_name(image.name)
        if printable != image.name:
            return _Image(shard, ImageMasks(image.image_id, printable, error="its name is not UTF-8; rename it"))
        try:
            image_rgb = self._source.read(image.name)
        except ImageReadError as error:
            return _Image(shard, ImageMasks(image.image_id, image.name, error=str(error)))
        return _Image(shard, ImageMasks(image.image_id, image.name), prepare_image(self._extractor, image_rgb))


def _submit(
    loader: DataLoader, generator: AutomaticMaskGenerator, sample: PatchSample | None, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Future | _Result]]:
    for batch in loader:
        prepared = [image.prepared for image in batch if image.prepared is not None]
        found = iter(generator.cut(prepared) if prepared else [])
        for image in batch:
            if image.prepared is None:
                yield image.shard, _Result(image.record)
            else:
                yield image.shard, pool.submit(_refine, generator, sample, image.record, next(found))


def _refine(
    generator: AutomaticMaskGenerator, sample: PatchSample | None, record: ImageMasks, coarse: CoarseMasks
) -> _Result:
    record = replace(generator.refine(coarse), image_id=record.image_id, file_name=record.file_name)
    return _Result(record, sample.draw(record, coarse.features) if sample and sample.takes(record) else None)


def _in_order(futures: Iterator[tuple[int, Future | _Result]], limit: int) -> Iterator[tuple[int, _Result]]:
    """Yields results in the order of their images, at most ``limit`` of them waiting: what bounds the memory."""
    waiting: deque[tuple[int, Future | _Result]] = deque()
    for item in futures:
        waiting.append(item)
        while len(waiting) > limit or (waiting and _is_done(waiting[0][1])):
            yield _finished(*waiting.popleft())
    for item in waiting:
        yield _finished(*item)


def _finished(shard: int, result: Future | _Result) -> tuple[int, _Result]:
    return shard, result.result() if isinstance(result, Future) else result


def _is_done(result: Future | _Result) -> bool:
    return not isinstance(result, Future) or result.done()
