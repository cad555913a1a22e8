"""The stage that merges masks, clusters and semantic maps into panoptic pseudo-labels and writes the user's files."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from pycocotools import mask as mask_utils

from u2seg.data.formats.coco_panoptic import (
    instance_annotations,
    panoptic_annotation,
    panoptic_rgb,
    stuff_pixels,
    whole_instance_annotations,
    write_panoptic_png,
    write_stuff_png,
)
from u2seg.data.formats.label_directory import INSTANCES_JSON, PANOPTIC_DIRECTORY, PANOPTIC_JSON, STUFF_DIRECTORY
from u2seg.data.formats.label_shards import (
    ImageLabels,
    PngPlaces,
    iter_labels,
    png_tar,
    read_label_shard,
    write_label_shard,
)
from u2seg.data.formats.mask_shards import count_records, mask_shards
from u2seg.data.formats.png_tars import write_png_tar
from u2seg.data.formats.semantic_shards import read_semantic_shard
from u2seg.pseudo_labels.clusters.cluster_stage import LOST, read_assigned
from u2seg.pseudo_labels.image_plan import shard_png_names
from u2seg.pseudo_labels.panoptic.panoptic_merge import INSTANCE_SIZE_REGISTRY, merge_panoptic, void_share
from u2seg.pseudo_labels.worker import Worker
from u2seg.structures.label_space import LabelSpace
from u2seg.structures.mask_records import ImageMasks
from u2seg.structures.segments import Segment
from u2seg.utils.files import atomic_path, confined_path, read_json, stream_json
from u2seg.utils.manifest import (
    MANIFEST,
    check_stage,
    close_stage,
    is_complete,
    open_stage,
    require_shards,
    settings_digest,
    shard_path,
    stage_settings,
    unless_done,
)
from u2seg.utils.progress import Progress
from u2seg.utils.registry import get_registered

# Called again and again, each time for a new stream of all images' labels.
LabelStream = Callable[[], Iterator[ImageLabels]]


@dataclass(frozen=True)
class PanopticRule:
    """How an image's instances and its semantic map become labels; ``PANOPTIC_LABELS`` of a configuration.

    Attributes:
        order_by: name in ``INSTANCE_SIZE_REGISTRY``: by what size instances are drawn.
        carve_instances: whether an instance is what of it is visible in the panoptic map; else its
            whole mask.
        max_covered: share, 0..1; see
            :func:`u2seg.pseudo_labels.panoptic.panoptic_merge.merge_panoptic`.
        min_instance_pixels: visible pixels below which an instance is left out of the panoptic map,
            and if carved, altogether.
        min_stuff_pixels: pixels below which a stuff segment is left out.
    """

    order_by: str
    carve_instances: bool
    max_covered: float
    min_instance_pixels: int
    min_stuff_pixels: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PanopticRule":
        """Returns the rule of a configuration.

        Raises:
            UnknownNameError: ``PANOPTIC_LABELS.ORDER_BY`` is not registered; the message lists what is.
        """
        keys = cfg.PANOPTIC_LABELS
        get_registered(INSTANCE_SIZE_REGISTRY, keys.ORDER_BY, "PANOPTIC_LABELS.ORDER_BY")
        return cls(
            order_by=keys.ORDER_BY,
            carve_instances=keys.CARVE_INSTANCES,
            max_covered=keys.MAX_COVERED,
            min_instance_pixels=keys.MIN_INSTANCE_PIXELS,
            min_stuff_pixels=keys.MIN_STUFF_PIXELS,
        )

    def merge(
        self, masks: np.ndarray, thing_clusters: np.ndarray, semantic: np.ndarray
    ) -> tuple[np.ndarray, list[Segment]]:
        """Returns the panoptic map of an image and its segments; see ``merge_panoptic``."""
        return merge_panoptic(
            masks,
            thing_clusters,
            semantic,
            size_of=INSTANCE_SIZE_REGISTRY.get(self.order_by),
            max_covered=self.max_covered,
            min_instance_pixels=self.min_instance_pixels,
            min_stuff_pixels=self.min_stuff_pixels,
        )

    def instances(
        self,
        image_id: int,
        masks: np.ndarray,
        thing_clusters: np.ndarray,
        scores: np.ndarray,
        merged: tuple[np.ndarray, list[Segment]],
        space: LabelSpace,
    ) -> list[dict]:
        """Returns the COCO instance annotations of an image.

        Args:
            image_id: of the image.
            masks: bool (N, H, W), its instances.
            thing_clusters: int (N,), 0-based.
            scores: float (N,), 0..1.
            merged: what :meth:`merge` returned for them.
            space: the classes.
        """
        if self.carve_instances:
            return instance_annotations(image_id, *merged, scores, space)
        return whole_instance_annotations(image_id, masks, thing_clusters, scores, space)


def open_panoptic(cfg: CfgNode, clusters: Path, semantics: Path, output: Path, *, clean: bool = True) -> dict:
    """Opens the stage's directory and returns its settings.

    Args:
        cfg: reads ``PANOPTIC_LABELS``.
        clusters: directory of the cluster stage.
        semantics: directory of the semantic stage.
        output: of this stage.
        clean: see ``u2seg.utils.manifest.open_stage``.
    """
    things, stuff = label_counts(clusters, semantics)
    inputs = {name: settings_digest(path) for name, path in (("clusters", clusters), ("semantics", semantics))}
    settings = {**asdict(PanopticRule.from_config(cfg)), "inputs": inputs, "things": things, "stuff": stuff}
    open_stage(output, "panoptic", settings, clean=clean)
    return settings


def label_groups(cfg: CfgNode, masks: Path, clusters: Path, semantics: Path, output: Path, worker: Worker) -> None:
    """Writes the PNGs and the label shards of the images of one worker's shards.

    Every image that all stages could read gets labels, also one without an instance.

    Args:
        cfg: reads ``PANOPTIC_LABELS``.
        masks: directory of the mask stage.
        clusters: directory of the cluster stage.
        semantics: directory of the semantic stage.
        output: directory to fill.
        worker: whose shards are labeled.
    """
    settings = open_panoptic(cfg, clusters, semantics, output, clean=False)
    if is_complete(output):
        return
    space, rule = LabelSpace.of_clusters(*label_counts(clusters, semantics)), PanopticRule.from_config(cfg)
    shards = mask_shards(masks)
    _require_all(masks, semantics, sum(map(count_records, shards)), len(shards))
    own = worker.share(len(shards))
    missing = [index for index in own if not shard_path(output, index).is_file()]
    total = sum(count_records(shards[index]) for index in own)
    done = total - sum(count_records(shards[index]) for index in missing)
    with Progress(total, "panoptic labels", initial=done) as bar:
        for index in missing:
            group = read_assigned(shards[index], clusters)
            maps = read_semantic_shard(shard_path(semantics, index))
            check_stage(output, "panoptic", settings)
            shard = shard_path(output, index)
            with _PNGS[cfg.PANOPTIC_LABELS.FORMAT](shard, space) as pngs:
                labels = list(_label_group(bar.track(group), maps, pngs, shard_png_names(masks, index), space, rule))
            # The labels last: a shard that is there is finished.
            write_label_shard(shard, labels)


def finish_panoptic(cfg: CfgNode, masks: Path, clusters: Path, semantics: Path, output: Path) -> None:
    """Closes the stage; where the settings ask for COCO's files, writes them as streams and deletes the shards, which hold the same.

    Called again for a finished stage that is in shards, it does so if the settings ask for COCO's files now.

    Args:
        cfg: reads ``PANOPTIC_LABELS``.
        masks: directory of the mask stage.
        clusters: directory of the cluster stage.
        semantics: directory of the semantic stage.
        output: of this stage.

    Raises:
        IncompleteStageError: the labels of a shard are missing; the message names it.
    """
    open_panoptic(cfg, clusters, semantics, output)
    count = len(mask_shards(masks))
    shards = [shard_path(output, index) for index in range(count)]
    if not is_complete(output) or not (output / PANOPTIC_JSON).is_file():
        with unless_done(lambda: is_complete(output) and (output / PANOPTIC_JSON).is_file()):
            require_shards(output, count)
            if cfg.PANOPTIC_LABELS.FORMAT == "coco":
                for shard in shards:
                    _unpack_pngs(shard)
                space = LabelSpace.of_clusters(*label_counts(clusters, semantics))
                write_json_files(output, lambda: iter_labels(shards), space)
            if not is_complete(output):
                close_stage(output, count_labels(iter_labels(shards)))
    if (output / PANOPTIC_JSON).is_file():
        for shard in shards:
            shard.unlink(missing_ok=True)
            png_tar(shard).unlink(missing_ok=True)


def _require_all(masks: Path, semantics: Path, num_images: int, num_shards: int) -> None:
    """Refuses stages of which shards were deleted after they were finished: images would be left out in silence."""
    expected = read_json(masks / MANIFEST)["counts"]["images"]
    if num_images != expected:
        raise FileNotFoundError(
            f"the shards in {masks} hold {num_images} images, its {MANIFEST} says {expected}: put back what was deleted, or delete "
            f"{masks} and what was made from it"
        )
    found = len(list(semantics.glob("shard-*.parquet")))
    if found != num_shards:
        raise FileNotFoundError(
            f"{semantics} has {found} shards, {masks} {num_shards}: put back what was deleted, or delete {semantics} to make it anew"
        )


def label_counts(clusters: Path, semantics: Path) -> tuple[int, int]:
    """Returns (number of thing clusters, number of stuff clusters) that two stages' directories hold."""
    return stage_settings(clusters)["num_clusters"], stage_settings(semantics)["num_clusters"]


