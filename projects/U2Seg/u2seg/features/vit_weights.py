"""Published weights of vision transformers: where they are, how a file is checked, and how its names become timm's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from u2seg.checkpoint.reading import CheckpointError, read_checkpoint, refuse_non_finite
from u2seg.utils.files import file_digest
from u2seg.utils.hub_files import HubFileError

_META = "https://dl.fbaipublicfiles.com/"


class WeightsError(RuntimeError):
    """Weights that cannot be had, or are not what they should be; the message says which and what to do."""


@dataclass(frozen=True)
class Architecture:
    """A backbone by the name that its authors gave it.

    Attributes:
        timm_name: the model in timm.
        family: "dino", "dinov2" or "dinov3": whose names the weight file uses.
        pretrained_size: side in pixels of the images that the position embedding was trained for.
        file_name: the authors' weight file.
        url: where it can be downloaded; "" where the authors ask for a form to be filled in first.
        checksum: ``"md5:..."`` or ``"sha256:..."``, the beginning of the file's digest; "" where none is published: any file
            of the right names and shapes is then taken.
        position_offset: added to the patch grid's size in the resize of the position embedding; see
            :func:`u2seg.features.vit.resize_position_embedding`.
        position_antialias: whether that resize filters when it makes the grid smaller.
    """

    timm_name: str
    family: str
    pretrained_size: int
    file_name: str
    url: str = ""
    checksum: str = ""
    position_offset: float = 0.1
    position_antialias: bool = False


def _dino(timm_name: str, stem: str, md5: str = "") -> Architecture:
    file_name = f"{stem}_pretrain.pth"
    checksum = f"md5:{md5}" if md5 else ""
    return Architecture(timm_name, "dino", 224, file_name, f"{_META}dino/{stem}_pretrain/{file_name}", checksum)


def _dinov2(timm_name: str, stem: str, sha256: str, registers: bool = False) -> Architecture:
    file_name = f"dinov2_{stem}_{'reg4_' if registers else ''}pretrain.pth"
    # Source: the models' definitions in DINOv2's hub: offset 0.1 without registers; offset 0 and antialiasing with them.
    offset = 0.0 if registers else 0.1
    url = f"{_META}dinov2/dinov2_{stem}/{file_name}"
    return Architecture(timm_name, "dinov2", 518, file_name, url, f"sha256:{sha256}", offset, registers)


def _dinov3(timm_name: str, name: str, sha256: str) -> Architecture:
    # timm's "qkvb" variants keep the biases of the authors' file; the others assume them to be zero.
    return Architecture(
        f"{timm_name}_qkvb", "dinov3", 256, f"dinov3_{name}_pretrain_lvd1689m-{sha256}.pth", checksum=f"sha256:{sha256}"
    )


# Addresses: the authors' repositories (as in timm's default_cfg). Digests: DINO, OpenMetricLearning's model zoo; DINOv2, Refiners'
# conversion scripts; DINOv3, part of the authors' own file names. ViT-S is called "deitsmall" in DINO's addresses.
ARCHITECTURES: dict[str, Architecture] = {
    "dino_vits16": _dino("vit_small_patch16_224", "dino_deitsmall16", "cf0f22"),
    "dino_vits8": _dino("vit_small_patch8_224", "dino_deitsmall8", "230cd5"),
    # Trained for 300 epochs: what MaskCut and CuVLER call "small, patch 8". No digest of it is published.
    "dino_vits8_300ep": _dino("vit_small_patch8_224", "dino_deitsmall8_300ep"),
    "dino_vitb16": _dino("vit_base_patch16_224", "dino_vitbase16", "552daf"),
    "dino_vitb8": _dino("vit_base_patch8_224", "dino_vitbase8", "556550"),
    "dinov2_vits14": _dinov2("vit_small_patch14_dinov2", "vits14", "b938bf1bc15cd2ec"),
    "dinov2_vitb14": _dinov2("vit_base_patch14_dinov2", "vitb14", "0b8b82f85de91b42"),
    "dinov2_vitl14": _dinov2("vit_large_patch14_dinov2", "vitl14", "d5383ea8f4877b24"),
    "dinov2_vitg14": _dinov2("vit_giant_patch14_dinov2", "vitg14", "baf8467e50af2775"),
    "dinov2_vits14_reg": _dinov2("vit_small_patch14_reg4_dinov2", "vits14", "f433177089a68182", registers=True),
    "dinov2_vitb14_reg": _dinov2("vit_base_patch14_reg4_dinov2", "vitb14", "73182a088cf94833", registers=True),
    "dinov2_vitl14_reg": _dinov2("vit_large_patch14_reg4_dinov2", "vitl14", "36e4deffbaef061a", registers=True),
    "dinov2_vitg14_reg": _dinov2("vit_giant_patch14_reg4_dinov2", "vitg14", "746ecb8c6301c645", registers=True),
    "dinov3_vits16": _dinov3("vit_small_patch16_dinov3", "vits16", "08c60483"),
    "dinov3_vits16plus": _dinov3("vit_small_plus_patch16_dinov3", "vits16plus", "4057cbaa"),
    "dinov3_vitb16": _dinov3("vit_base_patch16_dinov3", "vitb16", "73cec8be"),
    "dinov3_vitl16": _dinov3("vit_large_patch16_dinov3", "vitl16", "8aa4cbdd"),
    "dinov3_vith16plus": _dinov3("vit_huge_plus_patch16_dinov3", "vith16plus", "7c1da9a5"),
}


def get_architecture(name: str) -> Architecture:
    """Returns the architecture of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"Unknown FEATURES.VIT.ARCH {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def find_weights(architecture: Architecture, weights: str) -> Path:
    """Returns the path of a weight file on this machine: the user's own, or the authors', downloaded once and checked.

    Args:
        architecture: whose weights.
        weights: ``FEATURES.VIT.WEIGHTS``: a file, or anything Detectron2's ``PathManager`` reads, such as timm's ``hf-hub:org/name``
            or ``hf://org/name/file``; "" for the authors' file.

    Raises:
        WeightsError: no such file, no network, no public address, or another digest than the published one.
    """
    from detectron2.utils.file_io import PathManager

    if weights:
        try:
            path = Path(PathManager.get_local_path(weights))
        except HubFileError as error:
            raise WeightsError(f"FEATURES.VIT.WEIGHTS: {error}") from error
        if not path.is_file():
            raise WeightsError(f"FEATURES.VIT.WEIGHTS is {weights!r}, and there is no such file")
        return path
    if not architecture.url:
        raise WeightsError(
            f"{architecture.file_name} has no public address: ask its authors for it "
            "(https://github.com/facebookresearch/dinov3) and set FEATURES.VIT.WEIGHTS to the file"
        )
    try:
        path = Path(PathManager.get_local_path(architecture.url))
    except OSError as error:
        raise WeightsError(
            f"{architecture.url} could not be downloaded ({error}). On a machine without a network, copy the file from "
            "one that has it and set FEATURES.VIT.WEIGHTS to its path"
        ) from error
    if architecture.checksum:
        check_digest(path, architecture.checksum)
    return path


