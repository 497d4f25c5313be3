"""The folders point one way: scripts -> recipes -> nitp -> torchtitan, and no two to each other."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parents[2]
# What must be checkable, or readable, without waiting for torch.
TORCH_FREE = [
    "nitp/__init__.py",
    "nitp/config.py",
    "recipes/characters.py",
    "recipes/command.py",
    "recipes/stop.py",
    "recipes/streams.py",
    "recipes/train.py",
    "recipes/config/__init__.py",
    "recipes/config/arguments.py",
    "recipes/config/choices.py",
    "recipes/config/fields.py",
    "recipes/config/help.py",
    "recipes/config/idle.py",
    "recipes/config/initial.py",
    "recipes/config/lookup.py",
    "recipes/config/options.py",
    "recipes/config/parts.py",
    "recipes/config/paths.py",
    "recipes/config/ranges.py",
    "recipes/config/rules.py",
    "recipes/config/schema.py",
    "recipes/config/settings.py",
    "recipes/config/toml_file.py",
    "recipes/config/values.py",
    "recipes/data/config.py",
    "recipes/data/contents.py",
    "recipes/data/corpus.py",
    "recipes/data/endings.py",
    "recipes/data/inputs.py",
    "recipes/data/paths.py",
    "recipes/data/sources.py",
    "recipes/data/splits.py",
    "recipes/data/tokenizer.py",
    "recipes/data/vocabulary.py",
    "recipes/evaluation/command.py",
    "recipes/evaluation/compare.py",
    "recipes/evaluation/request.py",
    "recipes/evaluation/results.py",
    "recipes/evaluation/suite.py",
    "recipes/evaluation/table.py",
    "recipes/export/command.py",
    "recipes/export/request.py",
    "recipes/markdown.py",
    "recipes/measure/command.py",
    "recipes/measure/request.py",
    "recipes/models/shapes.py",
    "recipes/report/command.py",
    "recipes/report/page.py",
    "recipes/run/curves.py",
    "recipes/run/folder.py",
    "recipes/run/inputs.py",
    "recipes/run/lock.py",
    "recipes/run/owner.py",
    "recipes/sweep/command.py",
    "recipes/tokenize/command.py",
    "recipes/tokenize/parts.py",
    "recipes/tokenize/plan.py",
    "recipes/tokenize/run.py",
]
PACKAGES = {
    "nitp",
    "recipes.config",
    "recipes.run",
    "recipes.data",
    "recipes.models",
    "recipes.evaluation",
    "recipes.export",
    "recipes.measure",
    "recipes.platform",
    "recipes.parity",
    "recipes.gpu_check",
    "recipes.report",
    "recipes.sweep",
    "recipes.tokenize",
}
LOADS_WHEN_CALLED = {("recipes.config", "recipes.build")}
"""load_config is one of recipes.config, and needs torch: it imports what builds when it is called.
No other function's import points up."""


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _statements(nodes: list[ast.stmt], in_functions: bool) -> Iterator[ast.AST]:
    """What runs when the module is imported, and with `in_functions` later; not what only the type
    checker reads."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if in_functions or not isinstance(node, ast.FunctionDef):
            yield node
            yield from _statements([*ast.iter_child_nodes(node)], in_functions)


@cache
def imports(path: Path, in_functions: bool = True) -> frozenset[str]:
    """Dotted names that the file imports: modules, and modules with the name taken from them."""
    names: set[str] = set()
    for node in _statements(ast.parse(path.read_text()).body, in_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def roots(path: Path, in_functions: bool = True) -> set[str]:
    return {name.split(".")[0] for name in imports(path, in_functions)}


def own_file(name: str) -> Path | None:
    """The file of one of this project's modules or packages."""
    path = ROOT.joinpath(*name.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def own_imports(path: Path, in_functions: bool) -> set[Path]:
    found = {own_file(name) for name in imports(path, in_functions)} - {None, path}
    return {file for file in found if file is not None}


def room(path: Path) -> str:
    """The package that a file belongs to; a file beside the packages is one of its own."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "nitp" else ".".join(parts[:2])


def arrows(in_functions: bool) -> set[tuple[str, str]]:
    """(room, room that it imports from)."""
    return {
        (room(path), room(imported))
        for path in files("nitp") + files("recipes")
        for imported in own_imports(path, in_functions)
        if room(path) != room(imported)
    }


def order(arrows: set[tuple[str, str]]) -> list[str]:
    """From the bottom up; graphlib.CycleError names a cycle."""
    graph: dict[str, set[str]] = {}
    for above, below in arrows:
        graph.setdefault(above, set()).add(below)
    return [*TopologicalSorter(graph).static_order()]


@pytest.mark.parametrize(
    ("package", "above"),
    [("nitp", {"recipes", "scripts", "tests"}), ("recipes", {"scripts", "tests"})],
)
def test_no_layer_imports_from_above(package, above):
    for path in files(package):
        assert not roots(path) & above, path.relative_to(ROOT)


def test_no_packages_import_each_other():
    assert set(order(arrows(in_functions=False))) >= PACKAGES
    order(arrows(in_functions=True) - LOADS_WHEN_CALLED)


def test_no_files_import_each_other():
    order(
        {
            (str(path), str(imported))
            for path in files("nitp") + files("recipes")
            for imported in own_imports(path, in_functions=False)
        }
    )


@pytest.mark.parametrize("name", ["nitp/objective.py", "nitp/geometry.py"])
def test_the_mathematics_imports_only_torch(name):
    assert roots(ROOT / name) <= {"torch", "collections", "typing"}


def test_the_sequence_runs_on_torch_alone():
    path = ROOT / "nitp/sequence.py"
    assert roots(path) <= {"torch", "nitp", "dataclasses", "typing"}
    below = {ROOT / "nitp/__init__.py", ROOT / "nitp/objective.py"}
    assert own_imports(path, in_functions=True) <= below


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_is_checked_first_does_not_import_torch(name):
    """Neither itself nor by what it imports, the packages that these are in among them."""
    seen: set[Path] = set()
    ahead = {ROOT / name}
    while ahead:
        path = ahead.pop()
        seen.add(path)
        packages = {parent / "__init__.py" for parent in path.relative_to(ROOT).parents}
        ahead |= {ROOT / package for package in packages if (ROOT / package).is_file()}
        ahead |= own_imports(path, in_functions=False)
        ahead -= seen
        found = roots(path, in_functions=False) & {"torch", "torchtitan", "pyarrow"}
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_only_the_cpu_platform_is_cpu_specific():
    for path in files("nitp") + files("recipes"):
        if path.parent != ROOT / "recipes/platform":
            assert "gloo" not in path.read_text(), path.relative_to(ROOT)


# ------------------------------------------------------------------- upstream's private names

ELSEWHERE = {
    "nitp/loss.py": {"_gradient_backprop"},
    "recipes/platform/__init__.py": {"_utils", "_get_available_device_type"},
    "recipes/platform/cpu.py": {
        "_utils",
        "_get_available_device_type",
        "_compiled_create_block_mask",
        "_context_parallel",
        "_attention",
    },
    "recipes/platform/overrides.py": {
        "_functional_collectives",
        "_grouped_mm",
        "_dispatch_token_exchange",
        "_combine_token_exchange",
    },
    "recipes/run/tensorboard.py": {"_build_metric_logger"},
    "recipes/run/checkpoint.py": {
        "_save",
        "_should_save",
        "_wait_for_saving",
        "_purge_stale_checkpoints",
        "_should_purge",
    },
    "recipes/run/checkpoint_loading.py": {
        "_load",
        "_find_load_step",
        "_states_to_load",
        "_create_checkpoint_id",
    },
}
"""Private names of PyTorch and TorchTitan outside nitp/_torchtitan.py, which says why."""
PYTHONS = {"_replace", "_exit"}
"""Public, though underscored: NamedTuple's and os's."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined_names(path: Path) -> set[str]:
    """Functions, classes, variables and attributes of `self` that the file sets."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def private_uses(path: Path, own: set[str]) -> set[str]:
    """Private names of upstream that the file imports, or takes from a module or an object.

    own: this project's; what an object of unknown class has by such a name counts as ours.
    """
    tree = ast.parse(path.read_text())
    used, outside = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom) and own_file(node.module or "") is None:
            used |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        else:
            continue
        outside |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = ast.unparse(node).split(".")[0]
            if root in outside or node.attr not in own:
                used.add(node.attr)
    return {name for name in used if is_private(name)} - PYTHONS


def private_overrides(path: Path) -> set[str]:
    """Private methods of the file's classes that a base class of PyTorch or TorchTitan has."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return {
        name
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__
        for name, value in vars(cls).items()
        if is_private(name) and isinstance(value, FunctionType | staticmethod | classmethod)
        for base in cls.__mro__[1:]
        if name in vars(base) and base.__module__.startswith("torch")
    }