def _label_group(
    group: Iterable[tuple[ImageMasks, np.ndarray]],
    maps: dict,
    pngs: "_PngFiles | _PngTar",
    png_of: dict,
    space: LabelSpace,
    rule: PanopticRule,
) -> Iterator[ImageLabels]:
    """Hands the maps of the images of a shard to ``pngs`` and yields their labels."""
    for record, clusters in group:
        # One that was lost after its masks were made is in the failures of the stage that missed it.
        if record.error is not None or record.file_name not in maps or (clusters == LOST).any():
            continue
        shape = (record.height, record.width)
        decoded = mask_utils.decode(record.rles()) if record.rle_counts else np.zeros((*shape, 0), np.uint8)
        masks = decoded.transpose(2, 0, 1).astype(bool)
        panoptic, segments = rule.merge(masks, clusters, maps[record.file_name])
        png = png_of[record.file_name]
        places = pngs.add(png, panoptic, segments)
        yield ImageLabels(
            image={"id": record.image_id, "file_name": record.file_name, "height": shape[0], "width": shape[1]},
            panoptic=panoptic_annotation(record.image_id, png, panoptic, segments, space),
            instances=rule.instances(record.image_id, masks, clusters, record.scores, (panoptic, segments), space),
            void_share=void_share(panoptic),
            png_places=places,
        )


