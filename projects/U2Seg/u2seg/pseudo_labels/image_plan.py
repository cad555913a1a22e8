"""The frozen plan of a label run: which images there are, in which shard each lies, and how its files will be called.

A plan is written once, before the first mask, and read shard by shard. Neither writing nor reading holds all names in memory.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO

from u2seg.utils.external_sort import ExternalSort
from u2seg.utils.files import atomic_path, read_json, write_json
from u2seg.utils.image_io import ImageSource, PngNames, cut_name, number_of
from u2seg.utils.manifest import MANIFEST

# Shards in one plan file, a row group each: its footer stays small however many images there are.
_SHARDS_PER_FILE = 1024
# Up to so many shards are made of the smallest size; more images than that make larger ones.
_FEW_SHARDS = 1000
_SMALLEST_SHARD, _LARGEST_SHARD = 64, 8192


@dataclass(frozen=True)
class PlannedImage:
    """One image of a plan.

    Attributes:
        image_id: positive, unique in the plan; see ``u2seg.utils.image_io.image_ids``.
        name: as the source gave it.
        png_name: what its label PNGs are called; see ``u2seg.utils.image_io.png_names``.
        digest: of its content when the plan was made.
    """

    image_id: int
    name: str
    png_name: str
    digest: str


@dataclass(frozen=True)
class ImagePlan:
    """A frozen list of images in shards, in the hidden files ``.plan-KEY*`` of a directory.

    Attributes:
        directory: that holds the files.
        key: of eight digits; equal images in equal shards have equal keys.
        count: images.
        digest: of all names and contents.
        shard_size: images in each shard but the last.
    """

    directory: Path
    key: str
    count: int
    digest: str
    shard_size: int

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.shard_size)

    def size_of(self, shard: int) -> int:
        """Returns how many images a shard holds."""
        return min(self.shard_size, self.count - shard * self.shard_size)

    def images(self, shard: int) -> list[PlannedImage]:
        """Returns the images of a shard, in order."""
        return _read_group(
            str(_part_path(self.directory, self.key, shard // _SHARDS_PER_FILE)), shard % _SHARDS_PER_FILE
        )

    def __iter__(self) -> Iterator[PlannedImage]:
        """Yields all images, one shard in memory at a time."""
        for shard in range(self.num_shards):
            yield from self.images(shard)


def automatic_shard_size(count: int) -> int:
    """Returns how many images of ``count`` make a shard: 64 for small sets, up to 8192 for large ones, always a power of two.

    >>> [automatic_shard_size(count) for count in (100, 64_000, 118_287, 1_281_167, 10**9)]
    [64, 64, 128, 2048, 8192]
    """
    size = _SMALLEST_SHARD
    while size < _LARGEST_SHARD and -(-count // size) > _FEW_SHARDS:
        size *= 2
    return size


def write_plan(source: ImageSource, directory: Path, shard_size: int) -> ImagePlan:
    """Returns the plan of a source's images, written to ``directory`` unless it is there already.

    The names go through a temporary file, so that the memory does not grow with their number.

    Args:
        source: of the images.
        directory: for the plan's files.
        shard_size: images in a shard; 0: :func:`automatic_shard_size`.

    Raises:
        FileNotFoundError: the source is not there or holds no image.
        ValueError: two images have the same name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Without a name, and not in /tmp, which may be small.
        spool = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        numbers, stems, listed = (stack.enter_context(ExternalSort(directory=directory)) for _ in range(3))
        digest, count, all_numbers = hashlib.sha256(), 0, True
        for name in source.names():
            content = source.digest(name)
            entry = f"{name}\t{content}".encode(errors="backslashreplace")
            digest.update(entry if not count else b"\n" + entry)
            spool.write(json.dumps([name, content]).encode() + b"\n")
            if all_numbers:
                number = number_of(name)
                all_numbers = number is not None
                numbers.add(str(number))
            stems.add(PngNames.stem(cut_name(printable_name(name))).lower())
            listed.add(name)
            count += 1
        if not count:
            raise FileNotFoundError(f"no image below {source.description}; expected JPEG, PNG or WebP files")
        if twin := next(listed.repeated(), None):
            raise ValueError(f"{source.description} lists {twin!r} twice; an image's name must be unique")
        size = shard_size or automatic_shard_size(count)
        key = plan_key(digest.hexdigest()[:16], size)
        plan = ImagePlan(directory, key, count, digest.hexdigest()[:16], size)
        if not _summary_path(directory, key).is_file():
            names = PngNames(set(stems.repeated()), lambda: (printable_name(name) for name, _ in _spooled(spool)))
            # Different numbers are the ids.
            _write_parts(plan, _planned(spool, names, all_numbers and next(numbers.repeated(), None) is None))
            write_json(_summary_path(directory, key), {"images": count, "digest": plan.digest, "shard_size": size})
    return plan


