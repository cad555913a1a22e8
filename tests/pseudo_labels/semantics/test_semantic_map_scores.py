"""Semantic maps scored alone: a stage's maps from files, and COCO-Stuff-27 by the commands of the documentation."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.data.formats.coco_writer import PanopticWriter
from u2seg.data.formats.semantic_shards import write_semantic_shard
from u2seg.evaluation import score_semantic_maps
from u2seg.evaluation.linear_probe import VOID, LabeledImages, score_linear_probe
from u2seg.pseudo_labels.semantics.learned.cluster_probe import ClusterProbe
from u2seg.pseudo_labels.semantics.learned.code_heads import CodeHead
from u2seg.pseudo_labels.semantics.learned.semantic_head import SemanticHead, save_semantic_head
from u2seg.utils.files import read_json
from u2seg.utils.image_io import ImageReadError
from u2seg.utils.manifest import close_stage, open_stage


@pytest.fixture
def ground_truth(tmp_path):
    """Two images, 4 x 6: upper half of class 1 and lower of class 2, and class 2 alone; one pixel void."""
    writer = PanopticWriter(tmp_path / "gt", "val", [{"id": i, "name": f"c{i}", "isthing": 0} for i in (1, 2)])
    first = np.full((4, 6), 2, np.int32)
    first[:2] = 1
    second = np.full((4, 6), 2, np.int32)
    second[0, 0] = 0
    for name, ids in (("a", first), ("b", second)):
        present = [{"id": int(i), "category_id": int(i), "iscrowd": 0} for i in np.unique(ids) if i]
        writer.add(f"{name}.png", ids, present)
    return writer.close(), tmp_path / "gt/panoptic_val"


def stage(directory, maps):
    open_stage(directory, "semantics", {"num_clusters": 3})
    write_semantic_shard(directory / "shard-000000.parquet", maps)
    close_stage(directory, {"images": len(maps)})
    return directory


def test_maps_are_matched_once_and_unknown_pixels_are_wrong(ground_truth, tmp_path):
    a, b = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    a[:2] = 2  # cluster 2 is class 1, cluster 0 is class 2
    b[1, :3] = 255
    maps = stage(tmp_path / "s", {"a.jpg": a, "b.jpg": b})
    score_semantic_maps(*ground_truth, maps, tmp_path / "out")
    scores = read_json(tmp_path / "out/metrics.json")["sem_seg"]["stego"]
    # Of class 2's 35 pixels that are not void 32 are found.
    assert scores["pACC"] == pytest.approx(100 * 44 / 47) and scores["mIoU"] == pytest.approx(50 * (1 + 32 / 35))


def test_a_missing_map_or_one_of_another_size_is_named(ground_truth, tmp_path):
    whole = np.zeros((4, 6), np.uint8)
    with pytest.raises(ValueError, match=r"no map for 1 of the 2 images of .*, for example \['b'\]"):
        score_semantic_maps(*ground_truth, stage(tmp_path / "s", {"a.jpg": whole}))
    with pytest.raises(ValueError, match=r"the map of b in .*size \(4, 6\), got \(6, 4\)"):
        score_semantic_maps(*ground_truth, stage(tmp_path / "t", {"a.jpg": whole, "b.jpg": whole.T.copy()}))
    open_stage(tmp_path / "u", "semantics", {"num_clusters": 3})
    with pytest.raises(FileNotFoundError, match="no finished semantic stage"):
        score_semantic_maps(*ground_truth, tmp_path / "u")


def test_images_of_one_name_are_refused_on_either_side(ground_truth, tmp_path):
    gt_json, gt_root = ground_truth
    whole = np.zeros((4, 6), np.uint8)
    maps = stage(tmp_path / "s", {"x/a.jpg": whole, "b.jpg": whole, "y/a.jpg": whole})
    with pytest.raises(ValueError, match=r"s has several images named a; .*a name of its own"):
        score_semantic_maps(gt_json, gt_root, maps)
    # Names that the ground truth does not ask for may repeat.
    names = ("a.jpg", "b.jpg", "x/c.jpg", "y/c.jpg")
    score_semantic_maps(gt_json, gt_root, stage(tmp_path / "t", dict.fromkeys(names, whole)))
    content = read_json(gt_json)
    content["annotations"][1]["file_name"] = "other/a.png"
    gt_json.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"panoptic_val\.json has several images named a; "):
        score_semantic_maps(gt_json, gt_root, maps)


def test_cocostuff27_from_its_files_to_its_score(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for directory in ("val2017", "stuffthingmaps/val2017"):
        (tmp_path / directory).mkdir(parents=True)
    for index in range(4):
        image, ids = np.full((340, 400, 3), 40, np.uint8), np.full((340, 400), 156, np.uint8)  # sky-other
        image[170:], ids[170:] = (30, 200, 30), 123  # grass
        image += rng.integers(0, 9, image.shape).astype(np.uint8)
        ids[:5] = 255
        Image.fromarray(image).save(tmp_path / f"val2017/{index}.jpg")
        Image.fromarray(ids).save(tmp_path / f"stuffthingmaps/val2017/{index}.png")
    data, config = tmp_path / "cocostuff27", tmp_path / "my.yaml"
    prepare = f"prepare cocostuff27 --coco {tmp_path} --pixelmaps {tmp_path}/stuffthingmaps/val2017 --output {data}"
    assert main(prepare.split()) == 0
    test_set = {
        "FORMAT": "evaluation_only",
        "IMAGES": str(data / "val"),
        "PANOPTIC_JSON": str(data / "annotations/panoptic_val.json"),
        "PANOPTIC_ROOT": str(data / "panoptic_val"),
    }
    config.write_text(
        json.dumps(
            {
                "_BASE_": "semantics/stego_cocostuff27_vits8.yaml",
                "FEATURES": {"NAME": "HandmadeDescriptor", "HANDMADE": {"PATCH_SIZE": 16}, "DEVICE": "cpu"},
                "MASKS": {"NUM_WORKERS": 0},
                "SEMANTICS": {
                    "LEARNED": {
                        "TRAIN_SIZE": [64, 64],
                        "MAP_SIZE": [64, 64],
                        "BATCH_SIZE": 4,
                        "CRF": {"ENABLED": False},
                    },
                    "STEGO": {"DIM": 8, "MAX_ITER": 10},
                },
                "DATASETS": {"TEST": ["tiny27"], "BY_PATH": {"tiny27": test_set}},
                "MODEL": {"DEVICE": "cpu"},
                "DATALOADER": {"NUM_WORKERS": 0},
                "OUTPUT_DIR": str(tmp_path / "scores"),
            }
        )
    )
    labels = f"labels {data}/val --config-file {config} --stages masks,semantics --output {tmp_path}/labels"
    assert main(labels.split()) == 0
    weights = tmp_path / "labels/semantics/model_final.pth"
    assert main(f"train --config-file {config} --eval-only MODEL.WEIGHTS {weights}".split()) == 0
    trained = read_json(tmp_path / "scores/inference/tiny27/metrics.json")["sem_seg"]["stego"]
    files = f"--gt-json {data}/annotations/panoptic_val.json --gt-root {data}/panoptic_val --output {tmp_path}/maps"
    assert main(f"score semantics {tmp_path}/labels/semantics {files}".split()) == 0
    assert "stego" in capsys.readouterr().out
    # The model and the stage's maps are the same thing, scored by two ways.
    scored = read_json(tmp_path / "maps/metrics.json")["sem_seg"]["stego"]
    assert scored == {name: trained[name] for name in scored} and {"mIoU", "pACC"} <= scored.keys()
    assert scored["pACC"] > 40

    both = f"--train-images {data}/val --images {data}/val"
    for role in ("train", "gt"):
        both += f" --{role}-json {data}/annotations/panoptic_val.json --{role}-root {data}/panoptic_val"
    assert main(f"score linear-probe {weights} --config-file {config} {both} --iterations 1".split()) == 0
    heading, values = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "4 images, linear probe trained on the ground truth of" in heading and "mIoU" in values


def test_a_linear_probe_learns_from_ground_truth_what_clusters_do_not_tell(tmp_path):
    writer = PanopticWriter(tmp_path, "val", [{"id": i, "name": f"c{i}", "isthing": 0} for i in (1, 2)])
    ids = np.full((40, 48), 2, np.int32)
    ids[:20] = 1
    image = np.where(ids[:, :, None] == 1, (200, 30, 30), (30, 30, 200)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.fromarray(image).save(tmp_path / f"images/{name}.png")
        writer.add(f"{name}.png", ids, [{"id": i, "category_id": i, "iscrowd": 0} for i in (1, 2)])
    labeled = LabeledImages(tmp_path / "images", writer.close(), tmp_path / "panoptic_val")
    opts = "FEATURES.IMAGE_SIZE (32,32) FEATURES.DEVICE cpu SEMANTICS.LEARNED.MAP_SIZE (32,32) SEMANTICS.PROVIDER STEGO"
    cfg = setup_cfg("quick_schedules/scenes.yaml", [*opts.split(), "SEMANTICS.NUM_CLUSTERS", "3"])
    torch.manual_seed(0)
    head = SemanticHead(CodeHead(8, 8, torch.nn.Identity()), ClusterProbe(3, 8, 2.0), torch.zeros(8))
    save_semantic_head(tmp_path / "head.pth", head.state_dict())
    options = {"iterations": 40, "batch_size": 2, "base_lr": 0.05}
    scores = score_linear_probe(cfg, tmp_path / "head.pth", labeled, labeled, **options)
    assert scores["mIoU"] > 80
    assert score_linear_probe(cfg, tmp_path / "head.pth", labeled, labeled, **options) == scores


def test_a_linear_probe_takes_pairs_by_name_and_equal_classes(ground_truth, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("b.png", "a.png", "unlabeled.png"):
        Image.fromarray(np.full((4, 6, 3), ord(name[0]), np.uint8)).save(images / name)
    labeled = LabeledImages(images, *ground_truth)
    assert len(labeled) == 2 and labeled.class_names == ("c1", "c2")
    image, classes = labeled.read(1)
    assert image[0, 0, 0] == ord("b") and classes[0, 0] == VOID and (classes.ravel()[1:] == 1).all()
    other = LabeledImages(images, *ground_truth)
    other.class_names = ("sky", "grass")
    with pytest.raises(ValueError, match=r"classes that are scored, sky, grass, \.\.\., got c1, c2"):
        score_linear_probe(setup_cfg("quick_schedules/scenes.yaml"), "head.pth", labeled, other)
    Image.fromarray(np.zeros((4, 7, 3), np.uint8)).save(images / "b.png")
    with pytest.raises(
        ImageReadError, match=r"b\.png has 4 x 7 pixels \(height x width\), its ground truth in .* 4 x 6"
    ):
        labeled.read(1)
    for name in ("a.jpg", "unlabeled.jpg"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(images / name)
    with pytest.raises(ValueError, match=r"images has several images named a; .*a name of its own"):
        LabeledImages(images, *ground_truth)
    (images / "a.jpg").unlink()
    (images / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 are not there, for example \['a'\]"):
        LabeledImages(images, *ground_truth)
