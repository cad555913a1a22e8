"""Settings that fit the photos and the machine: image sizes, batches, numbers of clusters, workers."""

from u2seg.engine.photo_run.run_photos import Photos
from u2seg.engine.photo_run.run_threads import Threads

MAX_CLUSTERS = 800  # U2Seg's number for COCO and ImageNet
_BASE_SIDE = 192  # pixels: the short side for which quick_schedules/Base-COCO-mini.yaml is written


def scaled_settings(photos: Photos, threads: Threads, *, on_gpu: bool) -> dict[str, object]:
    """Returns the settings that follow from the photos and the machine, by key; the number of clusters follows from the masks later.

    Args:
        photos: number and size count.
        threads: workers.
        on_gpu: whether a GPU trains.
    """
    count, (height, width) = len(photos.names), photos.size
    # The short side: no larger than the photos', since enlarging adds nothing.
    side = min(384 if on_gpu else _BASE_SIDE, max(64, min(height, width) // 32 * 32))
    scale = side / _BASE_SIDE
    batch = min(count, (16 if count >= 1000 else 8) if on_gpu else 4)
    return {
        "MODEL.DEVICE": "cuda" if on_gpu else "cpu",
        "FEATURES.DEVICE": "cuda" if on_gpu else "cpu",
        "FEATURES.IMAGE_SIZE": feature_size(height, width),
        "FEATURES.BATCH_SIZE": min(count, 8),
        # Small shards lose little when a run is killed, and let every stage count in few images.
        "MASKS.SHARD_SIZE": min(64, max(4, count // 20)),
        "MASKS.NUM_WORKERS": threads.decoding,
        "MASKS.NUM_THREADS": threads.refining,
        "SEMANTICS.NUM_CLUSTERS": min(27, max(4, round(2 * count**0.5))),
        "SEMANTICS.PATCHES_PER_IMAGE": 64 if count >= 100 else 256,
        "INPUT.MIN_SIZE_TRAIN": tuple(round(side * part) for part in (5 / 6, 11 / 12, 1, 13 / 12, 7 / 6)),
        "INPUT.MAX_SIZE_TRAIN": round(side * 11 / 6),
        "INPUT.MIN_SIZE_TEST": side,
        "INPUT.MAX_SIZE_TEST": round(side * 5 / 3),
        "MODEL.ANCHOR_GENERATOR.SIZES": [[round(size * scale)] for size in (16, 32, 64, 128, 192)],
        # 4096 pixels belong to photos of 640x480.
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": max(64, round(4096 * height * width / (640 * 480))),
        "SOLVER.IMS_PER_BATCH": batch,
        "DATALOADER.NUM_WORKERS": threads.loading,
    }


def feature_size(height: int, width: int) -> tuple[int, int]:
    """Returns (height, width) of the image that the hand-made descriptor sees: about 240x320 pixels, in the photos' shape.

    Args:
        height: of a typical photo, pixels.
        width: of the same.
    """
    ratio = min(max(height / width, 0.5), 2.0)
    rows = round((240 * 320 * ratio) ** 0.5 / 16) * 16
    return rows, round(240 * 320 / rows / 16) * 16


def num_thing_clusters(num_masks: int) -> int:
    """Returns K for a number of masks: its square root, at least 1, at most 800; never more clusters than masks."""
    return min(max(1, round(num_masks**0.5)), MAX_CLUSTERS)
