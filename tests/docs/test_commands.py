"""Every command of the documentation is typed in a fresh directory, as it stands, where it needs no network, GPU or foreign data."""

import os
import re
import shlex
import shutil
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from doc_pages import COMMAND_LINES, ROOT, blocks
from tiny_photos import write_tiny_photos_config
from u2seg.cli import labels
from u2seg.cli.main import main
from u2seg.engine import end_to_end
from u2seg.engine.photo_run import run_config, run_features, run_plan
from u2seg.pseudo_labels import pipeline
from u2seg.pseudo_labels.launchers import Launcher
from u2seg.utils.files import read_json, write_json

NUM_PHOTOS = 6
TINY = "tiny.yaml"  # takes the place of the configuration for photos
# Beginnings of the commands that are only parsed, with the reason.
PARSED_ONLY = {
    "u2seg prepare cocostuff27": "dataset",
    "u2seg prepare uvo": "dataset",
    "u2seg prepare voc": "dataset",
    "u2seg prepare cityscapes": "dataset",
    "u2seg prepare kitti": "dataset",
    "u2seg prepare lvis": "dataset",
    "u2seg prepare objects365": "dataset",
    "u2seg prepare cross_domain": "dataset",
    "u2seg prepare openimages": "dataset",
    "u2seg train --config-file evaluation/coco.yaml": "dataset",
    "u2seg train --config-file COCO-FewLabels/": "dataset",
    "u2seg luss run": "dataset, GPU",
    "u2seg train --config-file LUSS/": "minutes or a GPU",
    "u2seg luss export output/pass_scenes": "the model of such a training",
    "u2seg luss bank": "the model of such a training",
    "u2seg labels photos --config-file my.yaml --output labels FEATURES.NAME ResNetFeatures": "the model of such a training",
    "u2seg labels photos --config-file my.yaml --output labels FEATURES.NAME TimmViT": "weights",
    "u2seg run photos FEATURES.VIT.WEIGHTS": "weights",
    "u2seg labels photos --config-file masks/votecut_cuvler.yaml": "weights",
    "u2seg labels photos --config-file quick_schedules/coco_mini_learned.yaml": "a backbone that was trained for hours",
    "u2seg train --config-file quick_schedules/coco_mini_learned.yaml": "the same",
    "u2seg labels photos --config-file my.yaml --output labels --launcher slurm": "a SLURM cluster; see tests/slurm",
    "u2seg luss export output/photos/backbone": "the same",
    "u2seg convert pass": "weights",
    "u2seg convert dino-resnet": "weights",
    "u2seg convert safetensors output/photos": "a backbone that was trained for hours",
    "u2seg convert stego": "weights",
    "u2seg convert cause": "weights",
    "u2seg labels photos --config-file my.yaml --output labels SEMANTICS.PROVIDER STEGO": "weights",
    "u2seg labels photos --config-file semantics/stego_cocostuff27_vits8.yaml": "weights",
    "u2seg labels datasets/coco/train2017 --config-file semantics/stego_cocostuff27_vits8.yaml": "dataset",
    "u2seg train --config-file semantics/stego_cocostuff27_vits8.yaml": "dataset",
    "u2seg score semantics": "labels of such a run",
    "u2seg score linear-probe": "labels of such a run; tests/pseudo_labels/semantics/test_semantic_map_scores.py",
    "u2seg convert corrected": "a file that an annotation tool has written",
    "u2seg convert labels": "an annotation tool; tests/export/test_label_conversion.py",
    "u2seg export": "an optional package; tests/export/test_tracing.py",
    "u2seg predict photos --config-file hf://": "network",
    "u2seg predict photos --config-file my.yaml --output predictions MODEL.WEIGHTS hf://": "network",
    "u2seg push": "network",
    "u2seg serve": "runs until it is stopped; tests/test_web_app.py",
    "u2seg train --config-file my.yaml --log-to": "an account at a service",
    "u2seg labels PHOTOS --stages masks --output labels --config-file masks/region_hierarchy.yaml": "a gap to fill in",
    "u2seg demo": "minutes; tests/engine/test_end_to_end.py runs it small",
    "u2seg train --config-file quick_schedules/scenes.yaml": "minutes; the same",
}


