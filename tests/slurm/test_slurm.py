"""Labels made by the jobs of a real SLURM cluster, one of which is requeued while it works."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from synthetic_images import synthetic_photo
from u2seg.config import setup_cfg
from u2seg.pseudo_labels import make_pseudo_labels

CONFIG = "quick_schedules/coco_mini_handmade.yaml"
OPTIONS = [
    *("FEATURES.DEVICE", "cpu", "FEATURES.IMAGE_SIZE", "(64,96)", "FEATURES.HANDMADE.PATCH_SIZE", "4"),
    *("MASKS.NUM_WORKERS", "0", "MASKS.NUM_THREADS", "1", "MASKS.SHARD_SIZE", "5"),
    *("CLUSTERS.NUM_CLUSTERS", "6", "SEMANTICS.NUM_CLUSTERS", "4"),
]


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def a_cluster_answers():
    if shutil.which("scontrol") is None:
        return False
    return "UP" in run("scontrol", "ping").stdout


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not a_cluster_answers(),
        reason="no SLURM cluster answers; tests/slurm/start_cluster.sh starts one on this machine",
    ),
]


def snapshot(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def running_jobs():
    rows = run("squeue", "--noheader", "--array", "--name=u2seg-labels", "--states=R", "--format=%i").stdout.split()
    return [row for row in rows if re.fullmatch(r"\d+_\d+", row)]


def test_four_jobs_of_which_one_is_requeued_give_the_labels_of_one_process(tmp_path, capsys):
    pytest.importorskip("submitit", reason="needs the extra u2seg[slurm]")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(200):
        Image.fromarray(synthetic_photo(number, (64, 96))).save(photos / f"{number:03d}.png")
    expected = make_pseudo_labels(setup_cfg(CONFIG, OPTIONS), photos, tmp_path / "alone")

    output = tmp_path / "labels"
    command = [sys.executable, "-m", "u2seg.cli.main", "labels", str(photos), "--config-file", CONFIG]
    command += ["--output", str(output), "--launcher", "slurm", "--jobs", "4", "--time", "30", *OPTIONS]
    requeued = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None:
            if requeued is None and list(Path(output).glob("masks/shard-*")) and (jobs := running_jobs()):
                requeued = jobs[-1]
                run("scontrol", "requeue", requeued)
            time.sleep(0.1)
        printed = process.stdout.read()
    with capsys.disabled():
        print(printed, f"requeued job {requeued}")
    assert process.returncode == 0, printed
    assert requeued is not None
    assert snapshot(output) == snapshot(expected)
