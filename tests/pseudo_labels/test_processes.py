"""Workers end with what they work for, whether it fails or is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import u2seg.pseudo_labels

# Their own processes import the module alone: the package takes seconds.
BEGIN = f"""
import os, sys, time
sys.path.insert(0, {str(Path(u2seg.pseudo_labels.__file__).parent)!r})
from processes import Workers

def work(task, path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    if task == "sleep":
        time.sleep(600)
    while not (os.path.exists("1.txt") and os.path.getsize("1.txt")):
        time.sleep(0.01)
    raise ZeroDivisionError("of worker 0")
"""
RUN = """
if __name__ == "__main__":
    with Workers(2) as workers:
        workers.run(work, [(task, path) for task, path in zip(sys.argv[1:3], sys.argv[3:5])])
"""


def start(directory, *tasks):
    (directory / "main.py").write_text(BEGIN + RUN)
    command = [sys.executable, "main.py", *tasks, "0.txt", "1.txt"]
    return subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True)


def number_in(path):
    """Returns the number of the process that writes itself to a file."""
    return wait_for(lambda: path.is_file() and int(path.read_text() or 0))


def wait_for(condition):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def is_gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    # Nobody may be there to reap it.
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_first_error_ends_the_others(tmp_path):
    with start(tmp_path, "fail", "sleep") as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "ZeroDivisionError: of worker 0" in error
    assert is_gone(number_in(tmp_path / "1.txt"))


def test_they_end_with_a_parent_that_is_killed(tmp_path):
    with start(tmp_path, "sleep", "sleep") as process:
        numbers = [number_in(tmp_path / f"{index}.txt") for index in range(2)]
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: all(map(is_gone, numbers)))