def is_parsed_only(line: str) -> bool:
    return any(line.startswith(start) for start in PARSED_ONLY)


def own_yaml(page: str, name: str, **replaced: str) -> None:
    """Writes the YAML of a page that is called so, with some values replaced by small ones."""
    text = (ROOT / "docs" / page).read_text()
    block = next(block for block in blocks(text, "yaml") if "_BASE_" in block)
    for key, value in replaced.items():
        block, count = re.subn(rf"^( *{key}:).*", rf"\1 {value}", block, flags=re.MULTILINE)
        assert count == 1, f"{page}: {key} stands {count} times"
    Path(name).write_text(block)


def place_photos() -> None:
    """Puts some of the rendered scenes where the commands expect photos and their ground truth."""
    scenes = Path("datasets/scenes")
    names = sorted(path.name for path in (scenes / "val").iterdir())[:NUM_PHOTOS]
    for directory, count in (("photos", NUM_PHOTOS), ("other_photos", 2), ("labeled/train", NUM_PHOTOS)):
        Path(directory).mkdir(parents=True)
        for name in names[:count]:
            shutil.copy(scenes / "val" / name, directory)
    shutil.copy(scenes / "val" / names[0], "photo.jpg")
    for directory in ("panoptic_val", "gt_pngs", "labeled/panoptic_train"):
        shutil.copytree(scenes / "panoptic_val", directory)
    targets = {
        "panoptic": ("panoptic_val.json", "gt.json", "labeled/annotations/panoptic_train.json"),
        "instances": ("instances.json", "instances_val2017.json", "labeled/annotations/instances_train.json"),
    }
    for kind, paths in targets.items():
        content = read_json(scenes / "annotations" / f"{kind}_val.json")
        images = [image for image in content["images"] if image["file_name"] in names]
        ids = {image["id"] for image in images}
        rows = [row for row in content["annotations"] if row["image_id"] in ids]
        for path in paths:
            write_json(path, {**content, "images": images, "annotations": rows})
    coco = Path("datasets/coco/annotations/panoptic_train2017.json")
    write_json(coco, read_json(scenes / "annotations" / "panoptic_val.json"))


def write_few_yaml() -> None:
    own_yaml("own_photos.md", "few.yaml", MAX_ITER="2", WARMUP_ITERS="1")


def write_names() -> None:
    Path("names.txt").write_text("1=kite\n2=tent  # a thing\n")


def label_times() -> dict[str, int]:
    """Returns when each file of the labels without names was written."""
    stages = (path for stage in pipeline.STAGES for path in Path("output/photos/labels", stage).rglob("*"))
    return {str(path): path.stat().st_mtime_ns for path in stages if path.is_file()}


def remember_labels() -> None:
    write_json("label_times.json", label_times())


def labels_were_used_again() -> None:
    """More minutes and joined clusters give another model, on the same labels; the first one is kept."""
    assert len(label_times()) > 10 and read_json("label_times.json") == label_times()
    old, new = (
        read_json(Path("output/photos", path, "training.json"))["settings"] for path in ("earlier/1/model", "model")
    )
    assert (old["SOLVER.MAX_ITER"], new["SOLVER.MAX_ITER"]) == (2, 3)
    assert new["MODEL.ROI_HEADS.NUM_CLASSES"] == old["MODEL.ROI_HEADS.NUM_CLASSES"] - 1
    names = [category["name"] for category in read_json("output/photos/predictions/panoptic.json")["categories"]]
    assert names[:4] == ["kite", "2", "tent", "4"]
    assert Path("output/photos/earlier/1/predictions/panoptic.json").is_file()


def make_new_yaml_short() -> None:
    text = Path("my.yaml").read_text().replace("_BASE_: quick_schedules/photos.yaml", f"_BASE_: {TINY}")
    Path("my.yaml").write_text(text + "SOLVER:\n  MAX_ITER: 2\n")


