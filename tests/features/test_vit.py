import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from slow_vit import SlowViT, authors_state_dict, resize_matrix
from u2seg.config import add_u2seg_config
from u2seg.features import build_feature_extractor
from u2seg.features import vit_weights as weights_module
from u2seg.features.vit import TimmViT, resize_position_embedding
from u2seg.features.vit_weights import ARCHITECTURES, Architecture, WeightsError, check_digest, read_state_dict

# name -> how the authors' file is laid out, and the patch size
MODELS = {
    "dino_vits8": ({"family": "dino", "patch_size": 8, "positions": 28**2}, 0.1),
    "dino_vits16": ({"family": "dino", "patch_size": 16, "positions": 14**2}, 0.1),
    "dinov2_vits14": ({"family": "dinov2", "patch_size": 14, "positions": 37**2}, 0.1),
    "dinov3_vits16": ({"family": "dinov3", "patch_size": 16, "positions": 0, "registers": 4}, 0),
    "dinov3_vits16plus": (
        {"family": "dinov3", "patch_size": 16, "positions": 0, "registers": 4, "swiglu": True},
        0,
    ),
}


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory):
    @functools.cache
    def write(arch):
        path = tmp_path_factory.mktemp("weights") / f"{arch}.pth"
        torch.save(authors_state_dict(**MODELS[arch][0]), path)
        return path

    return write


def extractor(arch, path, image_size, block=-1, facet="key"):
    return TimmViT(arch=arch, weights=str(path), image_size=image_size, block=block, facet=facet).eval()