class _PngFiles(contextlib.AbstractContextManager):
    """Writes the PNGs of a shard's images as files of their own."""

    def __init__(self, shard: Path, space: LabelSpace):
        self._directory, self._space = shard.parent, space

    def __exit__(self, *error: object) -> None:
        """Does nothing: the files are whole."""

    def add(self, name: str, panoptic: np.ndarray, segments: list[Segment]) -> None:
        write_panoptic_png(self._directory / PANOPTIC_DIRECTORY / name, panoptic)
        write_stuff_png(self._directory / STUFF_DIRECTORY / name, panoptic, segments, self._space)


class _PngTar(contextlib.ExitStack):
    """Writes the PNGs of a shard's images to the tar beside it."""

    def __init__(self, shard: Path, space: LabelSpace):
        super().__init__()
        self._space = space
        self._tar = self.enter_context(write_png_tar(png_tar(shard)))

    def add(self, name: str, panoptic: np.ndarray, segments: list[Segment]) -> PngPlaces:
        key = name.removesuffix(".png")
        whole = self._tar.add(f"{key}.{PANOPTIC_DIRECTORY}.png", panoptic_rgb(panoptic))
        stuff = self._tar.add(f"{key}.{STUFF_DIRECTORY}.png", stuff_pixels(panoptic, segments, self._space))
        return *whole, *stuff


_PNGS: dict[str, type[_PngFiles] | type[_PngTar]] = {"coco": _PngFiles, "shards": _PngTar}


def _unpack_pngs(shard: Path) -> None:
    """Writes the PNGs that lie in a shard's tar as files, if it has one."""
    for labels in read_label_shard(shard):
        if labels.png_places is None:
            continue
        name, (start, size, stuff_start, stuff_size) = labels.panoptic["file_name"], labels.png_places
        with png_tar(shard).open("rb") as tar:
            for directory, first, count in (
                (PANOPTIC_DIRECTORY, start, size),
                (STUFF_DIRECTORY, stuff_start, stuff_size),
            ):
                tar.seek(first)
                with atomic_path(confined_path(shard.parent / directory, name, shard)) as temporary:
                    temporary.write_bytes(tar.read(count))


def write_json_files(output: Path, labels: LabelStream, space: LabelSpace) -> None:
    """Writes instances JSON, then panoptic JSON; one image's labels are in memory at a time.

    Args:
        output: the directory that holds the PNGs.
        labels: of all images.
        space: the classes.
    """
    info = {"description": "pseudo-labels: no human annotation; categories are clusters"}
    categories = space.categories()
    instances = (row for one in labels() for row in one.instances)
    stream_json(
        output / INSTANCES_JSON,
        {
            "info": info,
            "images": (one.image for one in labels()),
            "annotations": ({**row, "id": number} for number, row in enumerate(instances, start=1)),
            "categories": [category for category in categories if category["isthing"]],
        },
    )
    stream_json(
        output / PANOPTIC_JSON,
        {
            "info": info,
            "images": (one.image for one in labels()),
            "annotations": (one.panoptic for one in labels()),
            "categories": categories,
        },
    )


def count_labels(labels: Iterator[ImageLabels]) -> dict:
    """Returns what a manifest says of finished labels: images, instances, segments and the mean share of void pixels."""
    images = instances = segments = 0

    def void_shares() -> Iterator[float]:
        nonlocal images, instances, segments
        for one in labels:
            images += 1
            instances += len(one.instances)
            segments += len(one.panoptic["segments_info"])
            yield one.void_share

    void = math.fsum(void_shares())
    return {
        "images": images,
        "instances": instances,
        "segments": segments,
        "mean_void_share": round(void / images, 6) if images else 0.0,
    }
