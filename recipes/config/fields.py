"""Reads dataclass fields from source files, without importing them.

TorchTitan's configs live in modules that import torch, which takes seconds; their source takes
milliseconds, and has what an import loses: the docstring under each field.
"""

import ast
import functools
import importlib.util
import operator
from dataclasses import MISSING, dataclass
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal

_PLAIN_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "Any": Any,
    # recipes.data.config: entries of the arrays of tables [[data.sources]] and [[validation.sets]]
    "SourceConfig": dict,
    "ValidationSetConfig": dict,
}
_GENERIC_TYPES: dict[str, Any] = {"list": list, "tuple": tuple, "dict": dict, "Literal": Literal}


@dataclass(kw_only=True, slots=True, frozen=True)
class Option:
    """One field that TOML can express."""

    name: str
    type: Any
    """bool, int, float, str, Any, None, Literal, list, tuple, dict, or a union of these."""

    default: Any = MISSING
    """MISSING: the field has none."""

    required: bool = False
    """Whether a table without this key is an error."""

    doc: str = ""
    """The docstring under the field, dedented."""


class _NotPlainError(Exception):
    """The annotation is outside the type language of `Option.type`."""


@functools.cache
def read_fields(source: str) -> dict[str, Option]:
    """The fields of the dataclass `module:Qualified.Name`, inherited ones first.

    Fields that TOML cannot express (callables, nested configs) are absent. Raises ValueError for a
    plain field whose default is not a literal, ModuleNotFoundError for a package not installed.
    """
    module, node = _find_class(*source.split(":"))
    options: dict[str, Option] = {}
    for base in node.bases:
        options |= read_fields(f"{module}:{ast.unparse(base)}")
    for statement, following in pairwise([*node.body, ast.Pass()]):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                try:
                    plain_type = _evaluate_type(module, annotation)
                except _NotPlainError:
                    continue
                options[name] = Option(
                    name=name,
                    type=plain_type,
                    default=MISSING if value is None else _evaluate_default(module, value),
                    required=value is None,
                    doc=_docstring(following),
                )
    return options


def read_keys(module: str, suffix: str) -> list[str]:
    """The string keys of the module's one dict whose name ends with `suffix`."""
    (table,) = (
        node
        for name, node in _definitions(module).items()
        if name.endswith(suffix) and isinstance(node, ast.Dict)
    )
    return [ast.literal_eval(key) for key in table.keys if key is not None]


def source_path(module: str) -> Path:
    """The source file of a module, or of a package's `__init__`. Imports nothing."""
    package, *rest = module.split(".")
    # find_spec of a dotted name would import its parents; a top-level name imports nothing.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No package named {package!r}.", name=package)
    path = Path(spec.submodule_search_locations[0], *rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _definitions(module: str) -> dict[str, ast.AST]:
    """Top-level name -> class, assigned expression, or the import statement it comes from."""
    found: dict[str, ast.AST] = {}
    for node in ast.parse(source_path(module).read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=name):
                found[name] = node
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name] = value
            case ast.ImportFrom(names=names):
                found |= {alias.asname or alias.name: node for alias in names}
    return found


def _find(module: str, name: str) -> tuple[str, ast.AST]:
    """The module that defines `name`, imports followed, and the definition. KeyError: none."""
    node = _definitions(module)[name]
    if not isinstance(node, ast.ImportFrom):
        return module, node
    origin = "." * node.level + (node.module or "")
    is_package = source_path(module).name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    (original,) = (alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return _find(importlib.util.resolve_name(origin, package), original)


def _find_class(module: str, qualified_name: str) -> tuple[str, ast.ClassDef]:
    outer, *inner = qualified_name.split(".")
    module, node = _find(module, outer)
    for name in inner:
        assert isinstance(node, ast.ClassDef)
        node = next(n for n in node.body if isinstance(n, ast.ClassDef) and n.name == name)
    assert isinstance(node, ast.ClassDef), f"{module}:{qualified_name} is not a class"
    return module, node


def _evaluate_type(module: str, node: ast.AST) -> Any:
    """The annotation as a Python type. Raises _NotPlainError outside the closed type language."""
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Name(id=name) if name in _PLAIN_TYPES:
            return _PLAIN_TYPES[name]
        case ast.Name(id=name) if name in _definitions(module):
            return _evaluate_type(*_find(module, name))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return operator.or_(_evaluate_type(module, left), _evaluate_type(module, right))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return Literal[ast.literal_eval(choices)]
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _GENERIC_TYPES:
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _GENERIC_TYPES[name][tuple(_evaluate_type(module, part) for part in parts)]
    raise _NotPlainError


def _evaluate_default(module: str, node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="field"), keywords=[ast.keyword(value=factory)]):
            match factory:
                case ast.Name(id="list"):
                    return []
                case ast.Name(id="dict"):
                    return {}
                case ast.Lambda(body=body):
                    return ast.literal_eval(body)
        case ast.Name(id=name):
            return ast.literal_eval(_find(module, name)[1])
    return ast.literal_eval(node)


def _docstring(node: ast.stmt) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return cleandoc(text)
    return ""
