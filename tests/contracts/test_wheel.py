"""What an installation has: every package of the project but what measures."""

from pathlib import Path

import tomli
from setuptools import find_packages

ROOT = Path(__file__).parents[2]
IN_A_CHECKOUT = ("recipes.parity", "recipes.gpu_check")


def test_the_wheel_has_all_folders_but_those_that_need_a_checkout():
    """A folder without `__init__.py` would be missing without a word; what is left out trains files
    of the checkout."""
    find = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set(find_packages(str(ROOT), **find["find"]))
    sources = [*ROOT.glob("nitp/**/*.py"), *ROOT.glob("recipes/**/*.py")]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in sources}
    assert found == folders - set(IN_A_CHECKOUT)


def test_nothing_that_is_installed_imports_what_is_not():
    for path in [*ROOT.glob("nitp/**/*.py"), *ROOT.glob("recipes/**/*.py")]:
        text, package = path.read_text(), f"recipes.{path.parent.name}"
        if package not in IN_A_CHECKOUT:
            assert not any(name in text for name in IN_A_CHECKOUT), path.relative_to(ROOT)


def test_the_wheel_has_the_data_files_of_its_packages():
    """setuptools leaves out what is no module unless it is told."""
    settings = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = [path for folder in ("nitp", "recipes") for path in (ROOT / folder).rglob("*.*")]
    assert installed == {
        path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts
    }
    suites = ROOT / "recipes" / "evaluation" / "suites"
    assert installed >= {suites / "paper.toml", suites / "tasks" / "c3.yaml"}
