"""The GPU check's bookkeeping, on steps that need no GPU; what its own steps do was not run without one."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "tools" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


@pytest.fixture
def on_a_card(gpu_check, monkeypatch):
    """Returns a function that sets the steps of a machine with a card called "H1"."""
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_name", lambda index: "H1")
    return lambda *steps: monkeypatch.setattr(gpu_check, "steps", lambda output, num_gpus: list(steps))


def test_steps_are_run_once_and_failed_ones_again(gpu_check, on_a_card, tmp_path):
    marks = tmp_path / "marks"
    good = gpu_check.Step("good", ("-c", f"open({str(marks)!r}, 'a').write('x'); print('1 | 2')"), 20)
    bad = gpu_check.Step("bad", ("-c", "print('oh'); raise SystemExit(3)"), 20)
    slow = gpu_check.Step("slow", ("-c", "import time; time.sleep(30)"), 1)
    on_a_card(good, bad, slow)
    arguments = ["--output", str(tmp_path / "out")]
    assert gpu_check.main(arguments) == gpu_check.main(arguments) == 1
    assert marks.read_text() == "x", "the second run kept it"
    table = (tmp_path / "out" / "summary.md").read_text().splitlines()
    assert "on H1" in table[0]
    assert [row.split(" | ")[:2] for row in table[4:]] == [
        ["| good", "passed"],
        ["| bad", "FAILED"],
        ["| slow", "FAILED"],
    ]
    assert "1 \\| 2" in table[4] and "stopped after 1 s" in table[6]
    on_a_card(good)
    assert gpu_check.main(arguments) == 0
    assert json.loads((tmp_path / "out" / "good.json").read_text())["device"] == "H1"


def test_no_step_begins_when_the_time_is_over(gpu_check, on_a_card, tmp_path):
    on_a_card(gpu_check.Step("good", ("-c", "print(1)"), 20))
    assert gpu_check.main(["--output", str(tmp_path), "--minutes", "0"]) == 1
    assert "| good | not run: out of time |" in (tmp_path / "summary.md").read_text()


def test_the_steps_fit_into_the_time_and_name_files_that_exist(gpu_check, tmp_path):
    steps = gpu_check.steps(tmp_path, 2)
    assert sum(step.seconds for step in steps) <= 25 * 60
    assert {step.name for step in steps} - {step.name for step in gpu_check.steps(tmp_path, 1)} == {"nccl"}
    scripts = [word for step in steps for word in step.command if word.endswith(".py")]
    assert all((PATH.parents[1] / script).is_file() for script in scripts)


def test_without_a_gpu_nothing_is_claimed(gpu_check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--output", str(tmp_path)]) == 2
    assert "nothing was checked" in capsys.readouterr().err
