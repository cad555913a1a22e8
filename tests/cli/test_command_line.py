"""The command ``u2seg``: what its words become, how wrong ones are told, what the help and ``doctor`` say."""

import errno
import importlib
import logging
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.utils.data import DataLoader, Dataset
from u2seg.cli import arguments, doctor, installation, luss
from u2seg.cli.installation import Check
from u2seg.cli.main import COMMANDS, main, parse_arguments
from u2seg.data.benchmarks import PREPARE
from u2seg.data.datasets import label_splits
from u2seg.utils.image_io import ImageReadError
from u2seg.utils.registry import UnknownNameError
from u2seg.version import __version__


@pytest.fixture
def recipe_runs(monkeypatch):
    """What ``u2seg luss run`` would have run: (run, stages) of each call."""
    calls = []
    monkeypatch.setattr(luss, "run_pass", lambda run, stages: calls.append((run, stages)))
    return calls


def exit_of(capsys, *argv):
    """Returns the exit status of a command line that argparse ends, and what it printed to each stream."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


@pytest.mark.parametrize(
    "words",
    [
        ["--configs", "p", "--output", "o", "--stages", "pretrain", "SOLVER.MAX_ITER", "10"],
        ["--configs", "p", "--output", "o", "SOLVER.MAX_ITER", "10", "--stages", "pretrain"],
        ["SOLVER.MAX_ITER", "10", "--stages", "pretrain", "--configs", "p", "--output", "o"],
    ],
)
def test_settings_stand_anywhere_beside_a_list(words, recipe_runs):
    assert main(["luss", "run", *words]) == 0
    [(run, stages)] = recipe_runs
    assert stages == ("pretrain",)
    assert tuple(run.opts) == ("SOLVER.MAX_ITER", "10")


def test_settings_on_both_sides_of_an_argument_keep_their_order(recipe_runs):
    main(["luss", "run", "A", "1", "--configs", "p", "B", "2", "--output", "o", "C", "-1"])
    [(run, stages)] = recipe_runs
    assert tuple(run.opts) == ("A", "1", "B", "2", "C", "-1")
    assert stages == luss.STAGES


@pytest.mark.parametrize(
    ("words", "pairs", "others"),
    [
        (["SOLVER.MAX_ITER", "9", "photos"], ["SOLVER.MAX_ITER", "9"], ["photos"]),
        (["photos", "--resume", "MODEL.B.c.D_2", "-1", "--x"], ["MODEL.B.c.D_2", "-1"], ["photos", "--resume", "--x"]),
        (["LUSS.B", "MODEL.D", "TEST.F"], ["LUSS.B", "MODEL.D"], ["TEST.F"]),
        (["--csv", "SCORES.CSV", "photos"], [], ["--csv", "SCORES.CSV", "photos"]),
        (["SEED", "3", "photo.JPG", "Model.PTH", "x"], [], ["SEED", "3", "photo.JPG", "Model.PTH", "x"]),
        (["TEST.MD", "x"], [], ["TEST.MD", "x"]),
    ],
)
def test_pairs_are_known_by_their_key(words, pairs, others, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEST.MD").touch()
    assert arguments.split_overrides(words) == (pairs, others)


def test_settings_may_stand_before_what_a_command_reads():
    _, args = parse_arguments(["run", "SOLVER.MAX_ITER", "9", "photos", "--minutes", "5"])
    assert args.opts == ["SOLVER.MAX_ITER", "9"] and str(args.photos) == "photos"


@pytest.mark.parametrize("stages", ["pretrain,labels", "pretrain, labels"])
def test_stages_are_a_comma_separated_list(stages, recipe_runs):
    main(["luss", "run", "--configs", "p", "--output", "o", "--stages", stages])
    assert recipe_runs[0][1] == ("pretrain", "labels")


def test_an_unknown_stage_lists_those_there_are(capsys):
    code, _, err = exit_of(capsys, "luss", "run", "--configs", "p", "--output", "o", "--stages", "pretraining")
    assert code == 2 and "pretraining" in err and all(stage in err for stage in luss.STAGES)


def test_training_starts_one_process_as_in_detectron2():
    for words in (["train", "--config-file", "f"], ["luss", "run", "--configs", "p", "--output", "o"]):
        assert parse_arguments(words)[1].num_gpus == default_argument_parser().get_default("num_gpus") == 1


@pytest.mark.parametrize("count", ["0", "-1", "1.5"])
def test_a_count_of_nothing_is_refused(capsys, count):
    probe = "score linear-probe w --config-file f --train-images a --train-json a --train-root a --images a --gt-json a --gt-root a"
    for words in (f"self-train --config-file f --output o --rounds {count}", f"{probe} --iterations {count}"):
        code, _, err = exit_of(capsys, *words.split())
        assert code == 2 and f"expected a whole number of 1 or more, got '{count}'" in err


def test_training_gets_its_flags_and_settings(monkeypatch):
    given = []
    monkeypatch.setattr(arguments, "launch", lambda function, num_gpus, args, **others: given.append((num_gpus, *args)))
    main(["train", "--config-file", "f.yaml", "MODEL.WEIGHTS", "w.pth", "--eval-only", "--num-gpus", "2"])
    [(num_gpus, args)] = given
    assert num_gpus == 2
    assert (args.config_file, args.eval_only, args.resume) == ("f.yaml", True, False)
    assert args.opts == ["MODEL.WEIGHTS", "w.pth"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["train", "--config-file", "f.yaml", "--evalonly"],
            "unrecognized arguments: --evalonly; did you mean --eval-only?",
        ),
        (["luss", "run", "--configs", "p", "--output", "o", "--stage-s=pretrain"], "unrecognized arguments: --stage-s"),
        (["train", "--config-file", "f.yaml", "SOLVER.MAX_ITER"], "KEY VALUE KEY VALUE ..., got 1 words: SOLVER.MAX_"),
        (["train", "--config-file", "f.yaml", "A", "1", "B"], "got 3 words: A 1 B"),
        (["luss", "export", "a.pth", "b.pth", "SOLVER.MAX_ITER", "10"], "unrecognized arguments: SOLVER.MAX_ITER 10"),
        (["doctor", "SOLVER.MAX_ITER", "10"], "unrecognized arguments: SOLVER.MAX_ITER 10"),
        (["train"], "required: --config-file"),
        (["trian"], "invalid choice: 'trian'"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_command_lines_exit_with_2_and_say_why(words, told, capsys, monkeypatch):
    monkeypatch.setattr(arguments, "launch", lambda *args, **others: pytest.fail("a wrong command line was run"))
    monkeypatch.setattr(luss, "export_backbone", lambda *args: pytest.fail("a wrong command line was run"))
    code, out, err = exit_of(capsys, *words)
    assert code == 2 and out == ""
    assert told in err


def test_errors_are_one_line_unless_asked_for(capsys):
    words = ["train", "--config-file", "no_such.yaml"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: No configuration file 'no_such.yaml'; available: ") and err.count("\n") == 1
    with pytest.raises(FileNotFoundError):
        main([*words, "--debug"])


def test_the_version(capsys):
    code, out, _ = exit_of(capsys, "--version")
    assert (code, out) == (0, f"u2seg {__version__}\n")


def test_the_help_lists_every_command_with_its_purpose(capsys):
    code, out, _ = exit_of(capsys, "--help")
    flat = " ".join(out.split())
    assert code == 0
    for name, purpose in COMMANDS.items():
        assert f"{name} {purpose}" in flat


def shown_help(capsys, *command):
    """Returns the help of a subcommand without its usage line, which names the command as well."""
    code, out, _ = exit_of(capsys, *command, "--help")
    assert code == 0
    return out.split("\n\n", 1)[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_its_purpose_and_an_example(name, capsys):
    text = shown_help(capsys, name)
    purpose = importlib.import_module(f"u2seg.cli.{name.replace('-', '_')}").__doc__.splitlines()[0]
    assert len(purpose) > 20 and purpose in text
    assert re.search(rf"^ *u2seg {name}\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", [*PREPARE, "label_splits"])
def test_the_help_of_a_dataset_has_its_purpose_and_an_example(name, capsys):
    text = shown_help(capsys, "prepare", name)
    assert {**PREPARE, "label_splits": label_splits}[name].__doc__.splitlines()[0] in text
    assert re.search(rf"^    u2seg prepare {name}\b", text, re.MULTILINE)


def test_commands_that_take_settings_say_so(capsys):
    assert "KEY VALUE" in shown_help(capsys, "train")
    assert "KEY VALUE" not in shown_help(capsys, "doctor")


@pytest.mark.parametrize(("required", "code"), [(True, 1), (False, 0)])
def test_doctor_names_what_is_missing_and_the_remedy(required, code, capsys, monkeypatch):
    checks = [Check("torch", True, "2.9"), Check("faiss", False, "not importable", "pip install faiss-cpu", required)]
    monkeypatch.setattr(doctor, "check_installation", lambda every_dataset: checks)
    assert main(["doctor"]) == code
    first, second, remedy, _, last = capsys.readouterr().out.splitlines()
    assert last.startswith(
        "Not ready: faiss missing." if required else "Ready for labels, training and prediction on the CPU"
    )
    assert first.split() == ["ok", "torch", "2.9"]
    assert second.split() == ["MISSING" if required else "-", "faiss", "not", "importable"]
    assert remedy.split() == ["->", "pip", "install", "faiss-cpu"]


def test_doctor_looks_at_this_environment(tmp_path, monkeypatch):
    weights = next(a.file_name for a in installation.ARCHITECTURES.values() if a.family == "dino")
    cache, datasets = tmp_path / "cache", tmp_path / "datasets"
    (cache / "dino").mkdir(parents=True)
    (cache / "dino" / weights).touch()
    datasets.mkdir()

    def import_module(name):
        if name == "faiss":
            raise ImportError("no FAISS here")
        return importlib.import_module(name)

    monkeypatch.setattr(installation, "import_module", import_module)
    monkeypatch.setattr(installation, "get_cache_dir", lambda: str(cache))
    monkeypatch.setattr(installation.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    checks = {check.name: check for check in installation.check_installation()}
    assert checks["u2seg"].detail.startswith(__version__)
    assert checks["timm"].found
    faiss = checks["faiss"]
    assert (faiss.found, faiss.required, faiss.detail) == (False, True, "not importable: no FAISS here")
    assert "pip install faiss-cpu" in faiss.remedy
    assert not checks["gpu"].found and "CPU" in checks["gpu"].detail
    found = [check for name, check in checks.items() if name.startswith("weights ") and check.found]
    assert found and all(check.detail == str(cache / "dino" / weights) for check in found)
    assert "0 of" in checks["datasets"].detail and not [name for name in checks if name.startswith("dataset ")]
    listed = {check.name: check for check in installation.check_installation(every_dataset=True)}
    assert [name for name in listed if name.startswith("dataset ")]


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ImageReadError("a.png: the file is empty (0 bytes)"), "error: a.png: the file is empty (0 bytes)\n"),
        (UnknownNameError("no mapper 'x'"), "error: no mapper 'x'\n"),
    ],
)
def test_the_error_of_a_loaders_worker_is_one_line(monkeypatch, capsys, error, line):
    loader = DataLoader(Broken(error), num_workers=1, collate_fn=list, multiprocessing_context="fork")
    monkeypatch.setattr(doctor, "run", lambda args: list(loader))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == line


TRACE = """

