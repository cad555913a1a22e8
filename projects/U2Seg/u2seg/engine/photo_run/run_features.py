"""Which features a run makes its labels from: DINO's where its weights can be had, else the hand-made descriptor; and what that means."""

from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, build_opener

from detectron2.config import CfgNode
from iopath.common.file_io import get_cache_dir

from u2seg.features.vit_weights import ARCHITECTURES, WeightsError, read_state_dict
from u2seg.utils.files import did_you_mean

# Those that a run looks for, the better ones first; ViT-B/8 takes several times as long, too long for a CPU. Size of the download.
_FOR_GPU = {"dino_vitb8": 343, "dino_vits8": 87, "dino_vitb16": 343, "dino_vits16": 87}  # MB
_FOR_CPU = {"dino_vits8": 87, "dino_vits16": 87, "dino_vitb16": 343, "dino_vitb8": 343}
_CONNECT_SECONDS = 3.0
_GPU_SIDE, _CPU_SIDE = 480, 320  # pixels of the square that a photo is resized to; MaskCut uses 480

_OFFLINE_MEANING = (
    "Hand-made features know color and texture, not objects: a mask is a region of one look, and a cluster groups such "
    "regions"
)
_DINO_MEANING = (
    "self-supervised on ImageNet without labels: masks tend to follow objects, and clusters kinds of objects"
)


@dataclass(frozen=True)
class FeatureChoice:
    """Which features, where from, and what to expect.

    Attributes:
        settings: configuration key -> value.
        description: what was chosen and why, a line or two.
        better_url: of weights that would give better features but cannot be had from here; "" for none.
        better_megabytes: size of that file, MB.
        network: whether a network computes them.
        asked: the user's own choice of features, by which a later call of the run knows whether this one still holds.
    """

    description: str
    settings: dict[str, object] = field(default_factory=dict)
    network: bool = False
    better_url: str = ""
    better_megabytes: int = 0
    asked: dict[str, str] = field(default_factory=dict)


def choose_features(cfg: CfgNode, *, is_given: bool, on_gpu: bool) -> FeatureChoice:
    """Returns the features of a run.

    Args:
        cfg: the configuration; ``FEATURES.VIT.WEIGHTS`` names a local file of the user's.
        is_given: whether the user chose ``FEATURES.NAME``, which then stays.
        on_gpu: whether they are computed on a GPU.

    Raises:
        WeightsError: the user's file is missing or of a kind that cannot be told from its tensors.
    """
    if is_given:
        return FeatureChoice(f"{cfg.FEATURES.NAME}, as you asked", {}, cfg.FEATURES.NAME != "HandmadeDescriptor")
    if cfg.FEATURES.VIT.WEIGHTS:
        path = Path(cfg.FEATURES.VIT.WEIGHTS)
        if not path.is_file():
            raise WeightsError(f"FEATURES.VIT.WEIGHTS is {str(path)!r}, and there is no such file{did_you_mean(path)}")
        arch = architecture_of(path)
        return _dino(arch, on_gpu, f"{arch}, weights from {path}; if these are DINO's: {_DINO_MEANING}")
    wanted = _FOR_GPU if on_gpu else _FOR_CPU
    for arch in wanted:
        path = cached_weights(arch)
        if path.is_file():
            return _dino(arch, on_gpu, f"{arch}, weights in the cache ({path}); {_DINO_MEANING}")
    arch, size = next(iter(wanted.items()))
    url = ARCHITECTURES[arch].url
    if is_server_reachable(url):
        return _dino(arch, on_gpu, f"{arch}; {size} MB will be downloaded once from {url}; {_DINO_MEANING}")
    return FeatureChoice(
        f"HandmadeDescriptor, without weights. DINO's weights are not in the cache, and {urlparse(url).hostname} cannot be reached. "
        f"{_OFFLINE_MEANING}",
        better_url=url,
        better_megabytes=size,
    )


def _dino(arch: str, on_gpu: bool, description: str) -> FeatureChoice:
    side = _GPU_SIDE if on_gpu else _CPU_SIDE
    if arch.endswith("14"):
        side -= side % 14
    settings = {
        "FEATURES.NAME": "TimmViT",
        "FEATURES.VIT.ARCH": arch,
        "FEATURES.IMAGE_SIZE": (side, side),
        "MASKS.GENERATOR": "MaskCut",
        "MASKS.MIN_AREA": 0.01,
        "MASKS.MAX_AREA": 1.0,
        "MASKS.MAX_CORNERS": 3,
        "MASKS.REFINEMENT": "dense_crf",
        "MASKS.CRF.BILATERAL_SXY": 50.0 * side / 480,
        "CLUSTERS.NORMALIZE": True,
        "SEMANTICS.PROVIDER": "PatchKMeans",
    }
    return FeatureChoice(description, settings, network=True)


def cached_weights(arch: str) -> Path:
    """Returns where Detectron2's ``PathManager`` keeps an architecture's published weights; nothing need be there."""
    path = urlparse(ARCHITECTURES[arch].url).path.lstrip("/")
    return Path(get_cache_dir()) / path


def architecture_of(path: Path) -> str:
    """Returns the architecture, a key of ``ARCHITECTURES``, whose tensors a file of ViT weights holds.

    Raises:
        WeightsError: none that can be told from the shapes; the message says which key to set.
    """
    weights = read_state_dict(path)
    projection = weights.get("patch_embed.proj.weight")
    shape = tuple(projection.shape) if projection is not None else ()
    letter = {384: "s", 768: "b"}.get(shape[0]) if len(shape) == 4 else None
    arch = f"dino_vit{letter}{shape[2]}" if letter and shape[2] in (8, 16) else ""
    if arch not in ARCHITECTURES or any("storage_tokens" in key for key in weights):
        raise WeightsError(
            f"{path} is no DINO ViT-S or ViT-B with patches of 8 or 16 pixels (its patch projection has shape {shape}); for another "
            "network set FEATURES.NAME TimmViT and FEATURES.VIT.ARCH as well"
        )
    return arch


def is_server_reachable(url: str) -> bool:
    """Returns whether a file can be downloaded, by a proxy where there is one, as its server says within three seconds."""
    try:
        # A new opener: the shared one of urllib keeps the proxies that were set at its first use.
        with build_opener().open(Request(url, method="HEAD"), timeout=_CONNECT_SECONDS):
            return True
    except (OSError, HTTPException):
        return False