def images(height, width, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_agree(found, expected):
    """Float32 against float64: equal to 2e-5 of the largest value."""
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < 2e-5


@pytest.mark.parametrize("arch", MODELS)
@torch.no_grad()
def test_agrees_with_the_slow_implementation(arch, weight_file):
    layout, offset = MODELS[arch]
    patch_size = layout["patch_size"]
    size = 5 * patch_size, 7 * patch_size  # not square, not the trained size
    batch = images(*size)
    state = torch.load(weight_file(arch), weights_only=True)
    slow = SlowViT(state, layout["family"], patch_size=patch_size, offset=offset)(batch)
    model = extractor(arch, weight_file(arch), size)
    for block in (0, -5, -1):
        for facet in ("key", "query", "value", "token"):
            model.block, model.facet = block % 12, facet
            expected = slow.feature_map(block, facet)
            found = model(batch)
            assert found.shape == (2, 384, 5, 7) == (2, model.num_channels, *model.grid_size)
            assert found.dtype == torch.float32
            assert_agree(found, expected)
    assert_agree(model.embed(batch), slow.cls)


@torch.no_grad()
def test_timms_own_output_at_224_is_unchanged(weight_file, arch="dino_vits16"):
    reference = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    reference.load_state_dict(torch.load(weight_file(arch), weights_only=True))
    batch = images(224, 224, count=1)
    model = extractor(arch, weight_file(arch), (224, 224), facet="token")
    tokens = reference.blocks(reference._pos_embed(reference.patch_embed((batch - model.mean) / model.std)))
    side = 224 // model.patch_size
    torch.testing.assert_close(model(batch).flatten(2).transpose(1, 2), tokens[:, 1:])
    assert model(batch).shape[2:] == (side, side)
    torch.testing.assert_close(model.embed(batch), reference.norm(tokens)[:, 0])
    model.facet = "normalized_token"
    torch.testing.assert_close(model(batch).flatten(2).transpose(1, 2), reference.norm(tokens)[:, 1:])


@torch.no_grad()
def test_registers_of_dinov2(tmp_path):
    # timm keeps the CLS token's position in the token itself; the authors add it.
    layout = {"family": "dinov2", "patch_size": 14, "positions": 37**2, "registers": 4}
    state = authors_state_dict(**layout)
    torch.save(state, tmp_path / "weights.pth")
    batch = images(518, 518, count=1)  # the trained size: the resize with antialiasing is PyTorch's own
    model = extractor("dinov2_vits14_reg", tmp_path / "weights.pth", (518, 518), block=0, facet="token")
    shallow = {k: v for k, v in state.items() if not k.startswith("blocks.") or k.startswith("blocks.0.")}
    slow = SlowViT(shallow, "dinov2", patch_size=14, offset=0.0)(batch)
    assert_agree(model(batch), slow.feature_map(0, "token"))


@torch.no_grad()
def test_images_do_not_depend_on_their_batch(weight_file):
    model = extractor("dino_vits16", weight_file("dino_vits16"), (64, 96))
    batch = images(64, 96, count=3)
    alone = torch.cat([model(image[None]) for image in batch])
    torch.testing.assert_close(model(batch), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("arch", ["dino_vits16", "dinov3_vits16"])
def test_bfloat16_is_close(arch, weight_file):
    batch = images(64, 96)
    exact = extractor(arch, weight_file(arch), (64, 96))
    rough = TimmViT(arch=arch, weights=str(weight_file(arch)), image_size=(64, 96), precision="bfloat16").eval()
    for method in ("forward", "embed"):
        expected, found = getattr(exact, method)(batch), getattr(rough, method)(batch)
        assert found.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99


def test_blocks_behind_the_asked_one_are_not_run(weight_file):
    model = extractor("dino_vits16", weight_file("dino_vits16"), (64, 96), block=3)
    ran = []
    for index, block in enumerate(model.model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        model(images(64, 96))
    assert ran == [0, 1, 2], "block 3 gives its keys without running, those behind it are not needed"


def test_preprocess_and_build_from_config(weight_file):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.FEATURES.NAME = "TimmViT"
    cfg.FEATURES.VIT.ARCH = "dino_vits16"
    cfg.FEATURES.VIT.WEIGHTS = str(weight_file("dino_vits16"))
    cfg.FEATURES.IMAGE_SIZE = (64, 96)
    cfg.FEATURES.DEVICE = "cpu"
    model = build_feature_extractor(cfg)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    image = model.preprocess(np.full((50, 30, 3), 255, np.uint8))
    assert image.shape == (3, 64, 96) and image.min() == 1
    assert model(image[None]).shape == (1, 384, 4, 6)


def test_position_embedding_of_the_trained_size_is_untouched():
    learned = torch.randn(1, 784, 8)
    assert resize_position_embedding(learned, (28, 28)) is learned


def test_position_embedding_is_sampled_by_the_scale_factor():
    # Sample i of a column lies at (i + 0.5) * 28 / 60.1 - 0.5, of a row of 40 at (j + 0.5) * 28 / 40.1 - 0.5.
    learned = torch.randn(28, 28, dtype=torch.float64)
    expected = resize_matrix(60, 28, 28 / 60.1) @ learned @ resize_matrix(40, 28, 28 / 40.1).T
    resized = resize_position_embedding(learned.reshape(1, 784, 1), (60, 40)).reshape(60, 40)
    torch.testing.assert_close(resized, expected)
    by_size = resize_matrix(60, 28, 28 / 60) @ learned @ resize_matrix(40, 28, 28 / 40).T
    assert (resized - by_size).abs().max() > 0.01, "the offset of 0.1 should be felt"


@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_the_offset_never_loses_a_row(patch_size):
    side = {8: 28, 14: 37, 16: 14}[patch_size]
    learned = torch.zeros(1, side * side, 1)
    for rows in range(1, 120):
        assert resize_position_embedding(learned, (rows, 30)).shape == (1, rows * 30, 1)


def test_every_architecture_exists_in_timm():
    for name, architecture in ARCHITECTURES.items():
        assert timm.is_model(architecture.timm_name), name
        if name != "dino_vits8_300ep":  # no digest of it is published
            assert architecture.checksum.partition(":")[0] in ("md5", "sha256")


def test_addresses_are_those_that_timm_knows():
    tags = {"dino": "dino", "dinov2": "lvd142m"}
    for architecture in ARCHITECTURES.values():
        if architecture.url:
            tag = f"{architecture.timm_name}.{tags[architecture.family]}"
            if "_300ep" in architecture.url:  # timm knows the other one alone
                assert "dino_deitsmall8_300ep_pretrain/dino_deitsmall8_300ep_pretrain.pth" in architecture.url
                continue
            assert architecture.url == timm.get_pretrained_cfg(tag).url


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "dino_vitx"}, "Unknown FEATURES.VIT.ARCH 'dino_vitx'; known: dino_vits16"),
        ({"image_size": (480, 479)}, r"multiples of the patch size 16, got \(480, 479\); the nearest is \(480, 480\)"),
        ({"block": 12}, r"FEATURES.VIT.BLOCK must be in -12..11, got 12"),
        ({"precision": "half"}, "FEATURES.VIT.PRECISION must be one of float32, bfloat16, got 'half'"),
        ({"facet": "normalized_token", "block": 3}, "normalized_token is of the last block, FEATURES.VIT.BLOCK is 3"),
        ({"facet": "keys"}, "FEATURES.VIT.FACET must be one of query, key, value, token, normalized_token, got 'keys'"),
    ],
)
def test_bad_settings(change, message, weight_file):
    settings = {"arch": "dino_vits16", "image_size": (64, 64), "block": -1, "facet": "key"}
    with pytest.raises(ValueError, match=message):
        TimmViT(**{**settings, "weights": str(weight_file("dino_vits16")), **change})


def test_bad_image_size(weight_file):
    model = extractor("dino_vits16", weight_file("dino_vits16"), (64, 96))
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 96\), got \(2, 3, 96, 64\)"):
        model(images(96, 64))


def save(path, content):
    torch.save(content, path)
    return path