def find_plan(directory: Path) -> ImagePlan | None:
    """Returns the plan that a mask stage's manifest names; None where there is none, as in a directory made by hand."""
    manifest = read_json(directory / MANIFEST) if (directory / MANIFEST).is_file() else {}
    settings = manifest.get("settings", {})
    if "IMAGES" not in settings:
        return None
    key = plan_key(settings["IMAGES"]["digest"], settings["MASKS"]["SHARD_SIZE"])
    if not _summary_path(directory, key).is_file():
        return None
    summary = read_json(_summary_path(directory, key))
    return ImagePlan(directory, key, summary["images"], summary["digest"], summary["shard_size"])


def shard_png_names(masks: Path, shard: int) -> dict[str, str]:
    """Returns the names of the label PNGs of a shard's images, by the images' (printable) names.

    Args:
        masks: directory of a mask stage.
        shard: number of the shard.

    Raises:
        FileNotFoundError: the directory holds no plan.
    """
    plan = find_plan(masks)
    if plan is None:
        raise FileNotFoundError(
            f"{masks} holds no plan, .plan-*: it is no directory of a mask stage, or files were deleted"
        )
    return {printable_name(image.name): image.png_name for image in plan.images(shard)}


def remove_other_plans(plan: ImagePlan) -> None:
    """Deletes the plans in a directory that are not ``plan``: those of settings or images that were given up."""
    for path in plan.directory.glob(".plan-*"):
        if not path.name.startswith(f".plan-{plan.key}"):
            path.unlink(missing_ok=True)


def printable_name(name: str) -> str:
    """Returns a name without bytes that are no UTF-8, which no JSON or Parquet can hold; almost always the name itself."""
    return name.encode(errors="backslashreplace").decode()


def plan_key(digest: str, shard_size: int) -> str:
    """Returns the key of a plan by the digest of its images and the size of its shards."""
    return hashlib.sha256(f"{digest}\t{shard_size}".encode()).hexdigest()[:8]


def _spooled(spool: IO[bytes]) -> Iterator[tuple[str, str]]:
    spool.seek(0)
    for line in spool:
        name, content = json.loads(line)
        yield name, content


def _planned(spool: IO[bytes], names: PngNames, by_number: bool) -> Iterator[PlannedImage]:
    for position, (name, content) in enumerate(_spooled(spool), start=1):
        number = number_of(name) if by_number else position
        assert number is not None
        yield PlannedImage(number, name, names.png(printable_name(name), position), content)


def _write_parts(plan: ImagePlan, images: Iterator[PlannedImage]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image_id": pa.int64(), "name": pa.binary(), "png_name": pa.string(), "digest": pa.string()}
    schema = pa.schema(list(columns.items()))
    for part in range(-(-plan.num_shards // _SHARDS_PER_FILE)):
        shards = range(part * _SHARDS_PER_FILE, min((part + 1) * _SHARDS_PER_FILE, plan.num_shards))
        with (
            atomic_path(_part_path(plan.directory, plan.key, part)) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for shard in shards:
                group = list(islice(images, plan.size_of(shard)))
                rows = {
                    "image_id": [image.image_id for image in group],
                    "name": [image.name.encode(errors="surrogateescape") for image in group],
                    "png_name": [image.png_name for image in group],
                    "digest": [image.digest for image in group],
                }
                writer.write_table(pa.table(rows, schema=schema))


@lru_cache(maxsize=2)
def _read_group(path: str, group: int) -> list[PlannedImage]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows = file.read_row_group(group).to_pylist()
    return [
        PlannedImage(row["image_id"], row["name"].decode(errors="surrogateescape"), row["png_name"], row["digest"])
        for row in rows
    ]


def _part_path(directory: Path, key: str, part: int) -> Path:
    return directory / f".plan-{key}-{part:06d}.parquet"


def _summary_path(directory: Path, key: str) -> Path:
    return directory / f".plan-{key}.json"
