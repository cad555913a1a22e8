"""The evaluator on outputs in Panoptic-FPN's form, against files in COCO's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation.testing import print_csv_format, verify_results
from detectron2.structures import Boxes, Instances
from u2seg.config import add_u2seg_config
from u2seg.evaluation import (
    EVALUATOR_REGISTRY,
    ScoreSettings,
    evaluate_tables,
    format_table,
    load_tables,
    score_saved_tables,
)
from u2seg.evaluation.evaluator import PanopticEvaluator, weights_in_memory, weights_of_file
from u2seg.evaluation.scoring import detectron2_results
from u2seg.evaluation.tables.ground_truth import PanopticGroundTruth
from u2seg.evaluation.tables.image_tables import regions_of_map

K, S = 5, 4  # more thing and stuff clusters than the two categories of each kind


@pytest.fixture
def scene(tmp_path, write_coco_panoptic):
    """A registered dataset of six images (48, 64); yields (name, ground truth, config)."""
    root = write_coco_panoptic(tmp_path / "data", "val")
    name = f"scores_{tmp_path.name}"
    annotations = root / "annotations"
    gt = PanopticGroundTruth(annotations / "panoptic_val.json", root / "panoptic_val")
    MetadataCatalog.get(name).set(
        panoptic_json=str(annotations / "panoptic_val.json"),
        panoptic_root=str(root / "panoptic_val"),
        json_file=str(annotations / "instances_val.json"),
        label_space=gt.space,
        evaluator_type="u2seg_panoptic",
    )
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = S + 1
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.MODEL.WEIGHTS = ""
    yield name, gt, cfg
    MetadataCatalog.pop(name)


def perfect_output(gt, image_id, thing_cluster=(3, 1), stuff_cluster=(2, 0)):
    """What a model would give that finds everything and numbers categories by the given clusters."""
    segment_map, segments = gt.read(image_id)
    num_things = gt.space.num_things
    things = [s for s in segments if s.label < num_things]
    regions = regions_of_map(segment_map, things)
    x, y, w, h = regions.boxes_xywh.T.reshape(4, -1)
    instances = Instances(segment_map.shape)
    instances.pred_boxes = Boxes(torch.tensor(np.stack([x, y, x + w, y + h], 1), dtype=torch.float32))
    instances.scores = torch.linspace(0.9, 0.8, len(regions.labels))
    instances.pred_classes = torch.tensor([thing_cluster[label] for label in regions.labels], dtype=torch.int64)
    instances.pred_masks = torch.tensor(regions.masks)
    head = torch.zeros(S + 1, *segment_map.shape)
    head[0] = 0.5
    infos = []
    for segment in segments:
        if segment.label < num_things:
            infos.append({"id": segment.id, "isthing": True, "category_id": thing_cluster[segment.label], "score": 0.9})
        else:
            cluster = stuff_cluster[segment.label - num_things]
            head[cluster + 1, torch.tensor(segment_map == segment.id)] = 1.0
            infos.append({"id": segment.id, "isthing": False, "category_id": cluster + 1})
    return {"panoptic_seg": (torch.tensor(segment_map), infos), "instances": instances, "sem_seg": head}


def evaluated(name, cfg, outputs, weights=None):
    evaluator = EVALUATOR_REGISTRY.get("u2seg_panoptic")(name, cfg, None)
    if weights is not None:
        evaluator.weights = weights_of_file(weights)
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


def test_perfect_output_scores_100_under_every_protocol(scene, tmp_path, capsys):
    name, gt, cfg = scene
    results = evaluated(name, cfg, {i: perfect_output(gt, i) for i in gt.annotations})
    for suffix in ("", "/u2seg_paper", "/cups"):  # the first protocol, hungarian, has the task's own key
        assert results[f"panoptic_seg{suffix}"]["PQ"] == 100
        assert results[f"panoptic_seg{suffix}"]["unmatched_segments"] == 0
        assert results[f"sem_seg{suffix}"]["mIoU"] == 100
        assert results[f"bbox{suffix}"]["AP"] == pytest.approx(100)
        for metric in ("AP", "AR100"):
            assert results[f"segm{suffix}"][metric] == pytest.approx(100)
    assert results["bbox/class_agnostic"]["AR100"] == pytest.approx(100)

    directory = tmp_path / "out" / "inference" / name
    written = json.loads((directory / "metrics.json").read_text())
    record = written.pop("record")
    assert record == {
        "dataset": name,
        "images": 6,
        "dataset_images": 6,
        "complete": True,
        "fitted_on": f"{name} (the scored images themselves)",
        "checkpoint": "",
    }
    header, first = (directory / "metrics.csv").read_text().splitlines()[:2]
    assert header == "dataset,images,dataset_images,fitted_on,checkpoint,task,protocol,metric,value"
    assert first.startswith(f"{name},6,6,{name} (the scored images themselves),,panoptic_seg,hungarian,PQ,100")
    assert (
        set(written) == {"panoptic_seg", "bbox", "segm", "sem_seg"}
        and detectron2_results(written, "hungarian") == results
    )
    assert all(0 <= v <= 100 for task in written.values() for row in task.values() for v in row.values())
    assert json.loads((directory / "provenance.json").read_text())["protocols"]["hungarian"]["clusters_in_use"] == 4
    assert json.loads((directory / "label_map_hungarian.json").read_text())["thing_clusters"] == [-1, 1, -1, 0, -1]
    assert "hungarian" in format_table(written)


def test_fewer_images_than_the_dataset_has_are_not_called_its_score(scene, tmp_path, caplog):
    name, gt, cfg = scene
    with caplog.at_level("WARNING"):
        results = evaluated(name, cfg, {i: perfect_output(gt, i) for i in (1, 2)})
    assert f"Only 2 of the 6 images of {name} were scored: what follows is NOT the score of {name}" in caplog.text
    assert results and all(task.startswith("partial/") for task in results)
    assert results["partial/panoptic_seg"]["PQ"] == 100
    directory = tmp_path / "out" / "inference" / name
    for file in ("metrics.json", "provenance.json"):
        record = json.loads((directory / file).read_text())
        record = record.get("record", record)
        assert (record["images"], record["dataset_images"], record["complete"]) == (2, 6, False)
    text = score_saved_tables(directory / "tables.npz", protocols=("cups",), output=tmp_path / "again")
    assert f"this is NOT the score of {name}" in text
    assert json.loads((tmp_path / "again/metrics.json").read_text())["record"]["complete"] is False


def test_tables_are_joined_as_they_come_and_score_the_same(scene, monkeypatch):
    name, gt, cfg = scene
    outputs = {i: perfect_output(gt, i, thing_cluster=(3, 3)) for i in gt.annotations}
    expected = evaluated(name, cfg, outputs)
    monkeypatch.setattr("u2seg.evaluation.evaluator.JOIN_EVERY", 2)
    evaluator = PanopticEvaluator(cfg, name)
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    assert not evaluator._latest and len(evaluator._parts) == 3  # six images, two in each part
    assert evaluator.evaluate() == expected


def test_the_record_names_the_scored_weights_and_no_other_checkpoint(scene, tmp_path):
    name, gt, cfg = scene
    (tmp_path / "out").mkdir()
    weights = tmp_path / "out/model_0000999.pth"
    weights.write_bytes(b"abc")
    (tmp_path / "out/last_checkpoint").write_text("model_final.pth")
    (tmp_path / "out/model_final.pth").write_bytes(b"")
    evaluated(name, cfg, {1: perfect_output(gt, 1)}, weights)
    record = json.loads((tmp_path / "out/inference" / name / "provenance.json").read_text())
    assert record["weights"] == str(weights)
    assert record["weights_sha256"].startswith("ba7816bf")  # of "abc": FIPS 180-2, appendix B
    assert "model_final" not in json.dumps(record)
    metrics = json.loads((tmp_path / "out/inference" / name / "metrics.json").read_text())
    assert metrics["record"]["checkpoint"] == str(weights)
    label_map = json.loads((tmp_path / "out/inference" / name / "label_map_cups.json").read_text())
    assert label_map["provenance"]["weights_sha256"].startswith("ba7816bf")
    assert label_map["provenance"]["protocol"] == "cups" and label_map["provenance"]["thing_clusters"] == K


def test_detectron2s_own_printing_and_expected_results_work(scene):
    name, gt, cfg = scene
    results = evaluated(name, cfg, {i: perfect_output(gt, i) for i in gt.annotations})
    print_csv_format(results)
    cfg.TEST.EXPECTED_RESULTS = [["panoptic_seg", "PQ", 100.0, 0.1], ["bbox/cups", "AP", 100.0, 0.1]]
    assert verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["panoptic_seg/cups", "PQ", 90.0, 0.1]]
    with pytest.raises(SystemExit):
        verify_results(cfg, results)


def test_an_instance_only_model_and_ground_truth_are_scored(scene):
    name, gt, cfg = scene
    metadata = MetadataCatalog.get(name)
    cfg.TEST.PROTOCOLS = ("hungarian",)
    evaluator = PanopticEvaluator(name, None, num_things=K, num_stuff=S, settings=ScoreSettings(("hungarian",)))
    for image_id in gt.annotations:
        evaluator.process([{"image_id": image_id}], [{"instances": perfect_output(gt, image_id)["instances"]}])
    results = evaluator.evaluate()
    assert set(results) == {"bbox", "segm", "bbox/class_agnostic", "segm/class_agnostic"}
    assert results["segm"]["AP"] == pytest.approx(100)
    assert metadata.json_file


def test_tables_saved_by_the_evaluator_score_the_same(scene, tmp_path):
    name, gt, cfg = scene
    outputs = {i: perfect_output(gt, i, thing_cluster=(3, 3)) for i in gt.annotations}
    results = evaluated(name, cfg, outputs)
    tables = load_tables(tmp_path / "out" / "inference" / name / "tables.npz")
    assert detectron2_results(evaluate_tables(tables, ScoreSettings.of_config(cfg)).results, "hungarian") == results
    assert results["panoptic_seg"]["PQ_th"] < 60  # one cluster for two categories


def test_cluster_ids_beyond_the_heads_are_refused(scene):
    name, gt, cfg = scene
    output = perfect_output(gt, 1, thing_cluster=(K, 0))
    with pytest.raises(ValueError, match=r"thing ids must lie in 0\.\.4, the model gave 5"):
        evaluated(name, cfg, {1: output})


def test_a_dataset_without_ground_truth_is_refused(scene):
    name, _, cfg = scene
    MetadataCatalog.get("scores_nothing").set(evaluator_type="u2seg_panoptic")
    with pytest.raises(ValueError, match="no ground truth to score against: its metadata needs panoptic_json"):
        evaluated("scores_nothing", cfg, {})


def test_an_argument_beside_the_configuration_goes_before_it(scene, tmp_path):
    name, gt, cfg = scene
    protocols = {}
    for changes in ({}, {"settings": ScoreSettings(("hungarian",)), "output_dir": tmp_path / "elsewhere"}):
        evaluator = PanopticEvaluator(cfg, name, **changes)
        for image_id in gt.annotations:
            evaluator.process([{"image_id": image_id}], [perfect_output(gt, image_id)])
        protocols[len(changes)] = [key for key in evaluator.evaluate() if key.startswith("panoptic_seg")]
    assert protocols == {0: ["panoptic_seg", "panoptic_seg/u2seg_paper", "panoptic_seg/cups"], 2: ["panoptic_seg"]}
    assert (tmp_path / "out" / "inference" / name / "metrics.json").is_file()
    assert (tmp_path / "elsewhere" / name / "metrics.json").is_file()


def test_no_image_and_images_scored_twice_are_refused(scene):
    name, gt, cfg = scene
    with pytest.raises(ValueError, match="no image of"):
        evaluated(name, cfg, {})
    evaluator = PanopticEvaluator(cfg, name)
    for _ in range(2):
        evaluator.process([{"image_id": 1}], [perfect_output(gt, 1)])
    with pytest.raises(ValueError, match=r"scored more often: ids \[1\]"):
        evaluator.evaluate()


def test_instance_categories_that_the_panoptic_file_lacks_are_refused(scene):
    name, _, cfg = scene
    path = MetadataCatalog.get(name).json_file
    content = json.loads(Path(path).read_text())
    content["categories"].append({"id": 77, "name": "unicorn"})
    Path(path).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"categories with ids \[77\], which the dataset's classes lack"):
        evaluated(name, cfg, {})


def test_fitting_on_a_dataset_that_was_not_scored_before_is_refused(scene):
    name, gt, cfg = scene
    cfg.TEST.LABEL_MAP.FIT_ON = "my_train"
    with pytest.raises(
        FileNotFoundError, match="FIT_ON is 'my_train', but .*my_train/tables.npz is not there; put that dataset"
    ):
        evaluated(name, cfg, {1: perfect_output(gt, 1)})


def test_weights_in_memory_are_told_apart_by_their_values_and_names():
    def digest(weights):
        return weights_in_memory("a training", weights)["weights_sha256"]

    weights = {"a": torch.ones(2, 3), "b": torch.tensor(7)}
    assert digest(weights) == digest(dict(reversed(weights.items())))
    others = [
        {**weights, "a": torch.ones(3, 2)},
        {**weights, "b": torch.tensor(8)},
        {"c": weights["a"], "b": weights["b"]},
    ]
    assert len({digest(weights), *map(digest, others)}) == 4


def test_fitting_on_tables_of_other_weights_is_refused(scene, tmp_path):
    name, gt, cfg = scene
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    outputs = {i: perfect_output(gt, i) for i in gt.annotations}
    inference = tmp_path / "out" / "inference"
    for made_by, message in ((None, "unknown weights"), (first, r".*first\.pth \(SHA-256 6b86b273ff34\)")):
        evaluated(name, cfg, outputs, made_by)
        (inference / name).rename(inference / f"fit_on_{made_by is None}")
        cfg.TEST.LABEL_MAP.FIT_ON = f"fit_on_{made_by is None}"
        with pytest.raises(
            ValueError, match=f"made with {message}, and .*second.pth .* are scored here. Score '{name}'"
        ):
            evaluated(name, cfg, outputs, second)
        cfg.TEST.LABEL_MAP.FIT_ON = ""
    cfg.TEST.LABEL_MAP.FIT_ON = "fit_on_False"
    moved = first.rename(tmp_path / "moved.pth")  # the content counts, not the name
    assert evaluated(name, cfg, outputs, moved)["panoptic_seg"]["PQ"] == 100


def test_saved_tables_are_scored_with_as_many_detections_as_in_the_evaluation(scene, tmp_path):
    name, gt, cfg = scene
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    outputs = {i: perfect_output(gt, i) for i in gt.annotations}
    for output in outputs.values():  # the right detections come after 110 others of each class
        right = output["instances"]
        wrong = Instances(right.image_size)
        wrong.pred_classes = torch.tensor([3, 1]).repeat(110)
        wrong.scores = torch.full((220,), 0.95)
        wrong.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(220, 1))
        wrong.pred_masks = torch.zeros(220, *right.image_size, dtype=torch.bool)
        output["instances"] = Instances.cat([wrong, right])
    expected = evaluated(name, cfg, outputs)
    assert expected["bbox"]["AP"] > 0
    score_saved_tables(tmp_path / "out/inference" / name / "tables.npz", output=tmp_path / "again")
    again = json.loads((tmp_path / "again/metrics.json").read_text())
    del again["record"]
    assert detectron2_results(again, "hungarian") == expected


def test_files_of_an_earlier_evaluation_do_not_stay(scene, tmp_path):
    name, gt, cfg = scene
    outputs = {1: perfect_output(gt, 1)}
    directory = tmp_path / "out/inference" / name
    cfg.TEST.PROTOCOLS, cfg.TEST.BOOTSTRAP = ("hungarian", "cups"), 2
    evaluated(name, cfg, outputs)
    (directory / "label_map_of_mine.json").write_text("{}")
    before = {path.name for path in directory.iterdir()}
    cfg.TEST.PROTOCOLS, cfg.TEST.BOOTSTRAP, cfg.TEST.SAVE_TABLES = ("hungarian",), 0, False
    evaluated(name, cfg, outputs)
    after = {path.name for path in directory.iterdir()}
    assert before - after == {"intervals.json", "label_map_cups.json", "tables.npz"} and after < before


def test_a_saved_label_map_is_neither_written_again_nor_deleted(scene, tmp_path):
    name, gt, cfg = scene
    outputs = {1: perfect_output(gt, 1)}
    directory = tmp_path / "out/inference" / name
    cfg.TEST.PROTOCOLS = ("hungarian", "cups")
    evaluated(name, cfg, outputs)
    cfg.TEST.LABEL_MAP.FILE = str(directory / "label_map_cups.json")
    saved = Path(cfg.TEST.LABEL_MAP.FILE).read_bytes()
    evaluated(name, cfg, outputs)
    assert [path.name for path in directory.glob("label_map_*.json")] == ["label_map_cups.json"]
    assert Path(cfg.TEST.LABEL_MAP.FILE).read_bytes() == saved


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_outputs_on_a_gpu_score_as_on_the_cpu(scene):
    name, gt, cfg = scene

    def moved(output):
        segment_map, infos = output["panoptic_seg"]
        return {
            "panoptic_seg": (segment_map.cuda(), infos),
            "instances": output["instances"].to("cuda"),
            "sem_seg": output["sem_seg"].cuda(),
        }

    on_cpu = {i: perfect_output(gt, i, thing_cluster=(3, 3)) for i in gt.annotations}
    expected = evaluated(name, cfg, on_cpu)
    assert evaluated(name, cfg, {i: moved(output) for i, output in on_cpu.items()}) == expected