def write_my_yaml() -> None:
    """The page's file, with the small model in place of ResNet-50 and ground truth to score on."""
    own_yaml(
        "getting_started.md",
        "my.yaml",
        _BASE_=TINY,
        NUM_CLUSTERS="3",
        MAX_ITER="2",
        TEST='("my_val",)',
    )
    text = Path("my.yaml").read_text()
    val = "    my_val: {FORMAT: coco_panoptic, ROOT: labeled, SPLIT: train}\n"
    text = re.sub(r"^( *my_train: .*\n)", rf"\1{val}", text, flags=re.MULTILINE)
    Path("my.yaml").write_text(text + "SEMANTICS:\n  NUM_CLUSTERS: 3\nOUTPUT_DIR: output\n")


def place_scores() -> None:
    tables = Path("output/inference/my_val")
    for directory in ("val", "train"):
        Path(directory).mkdir()
        shutil.copy(tables / "tables.npz", directory)
    shutil.copy(next(tables.glob("label_map_*.json")), "label_map_cups.json")
    shutil.copy("output/my/labels/panoptic/panoptic.json", "labels.json")
    shutil.copytree("output/my/labels/panoptic/panoptic", "label_pngs")


SESSION = (
    "u2seg doctor",
    "u2seg prepare scenes --output datasets/scenes",
    place_photos,
    "u2seg prepare label_splits --annotations datasets/coco/annotations/panoptic_train2017.json --output datasets/coco/splits",
    # docs/own_photos.md
    "u2seg run photos --check",
    "u2seg run photos",
    "u2seg run photos --ground-truth instances.json",
    "u2seg clusters list output/photos/labels",
    "u2seg show output/photos/labels --images photos --output output/photos/clusters",
    "u2seg clusters rename output/photos/labels 1=kite 3=tent 5=tent",
    write_names,
    "u2seg clusters rename output/photos/labels --file names.txt",
    "u2seg clusters rename output/photos/labels 3=",
    "u2seg clusters reset output/photos/labels",
    "u2seg clusters rename output/photos/labels 1=kite 3=tent 5=tent",
    remember_labels,
    "u2seg run photos --minutes 60",
    labels_were_used_again,
    "u2seg predict other_photos --config-file output/photos/config.yaml --output output/photos/other MODEL.WEIGHTS "
    "output/photos/model/model_final.pth",
    write_few_yaml,
    "u2seg train --config-file few.yaml",
    # docs/getting_started.md
    "u2seg config new --images photos > my.yaml",
    make_new_yaml_short,
    "u2seg run photos --config-file my.yaml",
    write_my_yaml,
    "u2seg run photos --config-file my.yaml --output output/my_run",
    "u2seg labels photos --config-file my.yaml --output output/my/labels",
    "u2seg show output/my/labels --images photos --output output/my/page",
    "u2seg train --config-file my.yaml --num-gpus 1 OUTPUT_DIR output/my/model",
    "u2seg predict photos --config-file my.yaml --output output/my/predictions MODEL.WEIGHTS output/my/model/model_final.pth",
    # the other pages
    "u2seg predict photo.jpg photos --config-file my.yaml --output predictions MODEL.WEIGHTS output/my/model/model_final.pth",
    "u2seg train --config-file my.yaml --num-gpus 8 --resume",
    "u2seg train --config-file my.yaml --eval-only MODEL.WEIGHTS output/my/model/model_final.pth",
    "u2seg show-samples --config-file my.yaml --output samples.png",
    "u2seg self-train --config-file my.yaml --rounds 2 --output output/self MODEL.WEIGHTS output/my/model/model_final.pth",
    "u2seg labels photos --config-file my.yaml --output labels --worker 0/64",
    "u2seg labels photos --config-file my.yaml --output labels --finalize",
    "u2seg labels photos --config-file my.yaml --stages masks --output labels",
    "u2seg labels photos --config-file my.yaml --output labels --launcher local",
    "u2seg labels photos --config-file my.yaml --output labels PANOPTIC_LABELS.FORMAT shards",
    "u2seg convert masks labels masks.json",
    "u2seg show labels --images photos --output page",
    "u2seg show pseudo-label=labels prediction=predictions gt=panoptic_val.json --images photos --output page",
    "u2seg evaluate-masks labels/masks --ground-truth instances_val2017.json",
    place_scores,
    "u2seg score tables output/inference/my_val/tables.npz --protocols hungarian,cups --bootstrap 1000",
    "u2seg score tables val/tables.npz --fit-on train/tables.npz",
    "u2seg score tables val/tables.npz --label-map label_map_cups.json",
    "u2seg score files --gt-json gt.json --gt-root gt_pngs --predicted-json labels.json --predicted-root label_pngs",
)


