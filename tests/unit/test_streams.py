"""Commands whose stdin, stdout or stderr is closed, full, or read by nobody any more."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.stop import INTERRUPTED, SIGNALS
from tests.waiting import DEADLINE_S

LOGS, RESULT = "run_command(main)", "run_command(main, is_output_result=True)"
PROGRAM = """
import logging, os, sys, warnings
from recipes.command import run_command

def main(arguments):
    print("first", flush=True)
    {body}
    return 0

sys.exit({run})
"""
WRITES = """
    logging.basicConfig(stream=sys.stdout, level=0)
    for line in range(20_000):
        print("line", line)
    logging.info("logged")
    logging.getLogger("other").addHandler(logging.StreamHandler())
    logging.getLogger("other").error("logged")
    warnings.warn("warned")
    os.write(1, b"raw")
    os.system("echo a child")
    open("done", "w").write("done")
"""


def command(run: str, body: str = WRITES) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(run=run, body=body)]


def shell(redirection: str, program: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command with a redirection behind it."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *program], cwd=folder,
        env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True,
        timeout=DEADLINE_S,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("run", [LOGS, RESULT])
@pytest.mark.parametrize(
    "redirection", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-", "2>/dev/full", "2>&- <&-"]
)
def test_a_command_ends_well_whatever_is_closed(tmp_path, run, redirection):
    """What it opens is not taken for a stream: files hold what is written to them alone."""
    body = WRITES.replace('open("done"', 'opened = open("opened", "w"); open("done"')
    code, _, errors = shell(redirection, command(run, body), tmp_path)
    assert code == 0 and "Traceback" not in errors and "Logging error" not in errors
    assert (tmp_path / "done").read_text() == "done"
    assert (tmp_path / "opened").read_text() == ""


@pytest.mark.parametrize(("run", "code"), [(LOGS, 0), (RESULT, 1)])
def test_a_full_disk_behind_stdout_is_said_in_one_line(tmp_path, run, code):
    found, _, errors = shell(">/dev/full", command(run, "pass"), tmp_path)
    word = "error" if code else "note"
    assert (found, errors) == (
        code, f"{word}: stdout cannot be written to: No space left on device.\n"
    )  # fmt: skip
    found, _, errors = shell("> /dev/full 2>&1", command(run), tmp_path)
    assert (found, errors) == (code, "")
    assert (tmp_path / "done").exists() == (code == 0)


@pytest.mark.parametrize(("run", "code"), [(LOGS, 0), (RESULT, 128 + signal.SIGPIPE)])
@pytest.mark.parametrize("num_lines", [0, 1, 500])
def test_a_reader_that_goes_away_is_no_error(tmp_path, run, code, num_lines):
    pipe = f"| head -n {num_lines}; exit ${{PIPESTATUS[0]}}"
    found, _, errors = shell(pipe, command(run, WRITES), tmp_path)
    assert found == code
    assert "Traceback" not in errors and "BrokenPipe" not in errors and "error: " not in errors
    assert (tmp_path / "done").exists() == (code == 0)


def test_help_that_nobody_reads_is_no_error(tmp_path):
    body = "import argparse; argparse.ArgumentParser(epilog='long ' * 50_000).parse_args(['-h'])"
    for run, code in ((LOGS, 0), (RESULT, 128 + signal.SIGPIPE)):
        program = command(run, body)
        found, _, errors = shell("| head -n 1; exit ${PIPESTATUS[0]}", program, tmp_path)
        assert (found, errors) == (code, "")


def test_a_name_that_the_terminal_cannot_show_is_shown_by_its_code(tmp_path):
    environment = "PYTHONIOENCODING=ascii"
    program = ["env", environment, *command(RESULT, r"print('na\u00efve \udcff')")]
    assert shell("", program, tmp_path) == (0, "first\nna\\xefve \\udcff\n", "")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_command_that_is_stopped_says_so_in_one_line(tmp_path, number, is_wrapped):
    """Also where a library makes an error of its own of the interruption."""
    wait = """
    try:
        os.kill(os.getpid(), SIGNAL)
        from tests.waiting import block; block()
    except BaseException:
        RAISE
    finally:
        print("cleaned")
""".replace("SIGNAL", str(int(number)))
    wait = wait.replace("RAISE", "raise RuntimeError('wrapped')" if is_wrapped else "raise")
    stopped = f"Stopped by {number.name}. The same command goes on.\n"
    assert shell("", command(LOGS, wait), tmp_path) == (
        INTERRUPTED, f"first\ncleaned\n{stopped}", ""
    )  # fmt: skip
    assert shell("", command(RESULT, wait), tmp_path) == (
        INTERRUPTED, "first\ncleaned\n", stopped
    )  # fmt: skip


def test_a_user_without_a_name_has_one_that_libraries_ask_for(tmp_path):
    """As in a container that is started as any number; PyTorch asks when it compiles."""
    program = command(LOGS, "import getpass; print(getpass.getuser())")
    nameless = "import os, pwd\nos.getuid = lambda: 54321\npwd.getpwuid = {}.__getitem__\n"
    program[2] = nameless + program[2]
    names = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME")
    program = ["env", *(f"-u{name}" for name in names), *program]
    assert shell("", program, tmp_path) == (0, "first\nuid-54321\n", "")