def test_private_names_of_upstream_are_in_one_place_or_named_there():
    here = ROOT / "nitp/_torchtitan.py"
    paths = [path for path in files("nitp") + files("recipes") if path != here]
    own = {name for path in paths for name in defined_names(path)}
    found: dict[str, set[str]] = {}
    for path in paths:
        if names := private_overrides(path) | private_uses(path, own):
            found[str(path.relative_to(ROOT))] = names
    assert found == ELSEWHERE
    explained = ast.get_docstring(ast.parse(here.read_text())) or ""
    for name in set().union(*ELSEWHERE.values()):
        assert re.search(rf"\b{name}\b", explained), name


@pytest.mark.parametrize("name", ["recipes/train.py", "recipes/export/command.py"])
def test_a_run_and_its_export_start_without_any_extra(name):
    """No file that they may import, at whatever moment, needs one to be imported. What they do
    with an extra, such as to verify logits, imports it when it is asked for."""
    extras = {"lm_eval", "matplotlib", "mteb", "torchao", "transformers"}
    seen: set[Path] = set()
    ahead = {ROOT / name}
    while ahead:
        path = ahead.pop()
        seen.add(path)
        ahead |= own_imports(path, in_functions=True) - seen
        found = roots(path, in_functions=False) & extras
        assert not found, f"{path.relative_to(ROOT)}: {found}"
    assert ROOT / "recipes/export/verify.py" in seen
