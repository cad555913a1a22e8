"""Progress lines: what they count, how often they come, what they promise."""

import io
import logging
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from u2seg.utils.progress import Progress, format_seconds, print_above_progress, track
from u2seg.utils.quiet_screen import quiet_screen


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_time_left_follows_from_the_mean_pace_of_this_run():
    clock = Clock()
    progress = Progress(100, "masks", initial=40, stream=io.StringIO(), clock=clock)
    assert progress.seconds_left() is None
    clock.now = 30.0
    progress.update()
    assert progress.seconds_left() == pytest.approx(30.0 * 59)  # nothing but the first item to go by
    clock.now = 48.0
    progress.update(9)
    assert progress.seconds_left() == pytest.approx(2.0 * 50)


def test_items_that_come_all_at_once_promise_no_end_in_no_time():
    clock = Clock()
    progress = Progress(100, "masks", stream=io.StringIO(), clock=clock)
    clock.now = 20.0
    progress.update()
    clock.now = 20.1
    progress.update(9)
    assert progress.seconds_left() == pytest.approx(20.1 / 10 * 90)


@given(st.lists(st.floats(0.5, 1.0), min_size=20, max_size=60), st.floats(0.0, 500.0))
def test_after_ten_items_the_estimate_is_right_within_a_factor_of_two(durations, start):
    # Items that differ by no more than a factor of two, after a start of any length.
    clock = Clock()
    progress = Progress(len(durations), "masks", stream=io.StringIO(), clock=clock)
    clock.now = start
    for duration in durations[:10]:
        clock.now += duration
        progress.update()
    left = sum(durations[10:])
    assert left / 2 <= progress.seconds_left() * (1 + 1e-9) and progress.seconds_left() <= 2 * left * (1 + 1e-9)


def test_a_log_file_gets_a_line_after_ten_items_and_then_every_twenty_seconds():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "masks", stream=stream, clock=clock) as progress:
        for _ in range(100):
            clock.now += 1.0
            progress.update()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["10", "30", "50", "70", "90", "100"]
    assert lines[0] == "masks            10 of 100 images, 1 min 30 s left"
    assert lines[-1] == "masks            100 of 100 images in 1 min 40 s"


def test_a_terminal_gets_a_bar_and_one_lasting_line():
    clock, stream = Clock(), Terminal()
    with Progress(4, "training", unit="iterations", stream=stream, clock=clock) as progress:
        for item in progress.track("abcd"):
            clock.now += 1.0
            assert item in "abcd"
    text = stream.getvalue()
    assert "[############------------] 2 of 4 iterations, 2 s left" in text
    assert text.count("\n") == 1 and text.endswith("4 of 4 iterations in 4 s\n")


def test_a_transient_step_leaves_nothing_and_an_error_says_where_it_stopped():
    stream = io.StringIO()
    with Progress(2, "sampling", transient=True, stream=stream, clock=Clock()) as progress:
        progress.update(2)
    assert stream.getvalue() == ""
    with pytest.raises(RuntimeError), Progress(5, "masks", stream=stream, clock=Clock()) as progress:
        progress.update(2)
        raise RuntimeError
    assert stream.getvalue() == "masks            stopped after 2 of 5 images\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (245, "4 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_are_written_as_people_do(seconds, text):
    assert format_seconds(seconds) == text


def test_a_quiet_screen_keeps_what_libraries_say_in_the_file(tmp_path, capsys):
    log, logger = tmp_path / "new" / "log.txt", logging.getLogger("some.library")
    noisy = logging.StreamHandler(sys.stdout)
    logger.addHandler(noisy)
    try:
        with quiet_screen(log):
            print("printed")
            logger.warning("logged")
            warnings.warn("warned", stacklevel=1)
            # As Detectron2's setup_logger does.
            added = logging.StreamHandler(sys.stdout)
            logger.addHandler(added)
            logger.warning("logged by a new handler")
            print("an error", file=sys.stderr)
        assert logger.handlers == [noisy]
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err == "an error\n"
        text = log.read_text()
        assert all(word in text for word in ("printed", "WARNING: logged", "warned", "logged by a new handler"))
        apart = logging.getLogger("a.library.apart")
        apart.propagate = False
        apart.addHandler(screen := logging.StreamHandler(sys.stderr))
        with quiet_screen(log):
            apart.warning("kept apart")
        assert apart.handlers == [screen] and "kept apart" in log.read_text()
        assert capsys.readouterr().err == ""
        logger.warning("afterwards")
        assert capsys.readouterr().out == "afterwards\n"
    finally:
        logger.removeHandler(noisy)


def test_tracked_items_come_in_order_and_leave_one_line_in_a_log(capsys):
    assert list(track(["a", "b"], "annotations", unit="files")) == ["a", "b"]
    assert capsys.readouterr().err == "annotations      2 of 2 files in 0 s\n"


def test_a_line_above_a_bar_takes_the_place_of_the_bar(monkeypatch):
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        monkeypatch.setattr(sys, "stderr", stream)
        print_above_progress("error: broken.jpg")
    assert (terminal.getvalue(), log.getvalue()) == ("\r\x1b[Kerror: broken.jpg\n", "error: broken.jpg\n")
