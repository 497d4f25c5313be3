"""What `make` installs, and when, with a stand-in for Python that notes what it is asked."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" >> asked
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p .venv/bin
    for name in pip python ruff mypy; do cp "$0" .venv/bin/$name; done
fi
if [ "$(basename "$0")" = pip ] && [ -e broken ]; then exit 1; fi
"""
BASE, DEV = "--editable .", "--editable .[dev]"


class Checkout:
    """A folder with the Makefile, where nothing is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "Makefile", folder)
        self.change("pyproject.toml")
        (folder / "stand_in").write_text(PYTHON)
        (folder / "stand_in").chmod(0o755)

    def change(self, name: str) -> None:
        """Give the file a time after that of all that is there, and before that of what comes."""
        now_s = time.time()
        for path in self.folder.rglob("*"):
            os.utime(path, (now_s - 20,) * 2)
        (self.folder / name).touch()
        os.utime(self.folder / name, (now_s - 10,) * 2)

    def make(self, target: str) -> tuple[list[str], str]:
        """What pip was told to install, and the last that Python was asked for."""
        (self.folder / "asked").write_text("")
        command = ["make", "--silent", target, "PYTHON=./stand_in"]
        subprocess.run(command, cwd=self.folder, capture_output=True, check=False)
        asked = (self.folder / "asked").read_text().splitlines()
        installs = [line for line in asked if line.startswith("pip install")]
        return [line[line.index("--editable") :] for line in installs], asked[-1]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_training_installs_no_extra_and_the_tests_then_the_rest(checkout):
    trains = "python -m recipes.train --job.config_file train_configs/debug.toml"
    tests = "python -m pytest -m not slow"
    assert checkout.make("train") == ([BASE], trains)
    assert checkout.make("train") == ([], trains)
    assert checkout.make("test") == ([DEV], tests)
    assert checkout.make("test") == ([], tests)
    assert checkout.make("train") == ([], trains)


@pytest.mark.parametrize("target", ["test", "test-slow", "lint", "check-gpu", "campaign"])
def test_what_needs_the_extras_installs_them_once(checkout, target):
    assert checkout.make(target)[0] == [DEV]
    assert checkout.make(target)[0] == []
    assert checkout.make("train")[0] == []


@pytest.mark.parametrize(("target", "package"), [("train", BASE), ("test", DEV)])
@pytest.mark.parametrize("is_update", [False, True])
def test_a_set_up_that_did_not_end_begins_again_from_nothing(checkout, target, package, is_update):
    """Also that of the tests, by the run: it may have taken packages away."""
    if is_update:
        checkout.make("train")
    if is_update and target == "train":
        checkout.change("pyproject.toml")
    (checkout.folder / "broken").touch()
    assert checkout.make(target)[0] == [package]
    half = checkout.folder / ".venv" / "half_a_package"
    half.touch()
    (checkout.folder / "broken").unlink()
    assert checkout.make("train")[0] == [BASE]
    assert not half.exists()
    assert checkout.make("test")[0] == [DEV]
    assert checkout.make("train")[0] == checkout.make("test")[0] == []


def test_other_requirements_are_installed(checkout):
    checkout.make("train")
    checkout.make("test")
    checkout.change("pyproject.toml")
    (checkout.folder / ".venv" / "package").touch()
    assert checkout.make("train")[0] == [BASE]
    assert checkout.make("test")[0] == [DEV]
    assert (checkout.folder / ".venv" / "package").exists(), "and what is there stays"
