"""Many workers on one directory: the same bytes as one, whatever their number, their order, and what is killed."""

import errno
import json
import multiprocessing
import os
import shutil
import socket
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.pseudo_labels import make_pseudo_labels, phases, pipeline
from u2seg.pseudo_labels.image_source import DirectorySource
from u2seg.pseudo_labels.launchers import finish_when_visible, on_gpu
from u2seg.pseudo_labels.lost_images import count_put_back
from u2seg.pseudo_labels.masks import mask_stage
from u2seg.pseudo_labels.pipeline import finalize, make_worker_share, retry_failures
from u2seg.pseudo_labels.semantics import semantic_providers
from u2seg.pseudo_labels.worker import Worker
from u2seg.utils.files import write_json
from u2seg.utils.manifest import IncompleteStageError, StageMismatchError
from u2seg.utils.write_errors import WriteError

CONFIG = "quick_schedules/scenes.yaml"
OPTIONS = [
    *("FEATURES.IMAGE_SIZE", "(72,108)", "FEATURES.HANDMADE.PATCH_SIZE", "4", "FEATURES.BATCH_SIZE", "2"),
    *("MASKS.NUM_WORKERS", "0", "MASKS.SHARD_SIZE", "2", "MASKS.MAX_FAILURES", "0.5", "MASKS.MIN_AREA", "0.005"),
    *("CLUSTERS.NUM_CLUSTERS", "2", "CLUSTERS.NUM_RESTARTS", "1", "CLUSTERS.MAX_TRAINING_SAMPLES", "12"),
    *("SEMANTICS.NUM_CLUSTERS", "2", "SEMANTICS.NUM_RESTARTS", "1", "SEMANTICS.MAX_TRAINING_SAMPLES", "40"),
]
ROUNDS = [["masks"], ["cluster samples", "semantic samples"], ["clusters", "semantics"], ["panoptic"]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine images, five shards: two blobs before two halves; and one that is broken."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:60, :90]
    for number in range(9):
        image = np.full((60, 90, 3), (120, 160, 220), np.int32)
        image[30:] = (60, 120, 50)
        for x, color in ((27, (230, 40, 40)), (63, (240, 220, 40))):
            image[np.hypot(rows - rng.integers(18, 42), columns - x) < 13] = color
        image += rng.integers(-12, 13, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{number}.png")
    (root / "3.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def cfg():
    return setup_cfg(CONFIG, OPTIONS)


@pytest.fixture(scope="module")
def labels(photos, cfg, tmp_path_factory):
    """The labels of one process."""
    return make_pseudo_labels(cfg, photos, tmp_path_factory.mktemp("labels"))


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("count", [2, 4])
def test_workers_and_finalize_give_the_bytes_of_one_process(labels, photos, cfg, tmp_path, count):
    output = tmp_path / "labels"
    order = np.random.default_rng(count)
    for number, names in enumerate(ROUNDS):
        for index in order.permutation(count):
            assert make_worker_share(cfg, photos, output, Worker(int(index), count)) == names
        assert finalize(cfg, photos, output) == (ROUNDS[number + 1] if number < 3 else [])
    assert make_worker_share(cfg, photos, output, Worker(0, count)) == []
    assert snapshot(output) == snapshot(labels)


def test_finalize_names_what_is_missing_and_closes_nothing(photos, cfg, tmp_path, capsys):
    output = tmp_path / "labels"
    command = ["labels", str(photos), "--config-file", CONFIG, "--output", str(output), *OPTIONS]
    assert main([*command, "--finalize"]) == 1
    assert "holds no plan of a run" in capsys.readouterr().err
    assert main([*command, "--worker", "1/2"]) == 0
    assert "made its share of: masks; when all have ended, run with --finalize" in capsys.readouterr().out
    before = snapshot(output)
    assert main([*command, "--finalize"]) == 1
    missing = "lacks 3 of 5 shards: shard-000000.parquet, shard-000002.parquet, shard-000004.parquet."
    assert missing in capsys.readouterr().err
    assert snapshot(output) == before
    assert main([*command, "--worker", "0/2"]) == 0
    strict = [*command, "MASKS.MAX_FAILURES", "0.01"]
    assert main([*strict, "--finalize"]) == 1
    assert "Run again with a larger MASKS.MAX_FAILURES to go on without them, or repair" in capsys.readouterr().err
    assert main([*strict, "--finalize", "--max-failures", "50"]) == 1
    assert "MASKS.MAX_FAILURES" in (message := capsys.readouterr().err) and "50" in message
    assert main([*strict, "--finalize", "--max-failures", "0.5"]) == 0
    assert "closed; next: cluster samples, semantic samples" in capsys.readouterr().out
    failures = json.loads((output / "failures.json").read_text())
    assert [row["file_name"] for row in failures] == ["3.png"]
    with pytest.raises(IncompleteStageError, match=r"\.sample-\w{8}-000000\.npy, \.sample-\w{8}-000001\.npy"):
        finalize(cfg, photos, output)
    # What is closed stays closed: the other workers need no --max-failures.
    assert main([*strict, "--worker", "0/2"]) == 0
    assert "made its share of: cluster samples, semantic samples" in capsys.readouterr().out


def test_more_workers_than_shards_and_fewer_stages(labels, photos, cfg, tmp_path):
    output = tmp_path / "labels"
    for index in range(9):
        make_worker_share(cfg, photos, output, Worker(index, 9), stages=["masks"])
    assert finalize(cfg, photos, output, stages=["masks"]) == []
    assert snapshot(output / "masks") == snapshot(labels / "masks")
    with pytest.raises(FileNotFoundError, match="the panoptic stage needs a finished clusters stage"):
        make_worker_share(cfg, photos, output, Worker(0, 2), stages=["panoptic"])


def test_patches_come_out_of_the_mask_stage_s_forward_pass(labels, photos, cfg, tmp_path, monkeypatch):
    forwarded = []
    features = semantic_providers.PatchKMeans._features

    def counted(self, records):
        forwarded.extend(records)
        yield from features(self, records)

    monkeypatch.setattr(semantic_providers.PatchKMeans, "_features", counted)
    make_pseudo_labels(cfg, photos, tmp_path / "together")
    assert len(forwarded) == 8, "one more pass, for the maps"
    forwarded.clear()
    for stage in phases.STAGES:
        make_pseudo_labels(cfg, photos, tmp_path / "apart", stages=[stage])
    assert len(forwarded) == 16, "a run of masks alone samples nothing"
    assert snapshot(tmp_path / "together") == snapshot(tmp_path / "apart") == snapshot(labels)


def test_of_more_images_than_samples_only_a_share_is_looked_at(photos, cfg, tmp_path):
    few = setup_cfg(CONFIG, [*OPTIONS, "SEMANTICS.MAX_TRAINING_SAMPLES", "4"])
    make_pseudo_labels(few, photos, tmp_path, stages=["masks"])
    provider = semantic_providers.PatchKMeans(few, photos, tmp_path / "masks", tmp_path / "semantics")
    records = list(semantic_providers.read_shard(tmp_path / "masks" / "shard-000000.parquet"))
    taken = [provider._patches.takes(semantic_providers.ImageMasks(n, "x")) for n in range(1, 1001)]
    assert 0.38 < np.mean(taken) < 0.51, "4 of 9 images"
    provider.sample(0, records)
    expected = sum(provider._patches.takes(record) for record in records)
    assert len(np.load(provider._patches.path(0))) == expected


def test_a_run_with_other_settings_beside_it_is_noticed_before_a_shard_is_written(photos, cfg, tmp_path, monkeypatch):
    output = tmp_path / "labels"
    other = setup_cfg(CONFIG, [*OPTIONS, "MASKS.MIN_AREA", "0.02"])
    refine = mask_stage._refine

    def interfere(*args):
        # No shard is there yet, so that the directory still takes other settings.
        mask_stage.plan_masks(other, photos, output / "masks")
        return refine(*args)

    monkeypatch.setattr(mask_stage, "_refine", interfere)
    with pytest.raises(StageMismatchError, match="another run with other settings took"):
        make_worker_share(cfg, photos, output, Worker(0, 2))
    assert not list(output.glob("masks/shard-*"))


def test_samples_of_settings_that_were_given_up_are_not_used(labels, photos, cfg, tmp_path):
    output = tmp_path / "labels"
    make_pseudo_labels(cfg, photos, output, stages=["masks"])
    other = setup_cfg(CONFIG, [*OPTIONS, "CLUSTERS.NORMALIZE", "True", "SEMANTICS.PROVIDER", "DirectoryOfMaps"])
    other.SEMANTICS.DIRECTORY = str(tmp_path / "none")
    make_worker_share(other, photos, output, Worker(0, 1), stages=["clusters"])
    with pytest.raises(FileNotFoundError, match="no semantic map for"):
        make_pseudo_labels(other, photos, output, stages=["semantics"])
    make_pseudo_labels(cfg, photos, output)
    assert snapshot(output) == snapshot(labels)


def in_children(work, count):
    """Runs ``work(index)`` in forked processes and returns their exit statuses."""

    def child(index):
        # A forked process must not wait for its parent's threads.
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        work(index)
        os._exit(0)

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child, args=(index,)) for index in range(count)]
    for process in children:
        process.start()
    for process in children:
        process.join(120)
    return [process.exitcode for process in children]


def test_two_whole_runs_at_once_do_no_harm(labels, photos, cfg, tmp_path):
    in_children(lambda index: make_pseudo_labels(cfg, photos, tmp_path / "labels"), 2)
    make_pseudo_labels(cfg, photos, tmp_path / "labels")
    assert snapshot(tmp_path / "labels") == snapshot(labels)


def test_three_processes_of_torchrun_give_the_same_bytes(labels, photos, cfg, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(index):
        os.environ.update(RANK=str(index), WORLD_SIZE="3", LOCAL_RANK=str(index))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with (tmp_path / f"{index}.txt").open("w") as said, redirect_stdout(said):
            assert main([*command, *OPTIONS]) == 0

    command = ["labels", str(photos), "--config-file", CONFIG, "--output", str(tmp_path / "labels")]
    command += ["--launcher", "torchrun"]
    assert in_children(rank, 3) == [0, 0, 0]
    said = [(tmp_path / f"{index}.txt").read_text() for index in range(3)]
    assert said[0].startswith("labels in ") and said[0].count("\n") == 1 and said[1:] == ["", ""]
    assert snapshot(tmp_path / "labels") == snapshot(labels)


def test_submitit_s_jobs_give_the_same_bytes(labels, photos, cfg, tmp_path):
    pytest.importorskip("submitit", reason="needs the extra u2seg[slurm]")
    from u2seg.pseudo_labels.launchers import ShareJob, SlurmLauncher

    def debug(cfg, run):
        return SlurmLauncher(cfg, run, jobs=2, cluster="debug")

    make_pseudo_labels(cfg, photos, tmp_path / "labels", launcher=debug)
    assert snapshot(tmp_path / "labels") == snapshot(labels)
    again = ShareJob().checkpoint(cfg, "run", "masks", Worker(1, 2))
    assert isinstance(again.function, ShareJob) and again.args == (cfg, "run", "masks", Worker(1, 2))


def test_shards_that_a_network_shows_late_are_waited_for(cfg):
    calls = []

    def finish(cfg, run):
        calls.append(run)
        if len(calls) < 3:
            raise IncompleteStageError("late")

    phase = replace(phases.phase_named("masks"), finish=finish)
    finish_when_visible(phase, cfg, None, seconds=20)
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(IncompleteStageError, match="late"):
        finish_when_visible(phase, cfg, None, seconds=0)


def test_torchrun_s_variables_are_asked_for(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    command = ["labels", str(photos), "--config-file", CONFIG, "--output", str(tmp_path / "o")]
    assert main([*command, "--launcher", "torchrun"]) == 1
    assert "reads RANK" in (message := capsys.readouterr().err) and "torchrun --nproc-per-node" in message
    for options, expected in (
        (["--launcher", "slurm", "--worker", "0/2"], "--launcher and --worker do not go together"),
        (["--worker", "0/2", "--finalize"], "--worker and --finalize do not go together"),
        (["--worker", "0/2", "--workers", "2"], "leave it out with --worker"),
        (["--launcher", "slurm", "--workers", "2"], "leave it out with --launcher"),
        (["--finalize", "--retry-failures"], "in a run without it"),
        (["--jobs", "2"], "--jobs is for SLURM jobs; add --launcher slurm"),
        (["--launcher", "local", "--partition", "gpu"], "--partition is for SLURM jobs"),
        (["--worker", "0/2", "--time", "60"], "--time is for SLURM jobs"),
    ):
        assert main([*command, *options]) == 1
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_workers_of_one_machine_share_its_gpus(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    auto = setup_cfg(CONFIG, ["FEATURES.DEVICE", "auto"])
    assert [on_gpu(auto, index).FEATURES.DEVICE for index in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert on_gpu(setup_cfg(CONFIG, ["FEATURES.DEVICE", "cpu"]), 1).FEATURES.DEVICE == "cpu"


def test_lists_and_tar_shards_give_the_masks_of_the_directory(labels, photos, cfg, tmp_path):
    import tarfile

    names = sorted(path.name for path in photos.iterdir())
    copy = shutil.copytree(photos, tmp_path / "photos")
    (copy / "all.txt").write_text("\n".join(names))
    made = make_pseudo_labels(cfg, copy / "all.txt", tmp_path / "by_list")
    assert snapshot(made) == snapshot(labels)
    for tar, chosen in (("s-0.tar", names[:4]), ("s-1.tar", names[4:])):
        with tarfile.open(tmp_path / tar, "w") as archive:
            for name in chosen:
                archive.add(photos / name, name)
    made = make_pseudo_labels(cfg, f"{tmp_path}/s-{{0..1}}.tar", tmp_path / "by_tar")
    rows = json.loads((made / "panoptic" / "panoptic.json").read_text())["images"]
    assert [row["file_name"] for row in rows][:4] == [
        "s-0.tar/0.png",
        "s-0.tar/1.png",
        "s-0.tar/2.png",
        "s-1.tar/4.png",
    ]
    same = {name: (labels / "panoptic" / "stuff" / name).read_bytes() for name in names if name != "3.png"}
    assert {path.name: path.read_bytes() for path in made.rglob("stuff/*/*.png")} == same


def test_workers_and_finalize_refuse_settings_that_closed_phases_were_not_made_with(labels, photos, cfg, tmp_path):
    output = tmp_path / "labels"
    shutil.copytree(labels, output)
    before, other = snapshot(output), cfg.clone()
    other.CLUSTERS.NUM_CLUSTERS += 1
    with pytest.raises(StageMismatchError):
        make_worker_share(other, photos, output, Worker(0, 2))
    with pytest.raises(StageMismatchError):
        finalize(other, photos, output)
    assert snapshot(output) == before
    assert finalize(cfg, photos, output) == []


def test_a_read_only_directory_is_one_clear_line_for_every_command(photos, cfg, tmp_path, monkeypatch):
    output = tmp_path / "labels"
    error = OSError(errno.EROFS, "Read-only file system", str(output / "masks" / "x"))

    def refuse(*args):
        raise error

    monkeypatch.setattr(pipeline, "_check_closed", refuse)
    monkeypatch.setattr(pipeline, "reopen_failures", refuse)
    commands = (
        lambda: pipeline.make_worker_share(cfg, photos, output, Worker()),
        lambda: pipeline.finalize(cfg, photos, output),
        lambda: pipeline.retry_failures(cfg, photos, output),
    )
    for command in commands:
        with pytest.raises(WriteError, match=f"{output} cannot be written: Read-only file system; make it writable"):
            command()


def test_an_image_of_another_size_is_not_put_back(photos, labels, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    names = {"0.png", "5.png"}
    assert count_put_back(DirectorySource(copy), labels / "masks", names) == 2
    Image.new("RGB", (33, 20)).save(copy / "0.png")
    assert count_put_back(DirectorySource(copy), labels / "masks", names) == 1
    (copy / "5.png").unlink()
    assert count_put_back(DirectorySource(copy), labels / "masks", names) == 0
    assert count_put_back(DirectorySource(copy), labels / "masks", set()) == 0


def test_images_that_are_put_back_count_also_in_shards_that_are_made_again(photos, labels, cfg, tmp_path):
    copy, output = shutil.copytree(photos, tmp_path / "photos"), shutil.copytree(labels, tmp_path / "labels")
    write_json(output / "semantics" / "failures.json", [{"file_name": "2.png", "reason": "no such file"}])
    shutil.copy(copy / "1.png", copy / "3.png")  # of the same shard, and broken when masks were made
    assert retry_failures(cfg, copy, output) == 2


def test_a_list_may_lie_beside_the_labels(photos, cfg, tmp_path):
    for number in (0, 1):
        shutil.copy(photos / f"{number}.png", tmp_path)
    (tmp_path / "photos.txt").write_text("\ufeff0.png\n1.png\n", encoding="utf-8")
    output = make_pseudo_labels(cfg, tmp_path / "photos.txt", tmp_path / "labels", stages=["masks"])
    assert json.loads((output / "masks" / "manifest.json").read_text())["counts"]["images"] == 2
