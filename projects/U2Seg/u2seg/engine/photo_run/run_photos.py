"""What a run starts from: which photos there are, on which machine, and which ground truth belongs to them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from u2seg.predictor import find_images
from u2seg.utils.files import did_you_mean, read_json, write_json
from u2seg.utils.image_io import IMAGE_SUFFIXES, ImageReadError, image_size, list_entries, list_images
from u2seg.utils.manifest import Failure

RUN_CONFIG = "config.yaml"  # in the directory of a run, beside the links to its photos
_HEADERS_READ = 200  # images whose size is looked up before a run


@dataclass(frozen=True)
class Photos:
    """The photos of a run.

    Attributes:
        root: directory that holds them, or links to them.
        names: paths relative to ``root``, as :func:`u2seg.utils.image_io.list_images` gives them.
        size: median (height, width) in pixels of up to 200 of them, evenly spaced.
        unreadable: those among them whose header cannot be read.
        num_looked_at: how many were looked at.
    """

    root: Path
    names: list[str]
    size: tuple[int, int]
    unreadable: list[Failure]
    num_looked_at: int


@dataclass(frozen=True)
class Machine:
    """What a run can use.

    Attributes:
        cores: CPU cores that this process may run on.
        gpus: CUDA devices.
        memory_bytes: free main memory; 0 where the system does not say.
    """

    cores: int
    gpus: int
    memory_bytes: int


def default_output(photos: str | Path) -> Path:
    """Returns where a run on photos goes unless it is told: ``output/`` and the directory's name as it was given, links not followed.

    Args:
        photos: a directory, one photo, or a list of photos.
    """
    path = Path(os.path.abspath(photos))  # without the links, "." and ".." that Path.resolve() would follow
    return Path("output") / ((path.name if path.is_dir() else path.stem) or "photos")


def find_machine() -> Machine:
    """Returns the machine that this process runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, torch.cuda.device_count(), _free_memory())


def _free_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return 0
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(rows.get("MemAvailable", "0 kB").split()[0]) * 1024


def find_photos(given: str | Path, links: str | Path) -> Photos:
    """Returns the photos that a user points at.

    Args:
        given: a directory tree of images; one image; or a text file with a path in each line (relative to the working directory or to
            the file; blank lines and those that begin with # are skipped).
        links: directory that is filled with links where ``given`` is no directory, so that every stage reads a directory; it then
            holds no others.

    Raises:
        FileNotFoundError: nothing is there, or a listed image is not.
        FileExistsError: ``links`` holds something that no run has put there.
        ValueError: none of the images can be read.
    """
    given = Path(given)
    if given.is_dir():
        root = given
    elif given.is_file():
        files = [given] if given.suffix.lower() in IMAGE_SUFFIXES else _listed(given)
        root = _link(files, Path(links))
    else:
        raise FileNotFoundError(
            f"{given} does not exist; expected a directory of photos, one photo, or a text file with a path in each line"
            f"{did_you_mean(given)}"
        )
    names = list_images(root)
    sizes: list[tuple[int, int]] = []
    unreadable: list[Failure] = []
    step = np.linspace(0, len(names) - 1, min(len(names), _HEADERS_READ)).round().astype(int)
    for name in (names[index] for index in step):
        size = _size_or_failure(root, name)
        if isinstance(size, Failure):
            unreadable.append(size)
        else:
            sizes.append(size)
    if not sizes:
        raise ValueError(f"none of the images in {given} can be read; the first: {names[0]}: {unreadable[0].reason}")
    height, width = np.median(np.asarray(sizes), axis=0)
    return Photos(root, names, (int(height), int(width)), unreadable, len(step))


def _size_or_failure(root: Path, name: str) -> tuple[int, int] | Failure:
    try:
        return image_size(root / name)
    except ImageReadError as error:
        return Failure(name, str(error))


def _listed(path: Path) -> list[Path]:
    try:
        entries = list(list_entries(path.read_text(encoding="utf-8-sig").splitlines()))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a text file with a path in each line"
        ) from error
    files = []
    for number, line in entries:
        found = next((p for p in (Path(line), path.parent / line) if p.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{path}, line {number}: there is no file {line}{did_you_mean(line)}")
        files.append(found)
    if not files:
        raise FileNotFoundError(f"{path} lists no image")
    return files


def _link(files: Sequence[Path], directory: Path) -> Path:
    """Fills a directory with links to files, named by their paths below the directory that they share, and removes all other links."""
    wanted = {directory / name: path.resolve() for name, path in find_images(files).items()}
    found = [path for path in directory.rglob("*") if path.is_symlink() or path.is_file()]
    outdated = [path for path in found if not path.is_symlink() or path.readlink() != wanted.get(path)]
    # What is no link, or lies beside no configuration of a run, is the user's own.
    is_ours = (directory.parent / RUN_CONFIG).is_file() and all(path.is_symlink() for path in outdated)
    if outdated and not is_ours:
        raise FileExistsError(
            f"{directory} holds {outdated[0].relative_to(directory)}, which is none of the photos of this run; choose another --output, "
            "or delete that directory"
        )
    for path in outdated:
        path.unlink()
    for link, path in wanted.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path)
    return directory


def select_ground_truth(annotations: str | Path, photos: Photos, directory: str | Path) -> tuple[dict[str, str], int]:
    """Returns the part of a ground truth that belongs to the photos, as a dataset for ``DATASETS.BY_PATH``, and how many images it has.

    It is written to ``directory``; the panoptic PNGs stay where they are.

    Args:
        annotations: COCO panoptic or instances JSON. PNGs of the former: ``ROOT/annotations/NAME.json`` with ``ROOT/NAME/*.png``, or a
            directory NAME beside the file.
        photos: whose file names are looked up in it.
        directory: to write to.

    Raises:
        FileNotFoundError: no such file, or no PNGs for it.
        ValueError: it is no such JSON, or names none of the photos.
    """
    path = Path(annotations)
    if not path.is_file():
        raise FileNotFoundError(f"ground-truth file not found: {path}{did_you_mean(path)}")
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{path} is no COCO ground truth: expected a JSON object with images, annotations, categories")
    names = set(photos.names)
    images = [image for image in content["images"] if image["file_name"] in names]
    if not images:
        raise ValueError(
            f"{path} names none of the {len(names)} photos in {photos.root}; expected file_name entries such as {photos.names[0]!r}, got "
            f"{content['images'][0]['file_name'] if content['images'] else 'none'!r}"
        )
    ids = {image["id"] for image in images}
    rows = [row for row in content["annotations"] if row["image_id"] in ids]
    is_panoptic = any("segments_info" in row for row in content["annotations"])
    selected = Path(directory) / ("panoptic.json" if is_panoptic else "instances.json")
    write_json(selected, {**content, "images": images, "annotations": rows})
    found = {"FORMAT": "evaluation_only", "IMAGES": str(photos.root.resolve())}
    if is_panoptic:
        pngs = [path.parent.parent / path.stem, path.parent / path.stem]
        root = next((root for root in pngs if root.is_dir()), None)
        if root is None:
            raise FileNotFoundError(f"no panoptic PNGs for {path}; expected them in {pngs[0]} or {pngs[1]}")
        return {**found, "PANOPTIC_JSON": str(selected.resolve()), "PANOPTIC_ROOT": str(root.resolve())}, len(images)
    return {**found, "INSTANCES_JSON": str(selected.resolve())}, len(images)