def test_wrong_names_and_shapes_give_one_message(tmp_path, weight_file):
    state = torch.load(weight_file("dino_vits16"), weights_only=True)
    state["strange"] = state.pop("norm.bias")
    state["cls_token"] = torch.zeros(1, 1, 768)
    path = save(tmp_path / "wrong.pth", state)
    with pytest.raises(WeightsError) as error:
        extractor("dino_vits16", path, (64, 64))
    message = str(error.value)
    for part in (
        f"{path} does not fit dino_vits16",
        "1 missing: norm.bias",
        "1 not expected: strange",
        "1 of another shape: cls_token: expected (1, 1, 384), got (1, 1, 768)",
    ):
        assert part in message


def test_weights_of_another_architecture_are_refused(weight_file):
    with pytest.raises(WeightsError, match="of another shape: .*patch_embed.proj.weight"):
        extractor("dino_vits8", weight_file("dino_vits16"), (64, 64))


def test_a_training_checkpoint_gives_its_teacher(tmp_path, weight_file):
    state = torch.load(weight_file("dino_vits16"), weights_only=True)
    teacher = {f"module.backbone.{key}": value for key, value in state.items()}
    teacher["module.head.mlp.0.weight"] = torch.zeros(3)
    path = save(tmp_path / "checkpoint.pth", {"teacher": teacher, "student": {}, "epoch": 3})
    assert read_state_dict(path).keys() == state.keys()


@torch.no_grad()
def test_timms_own_files_are_read(tmp_path):
    # What timm's hub holds: its own names, safetensors, and for DINOv3 no biases of the projections, which are zero.
    torch.manual_seed(0)
    reference = timm.create_model("vit_small_patch16_dinov3", num_classes=0).eval()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    model = extractor("dinov3_vits16", tmp_path / "model.safetensors", (64, 96), facet="token")
    batch = images(64, 96)
    features = reference.forward_intermediates(
        (batch - model.mean) / model.std, indices=1, norm=False, intermediates_only=True
    )
    torch.testing.assert_close(model(batch), features[0])
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="no checkpoint that can be read safely"):
        read_state_dict(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no checkpoint that can be read safely"),
        (b"hello", "no checkpoint that can be read safely"),
        ({"a": 1}, "dictionary of tensors, got .'int'"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, content, message):
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, content)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


def test_an_old_timm_is_named(monkeypatch):
    unknown = Architecture("vit_of_tomorrow", "dino", 224, "w.pth")
    monkeypatch.setitem(weights_module.ARCHITECTURES, "dino_vits16", unknown)
    with pytest.raises(
        WeightsError, match=f"timm {timm.__version__} does not know vit_of_tomorrow; install a newer one"
    ):
        extractor("dino_vits16", "", (64, 64))


def test_missing_file():
    with pytest.raises(WeightsError, match="'/nowhere/dino.pth', and there is no such file"):
        extractor("dino_vits16", "/nowhere/dino.pth", (64, 64))


def test_dinov3_asks_for_its_file():
    with pytest.raises(WeightsError, match="dinov3_vits16_pretrain_lvd1689m-08c60483.pth has no public address"):
        extractor("dinov3_vits16", "", (64, 64))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine, and an empty cache for Detectron2's PathManager."""
    (tmp_path / "www").mkdir()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "www")
    handler.log_message = None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield tmp_path / "www", f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def published(monkeypatch, url, checksum):
    architecture = Architecture("vit_small_patch16_224", "dino", 224, "w.pth", url, checksum)
    monkeypatch.setitem(weights_module.ARCHITECTURES, "dino_vits16", architecture)


def test_download_is_cached_and_checked(server, monkeypatch, weight_file, tmp_path):
    directory, address = server
    content = weight_file("dino_vits16").read_bytes()
    (directory / "w.pth").write_bytes(content)
    published(monkeypatch, f"{address}/w.pth", "sha256:" + hashlib.sha256(content).hexdigest()[:16])
    extractor("dino_vits16", "", (64, 64))
    (directory / "w.pth").unlink()
    extractor("dino_vits16", "", (64, 64))  # from the cache
    assert (tmp_path / "cache" / "w.pth").read_bytes() == content


def test_a_damaged_download_is_refused(server, monkeypatch, weight_file):
    directory, address = server
    (directory / "w.pth").write_bytes(weight_file("dino_vits16").read_bytes() + b"x")
    published(monkeypatch, f"{address}/w.pth", "md5:cf0f22")
    with pytest.raises(WeightsError, match="damaged or was exchanged: expected md5 cf0f22..., got"):
        extractor("dino_vits16", "", (64, 64))


def test_offline_says_what_to_do(server, monkeypatch):
    _, address = server
    published(monkeypatch, f"{address}/absent.pth", "md5:cf0f22")
    with pytest.raises(WeightsError, match=r"absent.pth could not be downloaded .*404.*set FEATURES.VIT.WEIGHTS"):
        extractor("dino_vits16", "", (64, 64))


def test_digest(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    check_digest(tmp_path / "f", "md5:900150")  # md5("abc") = 900150983cd24fb0...
    check_digest(tmp_path / "f", "sha256:ba7816bf")  # FIPS 180-2, example B.1
    with pytest.raises(WeightsError):
        check_digest(tmp_path / "f", "sha256:ba7816be")
