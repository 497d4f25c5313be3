"""The layers point one way: scripts -> recipes -> nitp -> torchtitan."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What must be checkable, or readable, without waiting for torch.
TORCH_FREE = [
    "nitp/__init__.py",
    "nitp/config.py",
    "recipes/train.py",
    "recipes/checks.py",
    "recipes/command.py",
    "recipes/export.py",
    "recipes/fields.py",
    "recipes/help.py",
    "recipes/options.py",
    "recipes/run_folder.py",
    "recipes/schema.py",
    "recipes/settings.py",
    "recipes/stop.py",
    "recipes/values.py",
    "recipes/data/config.py",
    "recipes/data/corpus.py",
    "recipes/data/endings.py",
    "recipes/data/paths.py",
    "recipes/data/sources.py",
    "recipes/data/tokenizer.py",
    "recipes/models/shapes.py",
]


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.split(".")[0] for name in names}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    ("package", "above"),
    [("nitp", {"recipes", "scripts", "tests"}), ("recipes", {"scripts", "tests"})],
)
def test_no_layer_imports_from_above(package, above):
    for path in files(package):
        assert not imports(path) & above, path.relative_to(ROOT)


def test_the_mathematics_imports_only_torch():
    assert imports(ROOT / "nitp/objective.py") <= {"torch", "collections"}


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_is_checked_first_does_not_import_torch(name):
    assert not imports(ROOT / name, top_level_only=True) & {"torch", "torchtitan", "pyarrow"}


def test_only_the_cpu_platform_is_cpu_specific():
    for path in files("nitp") + files("recipes"):
        if path.name not in ("cpu.py", "cpu_overrides.py"):
            assert "gloo" not in path.read_text(), path.relative_to(ROOT)


def test_private_names_of_torchtitan_are_in_one_place():
    """Underscored names, and the modules that nitp/_torchtitan.py speaks for."""
    for path in files("nitp"):
        if path.name == "_torchtitan.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchtitan"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{path.relative_to(ROOT)}: {private}"