def test_every_command_is_run_or_has_a_reason():
    """A new command belongs into SESSION, after those that make what it reads, or with a reason into PARSED_ONLY."""
    typed = {step for step in SESSION if isinstance(step, str)}
    shown = {line for _, line in COMMAND_LINES}
    assert {line for line in shown if not is_parsed_only(line)} - typed == set()
    assert not [line for line in typed if is_parsed_only(line)]
    assert not [start for start in PARSED_ONLY if not any(line.startswith(start) for line in shown)]


def once(function):
    """Returns a function that calls the given one the first time, and returns that result ever after."""
    found = []

    def called(*args):
        if not found:
            found.append(function(*args))
        return found[0]

    return called


@pytest.fixture
def _small_and_offline(tmp_path, monkeypatch):
    """No network, no GPU, trainings of two or three iterations, no processes that take longer to start than to work."""

    def in_this_process(num_threads, function, *args):
        return function(*args)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.setattr(run_config, "PHOTOS_CONFIG", write_tiny_photos_config(tmp_path / TINY))
    monkeypatch.setattr(run_features, "is_server_reachable", lambda url: False)
    monkeypatch.setattr(run_plan, "run_in_process", in_this_process)
    monkeypatch.setattr(end_to_end, "run_in_process", in_this_process)
    # As many clusters as the tutorial names.
    monkeypatch.setattr(end_to_end, "num_thing_clusters", lambda masks: 5)
    # Measured once; the other runs take what was found.
    monkeypatch.setattr(run_plan, "measure_run", once(run_plan.measure_run))
    monkeypatch.setattr(end_to_end, "num_iterations", lambda minutes, *seconds: 3 if minutes > 15 else 2)
    # Worker 0 of 64 has made the only shard of masks; what is left is too little for processes of their own.
    monkeypatch.setattr(labels, "LocalLauncher", lambda cfg, run, count: Launcher(cfg, run))


def run_line(line: str) -> int:
    """Returns the exit status of a command line, which may end in ``> FILE``."""
    command, _, target = line.partition(" > ")
    words = shlex.split(re.sub(r"--num-gpus \d+", "--num-gpus 0", command))[1:]
    if not target:
        return main(words)
    with Path(target).open("w") as file, redirect_stdout(file):
        return main(words)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_and_offline")
def test_the_commands_run_one_after_the_other(capfd):
    for step in SESSION:
        started = time.monotonic()
        if isinstance(step, str):
            status = run_line(step)
            screen = capfd.readouterr()
            assert status == 0, f"{step}: {screen.err}"
        else:
            step()
        if os.environ.get("SHOW_TIMES"):
            with capfd.disabled():
                print(
                    f"{time.monotonic() - started:6.1f} s  {step if isinstance(step, str) else step.__name__}",
                    flush=True,
                )
    for page in ("output/photos/report", "output/photos/clusters", "output/my_run/report", "output/my/page", "page"):
        assert Path(page, "index.html").is_file()
    assert len(list(Path("output/photos/other/visualizations").iterdir())) == 2
    assert Path("samples.png").is_file() and Path("output/few/model_final.pth").is_file()
