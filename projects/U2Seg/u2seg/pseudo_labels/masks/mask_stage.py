"""The mask stage: from a directory of photos to Parquet shards of class-agnostic masks."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from u2seg.data.formats.mask_shards import failures_of, iter_records, write_shard
from u2seg.features import FeatureExtractor, build_feature_extractor
from u2seg.pseudo_labels.masks.interfaces import (
    MaskGenerator,
    MaskRefinement,
    PatchMasks,
    build_mask_generator,
    build_mask_refinement,
)
from u2seg.pseudo_labels.masks.refinement import fill_holes, mask_iou, resize_mask, upsample_nearest, without_overlaps
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import file_digest, list_digest
from u2seg.utils.image_io import ImageReadError, image_ids, list_images, read_image_rgb
from u2seg.utils.manifest import close_stage, is_complete, open_stage, report_failures, shard_path, shard_slices

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
    output = open_stage(output, "masks", _settings(cfg, Path(images), names))
    max_failures = cfg.MASKS.MAX_FAILURES if max_failures is None else max_failures
    if not is_complete(output):
        slices = shard_slices(len(names), cfg.MASKS.SHARD_SIZE)
        missing = [index for index in range(len(slices)) if not shard_path(output, index).is_file()]
        if missing:
            _make_shards(cfg, Path(images), names, output, slices, missing)
        close_stage(output, _counts(output))
    report_failures(output, failures_of(iter_records(output)), len(names), max_failures)
    return output


def _settings(cfg: CfgNode, images: Path, names: list[str]) -> dict:
    # Sizes, so that another image under the same name is noticed; a link that leads nowhere has none.
    sizes = [path.stat().st_size if path.is_file() else -1 for path in (images / name for name in names)]
    entries = [f"{name}\t{size}" for name, size in zip(names, sizes)]
    settings = {"IMAGES": {"count": len(names), "digest": list_digest(entries)}}
    for section, left_out in _NOT_IN_MANIFEST.items():
        values = json.loads(json.dumps(cfg[section]))
        settings[section] = {key: value for key, value in values.items() if key not in left_out}
    return settings


def _counts(output: Path) -> dict:
    num_images = num_masks = num_failures = 0
    for record in iter_records(output):
        num_images += 1
        num_masks += len(record.rle_counts)
        num_failures += record.error is not None
    contents = list_digest([file_digest(path) for path in sorted(output.glob("shard-*.parquet"))])
    return {"images": num_images, "masks": num_masks, "failures": num_failures, "contents": contents}


def _make_shards(
    cfg: CfgNode, images: Path, names: list[str], output: Path, slices: list[slice], missing: list[int]
) -> None:
    """Decodes in worker processes, computes features and cuts here, refines in threads, writes a shard when it is full."""
    extractor = build_feature_extractor(cfg)
    device = next(iter(extractor.state_dict().values()), torch.empty(0)).device
    generator = build_mask_generator(cfg)
    finish = MaskPostprocessor(cfg, build_mask_refinement(cfg))
    positions = [(shard, position) for shard in missing for position in range(*slices[shard].indices(len(names)))]
    dataset = _Images(images, names, image_ids(names), positions, extractor)
    loader = DataLoader(
        dataset,
        batch_size=cfg.FEATURES.BATCH_SIZE,
        num_workers=cfg.MASKS.NUM_WORKERS,
        collate_fn=list,
    )
    done = sum(piece.stop - piece.start for index, piece in enumerate(slices) if index not in set(missing))
    with (
        ThreadPoolExecutor(max_workers=max(1, cfg.MASKS.NUM_THREADS)) as pool,
        tqdm(total=len(names), initial=done, desc="masks", unit="image", smoothing=0.05) as bar,
    ):
        futures = _submit(loader, extractor, generator, finish, device, pool)
        for shard, group in groupby(_in_order(futures, limit=4 * cfg.FEATURES.BATCH_SIZE), key=lambda item: item[0]):
            records = []
            for _, record in group:
                records.append(record)
                bar.update()
            write_shard(shard_path(output, shard), records)


@dataclass(frozen=True)
class _Image:
    """One decoded image, or the reason why there is none."""

    shard: int
    record: ImageMasks
    resized_rgb: np.ndarray | None = None
    pixels: torch.Tensor | None = None


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
        height, width = image_rgb.shape[:2]
        pixels = self._extractor.preprocess(image_rgb)
        resized_rgb = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        return _Image(shard, ImageMasks(image_id, name, height, width), resized_rgb, pixels)


def _submit(
    loader: Iterable[list[_Image]],
    extractor: FeatureExtractor,
    generator: MaskGenerator,
    finish: "MaskPostprocessor",
    device: torch.device,
    pool: Executor,
) -> Iterator[tuple[int, Future | ImageMasks]]:
    for batch in loader:
        readable = [image for image in batch if image.pixels is not None]
        found: Iterator[tuple[PatchMasks, np.ndarray]] = iter(())
        if readable:
            with torch.inference_mode():
                features = extractor(torch.stack([image.pixels for image in readable]).to(device))
                found = iter(list(zip(generator(features), features.float().cpu().numpy())))
        for image in batch:
            if image.pixels is None:
                yield image.shard, image.record
            else:
                # Without the pixels, which nobody needs any more: images that wait hold less memory.
                yield image.shard, pool.submit(finish, replace(image, pixels=None), *next(found))


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


class MaskPostprocessor:
    """Refines one image's masks, drops those that change too much, and writes them as run lengths."""

    def __init__(self, cfg: CfgNode, refinement: MaskRefinement):
        self._refinement = refinement
        self._min_refined_iou = cfg.MASKS.MIN_REFINED_IOU

    def __call__(self, image: _Image, found: PatchMasks, features: np.ndarray) -> ImageMasks:
        """Returns the image's record, best masks first.

        Args:
            image: the decoded image.
            found: its masks on the patch grid.
            features: float32 (C, rows, columns).
        """
        record = image.record
        assert image.resized_rgb is not None
        coarse = upsample_nearest(found.masks, image.resized_rgb.shape[:2])
        refined = [fill_holes(mask) for mask in self._refinement(image.resized_rgb, coarse)]
        ious = np.asarray([mask_iou(before, after) for before, after in zip(coarse, refined)], np.float32)
        scores = (found.scores * ious).astype(np.float32)
        size = (record.height, record.width)
        kept = [index for index in np.argsort(-scores, kind="stable") if ious[index] >= self._min_refined_iou]
        masks = without_overlaps([resize_mask(refined[index], size) for index in kept])
        present = [position for position, mask in enumerate(masks) if mask.any()]
        kept = [kept[position] for position in present]
        rles = [coco_mask.encode(np.asfortranarray(masks[p].view(np.uint8)))["counts"] for p in present]
        embeddings = [_pool(features, refined[index]) for index in kept]
        return ImageMasks(
            record.image_id,
            record.file_name,
            record.height,
            record.width,
            tuple(rles),
            scores[kept],
            found.cut_values[kept].astype(np.float32),
            ious[kept],
            np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32),
        )


def _pool(features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the mean feature over a mask, float32 (C,), each patch weighted by the share of it that the mask covers.

    Args:
        features: float32 (C, rows, columns).
        mask: bool (height, width), multiples of (rows, columns), not empty.
    """
    _, rows, columns = features.shape
    height, width = mask.shape
    weights = mask.reshape(rows, height // rows, columns, width // columns).mean(axis=(1, 3)).astype(np.float32)
    return np.einsum("crk,rk->c", features, weights / weights.sum())