-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "a.py", line 3, in work
    raise ValueError("x")
ValueError: x

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "a.py", line 5, in work
    raise MANY
"""


def test_the_error_of_one_of_several_processes_is_told_as_in_one_process(monkeypatch, capsys):
    def fail(args):
        raise ProcessRaisedException(TRACE.replace("MANY", "StageMismatchError") + last, 1, 77)

    monkeypatch.setattr(doctor, "run", fail)
    last = "u2seg.utils.manifest.StageMismatchError: o was made with other settings:\n  a: asked for 1\nDelete it.\n"
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "error: o was made with other settings:\n  a: asked for 1\nDelete it.\n"
    last = "u2seg.utils.registry.UnknownNameError: Unknown HOOKS 'x'\n"
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "error: Unknown HOOKS 'x'\n"
    last = "AssertionError: a defect\n"
    with pytest.raises(ProcessRaisedException):
        main(["doctor"])
    monkeypatch.setattr(doctor, "run", lambda args: (_ for _ in ()).throw(killed))
    killed = ProcessExitedException("process 0 terminated with signal SIGKILL", 0, 77, -9, "SIGKILL")
    assert main(["doctor"]) == 1
    assert "signal SIGKILL; the machine may have run out of memory. Run the same" in capsys.readouterr().err


def test_a_missing_key_is_a_defect_and_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(doctor, "run", lambda args: {}["x"])
    with pytest.raises(KeyError):
        main(["doctor"])


def test_ctrl_c_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", lambda args: os.kill(os.getpid(), signal.SIGINT))
    # A shell that starts the tests in the background lets them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["doctor"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "stopped; finished work is kept, and most commands go on from it when run again\n"


def test_a_broken_pipe_is_silent_only_where_nobody_reads_the_output(monkeypatch, capsys):
    def broken(args):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(doctor, "run", broken)
    assert main(["doctor"]) == 1 and "Broken pipe" in capsys.readouterr().err
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        pipe.write("more than the reader wanted")
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["doctor"]) == 141 and capsys.readouterr().err == ""


def test_what_to_do_about_a_directory_that_is_read_only(monkeypatch, capsys):
    def fail(args):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/log.txt")

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "error: /somewhere/log.txt: Permission denied; make it writable or choose another output directory\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_a_log_on_a_full_disk_adds_no_error_of_its_own(monkeypatch, capsys):
    def fail(args):
        log.write("held in memory")
        logger.error("not written")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/full")

    monkeypatch.setattr(doctor, "run", fail)
    logger = logging.getLogger("a_full_one")
    logger.propagate = False
    # It is closed at the end, as Detectron2 closes its logs when Python ends.
    with Path("/dev/full").open("w") as log:
        handler = logging.StreamHandler(log)
        logger.addHandler(handler)
        try:
            assert main(["doctor"]) == 1
        finally:
            logger.removeHandler(handler)
    assert capsys.readouterr().err == "error: /dev/full: No space left on device; free some space on that disk\n"
