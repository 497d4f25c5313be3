"""What informs never fails a run, and says in one line that it is not complete."""

import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from recipes.run.log import init_logging, report_lost_lines

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_lines_for_a_full_disk_are_missed_in_one_line(capfd):
    own = logging.Logger("own")
    own.addHandler(logging.FileHandler("/dev/full"))
    report_lost_lines(own)
    for _ in range(3):
        own.warning("a line")
    out, err = capfd.readouterr()
    assert out == "" and err == ("/dev/full is not complete: [Errno 28] No space left on device\n")


def test_nothing_is_raised_where_the_message_itself_cannot_be_written(monkeypatch):
    own = logging.Logger("own")
    with open("/dev/full", "w") as full:
        own.addHandler(logging.StreamHandler(full))
        report_lost_lines(own)
        monkeypatch.setattr("sys.stderr", full)
        own.warning("a line")
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.close()


@contextmanager
def console(monkeypatch) -> Iterator[None]:
    """The log of a run's rank 0; what the tests have is put back."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = list(root.handlers), root.level
    monkeypatch.setenv("RANK", "0")
    try:
        init_logging()
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        threading.excepthook = hook


def fail_in_a_thread(error: Exception) -> None:
    def fail() -> None:
        raise error

    thread = threading.Thread(target=fail, name="writer")
    thread.start()
    thread.join()


def test_a_thread_that_cannot_write_is_one_line_and_a_bug_keeps_its_traceback(monkeypatch, capsys):
    with console(monkeypatch):
        fail_in_a_thread(FULL)
        out, err = capsys.readouterr()
        assert out.endswith("WARNING - writer ends: [Errno 28] No space left on device\n")
        assert out.count("\n") == 1 and not err
        fail_in_a_thread(KeyError("x"))
        out, err = capsys.readouterr()
        assert "Traceback" in err and "KeyError" in err and not out
