"""What ``u2seg doctor`` looks at: versions, devices, weights, datasets."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from iopath.common.file_io import get_cache_dir

from u2seg.data.benchmarks import BENCHMARKS
from u2seg.features.vit_weights import ARCHITECTURES
from u2seg.version import __version__

# Import name -> distribution, and what to add to the advice to install it.
_PACKAGES = {
    "torchvision": ("torchvision", ""),
    "pycocotools": ("pycocotools", ""),
    "cv2": ("opencv-python-headless", ""),
    "pyarrow": ("pyarrow", ""),
    "faiss": ("faiss-cpu", " (or faiss-gpu; never both)"),
    "timm": ("timm", ""),
}

# The names of checks of weights begin with it.
WEIGHTS = "weights"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked for.
        found: whether it is there.
        detail: a version, a path, or what is missing.
        remedy: what to do where it is missing; "" where nothing needs to be done.
        required: whether every run needs it.
    """

    name: str
    found: bool
    detail: str
    remedy: str = ""
    required: bool = False


def check_installation(every_dataset: bool = False) -> list[Check]:
    """Returns the checks, in the order in which a user would go through them.

    Args:
        every_dataset: whether benchmarks that are not there get a line each.
    """
    return [*_versions(), *_devices(), *_weights(), *_datasets(every_dataset)]


def verdict(checks: Sequence[Check]) -> str:
    """Returns one line: what this installation is ready for, or what to do first."""
    missing = [check.name for check in checks if check.required and not check.found]
    if missing:
        return f"Not ready: {', '.join(missing)} missing. Follow the lines that begin with ->, then run `u2seg doctor` again."
    devices = "GPUs" if any(check.found and check.name.startswith("gpu") for check in checks) else "the CPU"
    features = "DINO's features" if any(check.found and check.name.startswith(WEIGHTS) for check in checks) else ""
    features = features or "hand-made features (or DINO's, where its weights can be downloaded)"
    return f"Ready for labels, training and prediction on {devices}, with {features}. Next: u2seg run PHOTOS --check"


def _versions() -> list[Check]:
    import detectron2

    checks = [
        Check("u2seg", True, f"{__version__} in {Path(__file__).parents[1]}"),
        Check("python", True, platform.python_version()),
        Check("torch", True, torch.__version__),
        Check("detectron2", True, f"{detectron2.__version__} in {Path(detectron2.__file__).parent}"),
    ]
    return checks + [_package(module, *rest) for module, rest in _PACKAGES.items()]


def _package(module: str, distribution: str, note: str) -> Check:
    try:
        loaded = import_module(module)
    except ImportError as error:
        return Check(module, False, f"not importable: {error}", f"pip install {distribution}{note}", required=True)
    try:
        found = version(distribution)
    except PackageNotFoundError:  # faiss-gpu, a build from source, another packaging of OpenCV
        found = getattr(loaded, "__version__", "version unknown")
    return Check(module, True, found, required=True)


def _devices() -> list[Check]:
    checks = [Check("cpu", True, f"{os.cpu_count()} cores, {torch.get_num_threads()} PyTorch threads")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            checks.append(Check(f"gpu {index}", True, f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    else:
        checks.append(Check("gpu", False, "no CUDA device: everything runs on the CPU"))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    checks.append(Check("disk", free > 2, f"{free:.1f} GiB free in the working directory", "free at least 2 GiB"))
    return checks


def _weights() -> list[Check]:
    cache = Path(get_cache_dir())
    dino = {name: known for name, known in ARCHITECTURES.items() if known.family == "dino"}
    checks = []
    for name, known in dino.items():
        found = next(cache.rglob(known.file_name), None) if cache.is_dir() else None
        if found:
            checks.append(Check(f"{WEIGHTS} {name}", True, str(found)))
    if checks:
        return checks
    url = next(iter(dino.values())).url
    remedy = f"downloaded on first use, such as {url}; without a network set FEATURES.VIT.WEIGHTS to a copy"
    return [Check(WEIGHTS, False, f"none of DINO's {len(dino)} files is in the cache {cache}", remedy)]


def _datasets(every_one: bool) -> list[Check]:
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    checks = []
    for name, description in BENCHMARKS.items():
        metadata = MetadataCatalog.get(name)
        path = Path(metadata.get("panoptic_json") or metadata.get("json_file"))
        made_by = description.get("PREPARED_BY")
        remedy = f"{made_by} --help" if made_by else "put the published files there"
        checks.append(Check(f"dataset {name}", path.is_file(), str(path), remedy))
    found = [check for check in checks if check.found]
    where = (
        f"{root}, $DETECTRON2_DATASETS" if "DETECTRON2_DATASETS" in os.environ else f"{root} in the working directory"
    )
    detail = f"{len(found)} of {len(checks)} benchmark datasets found in {where}"
    hint = "needed for the benchmarks alone; `u2seg doctor --datasets` lists them, datasets/README.md describes them"
    return [Check("datasets", bool(found), detail, hint), *(checks if every_one else found)]
