"""What an installation has: every package of the project but the parity harness."""

from pathlib import Path

import tomli
from setuptools import find_packages

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_all_folders_but_the_parity_harness():
    """A folder without `__init__.py` would be missing without a word; the harness trains files of
    the checkout."""
    find = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set(find_packages(str(ROOT), **find["find"]))
    sources = [*ROOT.glob("nitp/**/*.py"), *ROOT.glob("recipes/**/*.py")]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in sources}
    assert found == folders - {"recipes.parity"}


def test_nothing_that_is_installed_imports_what_is_not():
    for path in [*ROOT.glob("nitp/**/*.py"), *ROOT.glob("recipes/**/*.py")]:
        if path.parent.name != "parity":
            assert "recipes.parity" not in path.read_text(), path.relative_to(ROOT)