def check_digest(path: Path, checksum: str) -> None:
    """Compares a file with the beginning of a published digest.

    Args:
        path: the file.
        checksum: ``"md5:"`` or ``"sha256:"`` and hexadecimal digits.

    Raises:
        WeightsError: they differ.
    """
    algorithm, _, published = checksum.partition(":")
    found = file_digest(path, algorithm)
    if not found.startswith(published):
        raise WeightsError(
            f"{path} is damaged or was exchanged: expected {algorithm} {published}..., got {found[: len(published)]}... "
            "Delete it and run again"
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a weight file: a bare state dict, or a DINO training checkpoint's teacher without its head.

    Args:
        path: PyTorch file, or ``.safetensors`` as timm's model hub has them.

    Raises:
        WeightsError: the file is no PyTorch file, or holds something other than tensors.
    """
    try:
        content = read_checkpoint(path)
        if isinstance(content.get("teacher"), Mapping):
            content = content["teacher"]
        # DINOv3's files fill a mask that nobody reads with NaN.
        refuse_non_finite({name: value for name, value in content.items() if not name.endswith(".bias_mask")}, path)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    if not content or not all(isinstance(v, Tensor) for v in content.values()):
        kinds = sorted({type(v).__name__ for v in content.values()})
        raise WeightsError(f"{path} should hold a dictionary of tensors, got {kinds}")
    names = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in content.items()}
    return {key: value for key, value in names.items() if not key.startswith("head.")}


def to_timm_names(state_dict: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Returns the authors' state dict under timm's names; one that has these names already stays as it is.

    Args:
        state_dict: as the authors' file holds it, or timm's.
        family: "dino" (the names are timm's already), "dinov2" or "dinov3".
    """
    if family == "dinov2":
        return _from_dinov2(state_dict)
    if family == "dinov3":
        return _from_dinov3(state_dict)
    return dict(state_dict)


def _from_dinov2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state_dict.items():
        if key != "mask_token":  # of the training only
            renamed[key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = value
    if "register_tokens" in renamed and {"cls_token", "pos_embed"} <= renamed.keys():
        # timm's model with registers has positions for patches only; the CLS token's is added to it beforehand.
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return renamed


_DINOV3_NAMES = {
    "storage_tokens": "reg_token",
    ".ls1.gamma": ".gamma_1",
    ".ls2.gamma": ".gamma_2",
    ".mlp.w1.": ".mlp.fc1_g.",
    ".mlp.w2.": ".mlp.fc1_x.",
    ".mlp.w3.": ".mlp.fc2.",
}


def _from_dinov3(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "reg_token" in state_dict:
        return _with_zero_biases(state_dict)
    renamed = {}
    for key, value in state_dict.items():
        # Of the training only, or computed by timm itself; the keys' bias is masked to zero in the authors' model.
        if key == "mask_token" or "rope" in key or key.endswith(".bias_mask") or key.startswith("local_cls_norm"):
            continue
        for theirs, ours in _DINOV3_NAMES.items():
            key = key.replace(theirs, ours)
        if key.endswith(".attn.qkv.bias"):
            query, _, val = value.chunk(3)
            renamed[key.replace("qkv.bias", "q_bias")] = query
            renamed[key.replace("qkv.bias", "v_bias")] = val
        else:
            renamed[key] = value
    return renamed


def _with_zero_biases(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns timm's DINOv3 weights with the biases that timm leaves out because they are zero."""
    completed = dict(state_dict)
    for key, weight in state_dict.items():
        if key.endswith(".attn.qkv.weight"):
            for bias in ("q_bias", "v_bias"):
                completed.setdefault(key.replace("qkv.weight", bias), weight.new_zeros(len(weight) // 3))
    return completed


def check_state_dict(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Checks that a state dict has exactly the expected names and shapes.

    Raises:
        WeightsError: it has not; one message names the first differences of each kind.
    """
    wrong = [
        f"{key}: expected {tuple(expected[key].shape)}, got {tuple(found[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    problems = {
        "missing": [key for key in expected if key not in found],
        "not expected": [key for key in found if key not in expected],
        "of another shape": wrong,
    }
    lines = [
        f"  {len(items)} {kind}: {', '.join(items[:4])}{', ...' if len(items) > 4 else ''}"
        for kind, items in problems.items()
        if items
    ]
    if lines:
        raise WeightsError(f"{source}:\n" + "\n".join(lines))
